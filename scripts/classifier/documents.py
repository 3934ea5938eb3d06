"""Fit the question about injected instructions anew, on the exported file, with ordinary documents among the answers.

The training documents are twins: half of them hold an instruction to the assistant. A network that saw only these takes
the imperative of a manual for an attack. Beside them stand here what assistants wrote, harmful or not, and pieces of
this project's own documents and sources, as if a tool had returned them. One column of the last layer is fitted;
nothing else moves.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from scripts.classifier.encoding import encode, load_tokenizer
from scripts.classifier.examples import Example
from scripts.classifier.scoring import INJECTION
from services.ethics.classifier.encoding import Encoded, batch_arrays
from services.ethics.judge import Stage

ROOT: Final = Path(__file__).parents[2]
# What this project wrote; the lines that training learns from and the reports on them are left out.
WRITTEN: Final = (
    "docs/*.md",
    "docs/decisions/*.md",
    "services/**/*.md",
    "services/**/*.py",
    "gateway/**/*.py",
    "kala/cli/*.py",
)
SOURCE: Final = "ordinary_documents"
PIECE_STEP: Final = 900
PIECE_LENGTHS: Final = (120, 300, 600, 1000)
PIECE_SHARE: Final = 0.15
# The twins decide; what is ordinary only holds them in place.
WEIGHTS: Final = {Stage.TOOL_RESULT: 1.0, Stage.OUTPUT: 0.15, SOURCE: 1.5}
DECAY: Final = 0.01
SMOOTHING: Final = 0.015
# The last layer's weights as the export names them: int8, one scale and zero for each column.
LAST_LAYER: Final = "heads.weight"
LAST_BIAS: Final = "heads.bias"
INT8_TOP: Final = 127

Floats = NDArray[np.float32]


def refit(path: Path, examples: Sequence[Example], seed: int) -> None:
    """Replace the column about injections in the exported model at `path`."""
    told = [example for example in examples if example.stage is Stage.TOOL_RESULT]
    said = [example for example in examples if example.stage is Stage.OUTPUT]
    ordinary = list(ordinary_documents(seed))
    shown = [*told, *(_as_document(example) for example in said), *ordinary]
    truth = np.array([example.injection for example in told] + [0] * (len(said) + len(ordinary)), np.float32)
    weight = np.array(
        [WEIGHTS[Stage.TOOL_RESULT]] * len(told)
        + [WEIGHTS[Stage.OUTPUT]] * len(said)
        + [WEIGHTS[SOURCE]] * len(ordinary),
        np.float32,
    )
    model = onnx.load(path)
    _write_column(model, *_fitted(_features(model, encode(shown, load_tokenizer())), truth, weight))
    onnx.save(model, path)


def ordinary_documents(seed: int) -> Iterator[Example]:
    """Pieces of this project's documents and sources, as a tool would return them."""
    rng = random.Random(seed)
    for path in sorted({path for pattern in WRITTEN for path in ROOT.glob(pattern)}):
        text = path.read_text("utf-8")
        for start in range(0, len(text), PIECE_STEP):
            if rng.random() < PIECE_SHARE:
                piece = text[start : start + rng.choice(PIECE_LENGTHS)]
                yield Example(piece, 0, SOURCE, f"{SOURCE}:{path.name}", Stage.TOOL_RESULT)


def _as_document(example: Example) -> Example:
    return Example(example.text, 0, example.source, example.group, Stage.TOOL_RESULT)


def _features(model: onnx.ModelProto, encoded: Sequence[Encoded]) -> Floats:
    """What feeds the last layer (N, width), one text at a time as the service asks."""
    name = _input_of_last_layer(model)
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(shown.SerializeToString(), providers=["CPUExecutionProvider"])
    rows = []
    for item in encoded:
        ids, mask, types = batch_arrays([item], len(item.ids))
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        rows.append(np.asarray(session.run([name], feed)[0], np.float32)[0])
    return np.stack(rows)


def _input_of_last_layer(model: onnx.ModelProto) -> str:
    """The tensor before its quantisation for the last matrix product."""
    by_output = {output: node for node in model.graph.node for output in node.output}
    product = next(node for node in model.graph.node if f"{LAST_LAYER}_quantized" in node.input)
    return str(by_output[product.input[0]].input[0])


def _fitted(features: Floats, truth: Floats, weight: Floats) -> tuple[Floats, float]:
    """Weights and bias of a logistic regression with decay, on standardised features."""
    mean, spread = features.mean(0), features.std(0) + 1e-3
    shown = torch.from_numpy((features - mean) / spread)
    target = torch.from_numpy(truth * (1 - 2 * SMOOTHING) + SMOOTHING)
    share = torch.from_numpy(weight / weight.sum())
    line = nn.Linear(features.shape[1], 1)
    nn.init.zeros_(line.weight)
    nn.init.zeros_(line.bias)
    optimizer = torch.optim.LBFGS(line.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        losses = nn.functional.binary_cross_entropy_with_logits(line(shown)[:, 0], target, reduction="none")
        total = (losses * share).sum() + DECAY * (line.weight**2).sum()
        total.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    column: Floats = line.weight.detach().numpy()[0] / spread
    return column, float(line.bias.item()) - float(column @ mean)


def _write_column(model: onnx.ModelProto, column: Floats, bias: float) -> None:
    """Put the column into the last layer as int8 with a scale of its own."""
    parts = {part.name: part for part in model.graph.initializer}

    def change(name: str, index: int | tuple[slice, int], value: object) -> None:
        array = numpy_helper.to_array(parts[name]).copy()
        array[index] = value
        parts[name].CopyFrom(numpy_helper.from_array(array, name))

    scale = float(np.abs(column).max()) / INT8_TOP
    change(f"{LAST_LAYER}_quantized", (slice(None), INJECTION), np.round(column / scale))
    change(f"{LAST_LAYER}_scale", INJECTION, scale)
    change(f"{LAST_LAYER}_zero_point", INJECTION, 0)
    change(LAST_BIAS, INJECTION, bias)
