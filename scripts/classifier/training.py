"""The training loop: batches of one length, bfloat16 products on float32 weights, the mean of the last epoch's weights."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scripts.classifier.encoding import width_of
from scripts.classifier.examples import UNKNOWN, Example
from scripts.classifier.network import Answers, Classifier
from services.ethics.classifier.encoding import Encoded, batch_arrays
from services.ethics.judge import Stage

# Hard examples are mined between epochs from the answers that training gave anyway.
KNOWN, KNOWN_FACTOR = 0.93, 0.4
MISTAKEN, MISTAKEN_FACTOR = 0.5, 1.6
CONTRADICTED: Final = 0.12
# Sources whose labels were made by rule, row by row unseen.
DOUBTFUL: Final = frozenset({"aart", "safetext_wrapped", "harmfulqa", "hatecheck"})
# Smoothing says that the labels are not certain; their sources disagree on a few in a hundred.
SMOOTHING: Final = 0.03
# A harmful text must stand so far above its harmless twin, in logits, before the two teach nothing more.
TWIN_MARGIN: Final = 3.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast to learn."""

    epochs: int = 4
    tokens_per_batch: int = 2560
    learning_rate: float = 2e-4
    head_learning_rate: float = 1e-3
    layer_decay: float = 0.85
    warm_up: float = 0.06
    weight_decay: float = 0.01
    # The mean of the weights over this last share of the steps is what is kept.
    averaged: float = 0.25
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of all examples as arrays of N; categories and groups as indices, UNKNOWN where untold."""

    unsafe: NDArray[np.int64]
    jailbreak: NDArray[np.int64]
    injection: NDArray[np.int64]
    law: NDArray[np.int64]
    intent: NDArray[np.int64]
    category: NDArray[np.int64]
    group: NDArray[np.int64]
    draws: NDArray[np.float32]
    is_doubtful: NDArray[np.bool_]


def labels_of(examples: Sequence[Example], categories: Sequence[str]) -> Labels:
    """Arrays of the examples' labels."""
    index = {category: number for number, category in enumerate(categories)}
    groups = {group: number for number, group in enumerate(sorted({example.group for example in examples}))}

    def column(value: Callable[[Example], int]) -> NDArray[np.int64]:
        return np.array([value(example) for example in examples], np.int64)

    return Labels(
        column(lambda example: example.unsafe),
        column(lambda example: example.jailbreak),
        # Only documents are asked about it. Sixty thousand requests that hold none would teach nothing but to say no.
        column(lambda example: example.injection if example.stage is Stage.TOOL_RESULT else UNKNOWN),
        column(lambda example: example.law),
        column(lambda example: example.intent),
        column(lambda example: index.get(example.category, UNKNOWN)),
        column(lambda example: groups[example.group]),
        np.array([example.draws for example in examples], np.float32),
        np.array([example.source in DOUBTFUL for example in examples], np.bool_),
    )


def train(
    model: Classifier, encoded: Sequence[Encoded], labels: Labels, plan: Plan, report: Callable[[str], None]
) -> None:
    """Train in place; afterwards the model holds the averaged weights."""
    torch.manual_seed(plan.seed)
    rng = random.Random(plan.seed)
    lengths = [len(item.ids) for item in encoded]
    certainty = np.full(len(encoded), np.nan, np.float32)
    optimizer = _optimizer(model, plan)
    average = torch.optim.swa_utils.AveragedModel(model)
    model.train()
    step, began = 0, time.monotonic()
    for epoch in range(plan.epochs):
        draws = mined(labels.draws, certainty, labels.is_doubtful)
        batches = list(_batches(_drawn(draws, lengths, rng), plan.tokens_per_batch, rng, labels.group))
        losses: list[float] = []
        for done, rows in enumerate(batches):
            progress = (epoch + done / len(batches)) / plan.epochs
            _set_rate(optimizer, progress, plan)
            loss, certainty[rows] = _loss(model, encoded, labels, rows)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            step += 1
            if progress > 1 - plan.averaged:
                average.update_parameters(model)
            if step % 200 == 0:
                report(f"epoch {epoch + 1} step {done}/{len(batches)} loss {np.mean(losses[-200:]):.4f}"
                       f" {time.monotonic() - began:.0f} s")  # fmt: skip
    model.load_state_dict(average.module.state_dict())
    model.eval()


def answer(
    model: Classifier, encoded: Sequence[Encoded], *, tokens_per_batch: int = 8192
) -> NDArray[np.float32]:
    """Logits (N, columns) of all examples, in float32."""
    model.eval()
    found: NDArray[np.float32] | None = None
    lengths = [len(item.ids) for item in encoded]
    with torch.inference_mode():
        for rows in _batches(enumerate(lengths), tokens_per_batch):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                columns = model(*_tensors([encoded[row] for row in rows]))
            values = columns.float().numpy()
            if found is None:
                found = np.zeros((len(encoded), values.shape[1]), np.float32)
            found[rows] = values
    if found is None:
        raise ValueError("no examples to answer")
    return found


def _tensors(encoded: Sequence[Encoded]) -> tuple[Tensor, Tensor, Tensor]:
    ids, mask, types = batch_arrays(encoded, max(width_of(len(item.ids)) for item in encoded))
    return torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(types)


