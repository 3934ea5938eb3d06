"""Writes GGUF files that llama.cpp reads as `gptneox`: a merged model, or an adapter alone.

Two things differ from Pythia's files: queries, keys and values of all heads stand in three blocks instead of head by head,
and an adapter of the embedding has its first matrix transposed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kala.errors import FailedPreconditionError, InvalidArgumentError
from services.trainer.export.merging import Wrote, merged_tensors, require_all_merged
from services.trainer.export.mlx_layout import rope_of
from services.trainer.export.source import BUFFERS, AdapterSource, BaseSource, canonical

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType, GGUFWriter
    from numpy.typing import NDArray

ARCHITECTURE: Final = "gptneox"
MODEL_FILE: Final = "model.gguf"
LORA_FILE: Final = "adapter.gguf"
FORMATS: Final = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
"""Number formats of matrices; vectors are always fp32."""

QUANTIZED_BLOCK: Final = 32

_QKV: Final = re.compile(r"blk\.\d+\.attn_qkv\.(weight|bias)")
_LAYER: Final = re.compile(r"gpt_neox\.layers\.(?P<number>\d+)\.(?P<part>.+)\.(?P<kind>weight|bias)")
_PARTS: Final[Mapping[str, str]] = {
    "input_layernorm": "attn_norm",
    "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
_WHOLE: Final[Mapping[str, str]] = {
    "gpt_neox.embed_in.weight": "token_embd.weight",
    "gpt_neox.final_layer_norm.weight": "output_norm.weight",
    "gpt_neox.final_layer_norm.bias": "output_norm.bias",
    "embed_out.weight": "output.weight",
}


def gguf_name(name: str) -> str:
    """The name that llama.cpp has for a tensor of Pythia's files."""
    whole = _WHOLE.get(name)
    if whole is not None:
        return whole
    layer = _LAYER.fullmatch(name)
    if layer is None or layer["part"] not in _PARTS:
        raise FailedPreconditionError(f"{name} has no name in GGUF", reason="ARCHITECTURE_NOT_EXPORTED")
    return f"blk.{layer['number']}.{_PARTS[layer['part']]}.{layer['kind']}"


