"""Write the trained network as one ONNX file with int8 weights, and its tokenizer beside it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Final

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.fusion_options import FusionOptions

from scripts.classifier.network import Classifier, base_directory

INPUTS: Final = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT: Final = "columns"
OPSET: Final = 17


def export(model: Classifier, path: Path) -> None:
    """Write `model` to `path`: fused, weights per channel in int8, activations quantised while it runs."""
    with tempfile.TemporaryDirectory() as scratch:
        plain, fused = Path(scratch) / "plain.onnx", Path(scratch) / "fused.onnx"
        _write_plain(model, plain)
        options = FusionOptions("bert")
        # The heads read more than the first token, and masks are plain 0 and 1.
        options.enable_embed_layer_norm = False
        # On a CPU the sum fused into the norm is slower than the two beside each other.
        options.enable_skip_layer_norm = False
        encoder = model.encoder.config
        optimised = optimizer.optimize_model(
            str(plain),
            model_type="bert",
            num_heads=encoder.num_attention_heads,
            hidden_size=encoder.hidden_size,
            optimization_options=options,
        )
        optimised.save_model_to_file(str(fused))
        quantize_dynamic(
            fused,
            path,
            weight_type=QuantType.QInt8,
            per_channel=True,
            # The fused operators' shapes cannot be inferred, but all of them are float32.
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
    # The file must be the same for the same weights: no producer's time or path in it.
    written = onnx.load(path)
    written.doc_string = ""
    onnx.save(written, path)


def export_tokenizer(path: Path) -> None:
    """Write the tokenizer without its padding and truncation, which the service does itself."""
    tokenizer = json.loads((base_directory() / "tokenizer.json").read_text("utf-8"))
    tokenizer["padding"] = tokenizer["truncation"] = None
    path.write_text(json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")


def _write_plain(model: Classifier, path: Path) -> None:
    model.eval()
    # Attention written out is what the optimiser fuses into one operator with int8 weights.
    model.encoder.set_attn_implementation("eager")
    example = torch.ones((2, 16), dtype=torch.int64)
    axes = {0: "batch", 1: "tokens"}
    torch.onnx.export(
        model,
        (example, example, torch.zeros_like(example)),
        str(path),
        input_names=list(INPUTS),
        output_names=[OUTPUT],
        dynamic_axes=dict.fromkeys(INPUTS, axes) | {OUTPUT: {0: "batch"}},
        opset_version=OPSET,
        dynamo=False,
    )