def _loss(
    model: Classifier, encoded: Sequence[Encoded], labels: Labels, rows: list[int]
) -> tuple[Tensor, NDArray[np.float32]]:
    """The loss of these rows together, and for each the probability given to its true label."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        columns = model(*_tensors([encoded[row] for row in rows]))
    answers = Answers.split(columns.float())

    def yes_no(logits: Tensor, truth: NDArray[np.int64]) -> Tensor:
        target = torch.from_numpy(truth[rows])
        known = (target != UNKNOWN).float()
        smooth = target.clamp(min=0).float() * (1 - 2 * SMOOTHING) + SMOOTHING
        losses = nn.functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
        return (losses * known).sum() / known.sum().clamp(min=1.0)

    def one_of(logits: Tensor, truth: NDArray[np.int64]) -> Tensor:
        target = torch.from_numpy(truth[rows])
        losses = nn.functional.cross_entropy(
            logits, target, ignore_index=UNKNOWN, reduction="none", label_smoothing=SMOOTHING
        )
        known = (target != UNKNOWN).float()
        return (losses * known).sum() / known.sum().clamp(min=1.0)

    loss = (
        yes_no(answers.unsafe, labels.unsafe)
        + 0.3 * yes_no(answers.jailbreak, labels.jailbreak)
        + 0.3 * yes_no(answers.injection, labels.injection)
        + 0.5 * one_of(answers.laws, labels.law)
        + 0.2 * one_of(answers.intents, labels.intent)
        + 0.2 * one_of(answers.categories, labels.category)
        + 0.3 * _twins(answers.unsafe, labels, rows)
    )
    return loss, _certainty(answers, labels, rows)


def _twins(unsafe: Tensor, labels: Labels, rows: list[int]) -> Tensor:
    """How far harmful texts are from standing TWIN_MARGIN above the harmless ones of their own group."""
    groups, truth = torch.from_numpy(labels.group[rows]), torch.from_numpy(labels.unsafe[rows])
    pairs = (groups[:, None] == groups[None, :]) & (truth == 1)[:, None] & (truth == 0)[None, :]
    short = nn.functional.softplus(TWIN_MARGIN - (unsafe[:, None] - unsafe[None, :]))
    return (short * pairs).sum() / pairs.sum().clamp(min=1)


def _certainty(answers: Answers, labels: Labels, rows: list[int]) -> NDArray[np.float32]:
    """The probability of the true answer to the worst answered of the yes-or-no questions that are told."""
    worst = np.ones(len(rows), np.float32)
    for logits, truth in (
        (answers.unsafe, labels.unsafe),
        (answers.jailbreak, labels.jailbreak),
        (answers.injection, labels.injection),
    ):
        p = torch.sigmoid(logits.detach()).numpy()
        right = np.where(truth[rows] == 1, p, 1 - p)
        worst = np.where(truth[rows] == UNKNOWN, worst, np.minimum(worst, right))
    return worst


def mined(
    draws: NDArray[np.float32], certainty: NDArray[np.float32], is_doubtful: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """How often each row is drawn next, by the probability that its true label was last given; NaN where never asked.

    What is known is repeated less, what was mistaken more; a doubtful source's label that is flatly contradicted is
    taken for noise and left out.
    """
    factor = np.where(certainty > KNOWN, KNOWN_FACTOR, np.where(certainty < MISTAKEN, MISTAKEN_FACTOR, 1.0))
    factor = np.where(is_doubtful & (certainty < CONTRADICTED), 0.0, factor)
    result: NDArray[np.float32] = (draws * np.where(np.isnan(certainty), 1.0, factor)).astype(np.float32)
    return result


def _drawn(draws: NDArray[np.float32], lengths: Sequence[int], rng: random.Random) -> list[tuple[int, int]]:
    """The rows of one epoch with their lengths; `draws` is how often a row is expected in it."""
    return [
        (row, lengths[row])
        for row, expected in enumerate(draws)
        for _ in range(int(expected) + (rng.random() < expected % 1))
    ]


def _batches(
    rows: Iterable[tuple[int, int]],
    budget: int,
    rng: random.Random | None = None,
    groups: NDArray[np.int64] | None = None,
) -> Iterator[list[int]]:
    """Rows of one width each, `budget` padded tokens at most; in random order when there is a generator.

    Twins stay side by side, so that one step sees what they share on both sides and learns from what they do not.
    Few different shapes: the CPU's kernels are made anew for every shape that they meet.
    """
    by_width: dict[int, list[int]] = {}
    for row, length in rows:
        by_width.setdefault(width_of(length), []).append(row)
    batches: list[list[int]] = []
    for width, chosen in sorted(by_width.items()):
        if rng is not None and groups is not None:
            places: dict[int, float] = {}
            chosen.sort(key=lambda row: places.setdefault(int(groups[row]), rng.random()))
        size = max(1, budget // width)
        batches += [chosen[start : start + size] for start in range(0, len(chosen), size)]
    if rng is not None:
        rng.shuffle(batches)
    return iter(batches)


def _optimizer(model: Classifier, plan: Plan) -> torch.optim.AdamW:
    layers = len(model.encoder.encoder.layer)
    groups = [
        {"params": [*model.mix.parameters(), *model.heads.parameters()], "peak": plan.head_learning_rate}
    ]
    groups += [
        {
            "params": list(layer.parameters()),
            "peak": plan.learning_rate * plan.layer_decay ** (layers - 1 - depth),
        }
        for depth, layer in enumerate(model.encoder.encoder.layer)
    ]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, weight_decay=plan.weight_decay, fused=True)


def _set_rate(optimizer: torch.optim.AdamW, done: float, plan: Plan) -> None:
    """Up during the warm-up, then down in a line to a twentieth."""
    factor = (
        done / plan.warm_up if done < plan.warm_up else 1 - 0.95 * (done - plan.warm_up) / (1 - plan.warm_up)
    )
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