def write_merged_gguf(
    base: BaseSource, adapter: AdapterSource, target: Path, weight_format: str, wrote: Wrote
) -> None:
    """Writes the merged model, tensor by tensor, so that memory holds one of them at a time twice over."""
    import gguf
    import numpy as np

    kind = _kind_of(weight_format or own_format(base))
    writer = gguf.GGUFWriter(target / MODEL_FILE, ARCHITECTURE)
    _add_model_facts(writer, base)
    _add_tokenizer(writer, base, adapter.chat_template or base.chat_template())
    for name, shape in _shapes(base):
        chosen = _kind_for(shape, kind)
        # The shape is that of the numbers, not of the bytes they are packed into: hence a type of numbers.
        writer.add_tensor_info(name, shape, np.dtype(np.float32), _bytes_of(shape, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    seen: set[str] = set()
    heads, total = int(base.config["num_attention_heads"]), 0
    for shard in base.shards:
        for name, tensor, _ in merged_tensors(base, adapter, shard, seen=seen):
            data = _encoded(_arranged(gguf_name(name), tensor.float(), heads), kind)
            writer.write_tensor_data(data)
            total += data.nbytes
            wrote(total)
    writer.close()
    require_all_merged(adapter, seen)


def write_lora_gguf(base: BaseSource, adapter: AdapterSource, target: Path, wrote: Wrote) -> None:
    """Writes the adapter alone, in fp32, for `llama-server --lora`."""
    import gguf

    writer = gguf.GGUFWriter(target / LORA_FILE, ARCHITECTURE)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    # llama.cpp divides by the rank, whatever the adapter was trained with.
    alpha = adapter.alpha * math.sqrt(adapter.rank) if adapter.rank_stabilised else float(adapter.alpha)
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    heads, total = int(base.config["num_attention_heads"]), 0
    for name, pair in adapter.pairs.items():
        known = gguf_name(name)
        # It looks tokens up in the first matrix of an embedding, so that stands on its side.
        first = pair.a.float().T.contiguous() if pair.is_embedding else pair.a.float()
        second = _arranged(known, pair.b.float(), heads)
        for side, tensor in (("lora_a", first), ("lora_b", second)):
            data: NDArray[np.float32] = tensor.contiguous().numpy()
            writer.add_tensor(f"{known}.{side}", data)
            total += data.nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    wrote(total)


def own_format(base: BaseSource) -> str:
    """The number format of the base's matrices, by GGUF's name."""
    import torch

    names = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
    for shard in base.shards:
        for _, tensor in base.tensors(shard):
            if tensor.ndim > 1:
                return names.get(tensor.dtype, "f32")
    return "f32"


def _kind_of(weight_format: str) -> GGMLQuantizationType:
    import gguf

    name = FORMATS.get(weight_format)
    if name is None:
        raise InvalidArgumentError(
            "weight_format", f"must be {', '.join(FORMATS)}, or empty for the base's own"
        )
    return gguf.GGMLQuantizationType[name]


def _kind_for(shape: tuple[int, ...], kind: GGMLQuantizationType) -> GGMLQuantizationType:
    import gguf

    if len(shape) < len(("rows", "columns")):
        return gguf.GGMLQuantizationType.F32
    if kind is gguf.GGMLQuantizationType.Q8_0 and shape[-1] % QUANTIZED_BLOCK:
        return gguf.GGMLQuantizationType.F16
    return kind


def _bytes_of(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * size


def _shapes(base: BaseSource) -> Iterable[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors, in the order in which they will be written."""
    from safetensors import safe_open

    for shard in base.shards:
        with safe_open(shard, framework="pt") as file:
            known = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - as in source.py
        for name in sorted(known):
            if not name.endswith(BUFFERS):
                yield gguf_name(canonical(name)), known[name]


def _arranged(name: str, tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Puts queries, keys and values, which Pythia interleaves by head, into three blocks; others stay as they are."""
    if not _QKV.match(name):
        return tensor
    rest = tensor.shape[1:]
    by_head = tensor.reshape(heads, 3, tensor.shape[0] // (3 * heads), *rest)
    return by_head.transpose(0, 1).reshape(tensor.shape)


def _encoded(tensor: torch.Tensor, kind: GGMLQuantizationType) -> NDArray[Any]:  # of the format's own type
    import gguf

    data = tensor.contiguous().numpy()
    encoded: NDArray[Any] = gguf.quants.quantize(data, _kind_for(data.shape, kind))  # as above
    return encoded


def _add_model_facts(writer: GGUFWriter, base: BaseSource) -> None:
    config = base.config
    share, frequency = rope_of(config)
    head = config["hidden_size"] // config["num_attention_heads"]
    writer.add_name(f"{base.directory.name}, merged")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_rope_dimension_count(int(head * share))
    writer.add_rope_freq_base(frequency)
    writer.add_parallel_residual(bool(config.get("use_parallel_residual", True)))
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: GGUFWriter, base: BaseSource, chat_template: str) -> None:
    import gguf

    raw: dict[str, Any] = json.loads((base.directory / "tokenizer.json").read_bytes())
    model = raw["model"]
    if model.get("type", "BPE") != "BPE":
        raise _unknown_tokenizer(f"its model is {model.get('type')}")
    if not model["merges"]:
        raise _unknown_tokenizer("it merges nothing")
    size = int(base.config["vocab_size"])
    tokens = {number: token for token, number in model["vocab"].items()}
    kinds = dict.fromkeys(tokens, gguf.TokenType.NORMAL)
    for added in raw.get("added_tokens", ()):
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_of(raw))
    # A matrix may have more rows than there are tokens.
    writer.add_token_list([tokens.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types([kinds.get(number, gguf.TokenType.UNUSED) for number in range(size)])
    writer.add_token_merges([_merge(item) for item in model["merges"]])
    writer.add_add_bos_token(False)
    for add, key in (
        (writer.add_bos_token_id, "bos_token_id"),
        (writer.add_eos_token_id, "eos_token_id"),
        (writer.add_pad_token_id, "pad_token_id"),
    ):
        if isinstance(base.config.get(key), int):
            add(base.config[key])
    if chat_template:
        writer.add_chat_template(chat_template)


def pre_tokenizer_of(tokenizer: Mapping[str, Any]) -> str:  # parsed JSON
    """llama.cpp's name for how text is cut before it is tokenised; raises FailedPreconditionError for another way.

    The wrong name would load without a word and give other tokens.
    """
    pre = tokenizer.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", []) if pre.get("type") == "Sequence" else [pre]
    kinds = [step.get("type") for step in steps]
    normalizer = (tokenizer.get("normalizer") or {}).get("type")
    is_plain = bool(steps) and steps[-1].get("use_regex", True) and not steps[-1].get("add_prefix_space")
    if normalizer in {None, "NFC"} and is_plain:
        if kinds == ["ByteLevel"]:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
            return "smollm"
    raise _unknown_tokenizer(f"it cuts text by {kinds} after {normalizer}")


def _merge(item: str | list[str]) -> str:
    return item if isinstance(item, str) else " ".join(item)


def _unknown_tokenizer(problem: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"the tokenizer has no equal in llama.cpp ({problem}); export the adapter as MERGED or MLX",
        reason="TOKENIZER_NOT_EXPORTED",
    )
