"""The training loop: batches of conversations of like length, loss on the replies alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional
from transformers import AttentionInterface

from scripts.embedded.network import END_ID
from scripts.embedded.optimizer import Optimizer, rate_share
from scripts.embedded.tokens import CONTEXT_TOKENS, Encoded, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenizers import Tokenizer
    from torch import Tensor, nn
    from transformers import GPTNeoXForCausalLM

    from scripts.embedded.dialogue import Curriculum

BATCH_TOKENS: Final = 2560
# Conversations drawn, sorted by length and cut into batches at a time.
_WINDOW: Final = 3000
_REPORT_EVERY: Final = 100
_ATTENTION: Final = "kala_causal"


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded token ids and the weight in the loss of predicting each, both [rows, tokens]."""

    ids: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """What a run of training was: sizes, times in seconds and the last losses in nats."""

    steps: int
    conversations: int
    tokens: int
    learned_tokens: int
    wall_seconds: float
    cpu_seconds: float
    final_loss: float


def batches(curriculum: Curriculum, tokenizer: Tokenizer, seed: int) -> Iterator[Batch]:
    """Yields batches without end; every conversation starts its own row, so none sees another."""
    rng = Random(seed)
    while True:
        drawn = [encode(tokenizer, curriculum.conversation(rng)) for _ in range(_WINDOW)]
        rows = sorted((row for row in drawn if len(row.ids) <= CONTEXT_TOKENS), key=lambda row: len(row.ids))
        groups = list(_grouped(rows))
        rng.shuffle(groups)
        yield from map(_padded, groups)


def _grouped(rows: list[Encoded]) -> Iterator[list[Encoded]]:
    group: list[Encoded] = []
    for row in rows:
        if group and (len(group) + 1) * len(row.ids) > BATCH_TOKENS:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _padded(rows: list[Encoded]) -> Batch:
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), END_ID, dtype=torch.long)
    weights = torch.zeros((len(rows), width))
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        weights[i, : len(row.ids)] = torch.tensor(row.weights)
    return Batch(ids, weights)


def _loss(model: GPTNeoXForCausalLM, batch: Batch) -> Tensor:
    # Weights stay fp32; bf16 products are five times as fast on CPUs with AVX-512 BF16.
    # The head sees only the positions that are learned; padding is on the right, so causality hides it.
    wanted = batch.weights[:, 1:] > 0
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.gpt_neox(input_ids=batch.ids[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[wanted])
    losses = functional.cross_entropy(logits.float(), batch.ids[:, 1:][wanted], reduction="none")
    weights = batch.weights[:, 1:][wanted]
    return (losses * weights).sum() / weights.sum()


def causal_attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    scaling: float | None = None,
    **_options: object,
) -> tuple[Tensor, None]:
    """Attends causally in fp32, because torch's bf16 attention on CPUs is slow backwards."""
    with torch.autocast("cpu", enabled=False):
        mixed = functional.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), is_causal=True, scale=scaling
        )
    return mixed.transpose(1, 2).contiguous(), None


def train(
    model: GPTNeoXForCausalLM,
    stream: Iterator[Batch],
    steps: int,
    report: Callable[[str], None],
) -> TrainingRecord:
    """Trains in place for `steps` batches and returns what was done."""
    AttentionInterface.register(_ATTENTION, causal_attention)
    model.set_attn_implementation(_ATTENTION)
    optimizer = Optimizer(model)
    model.train()
    started_wall, started_cpu = time.perf_counter(), time.process_time()
    rows = tokens = learned = 0
    recent = float("nan")
    for step in range(steps):
        batch = next(stream)
        loss = _loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        optimizer.step(rate_share(step, steps))
        rows, tokens, learned = (
            rows + len(batch.ids),
            tokens + batch.ids.numel(),
            learned + int((batch.weights > 0).sum()),
        )
        value = loss.item()
        recent = value if step == 0 else 0.98 * recent + 0.02 * value
        if step % _REPORT_EVERY == 0:
            cpu = time.process_time() - started_cpu
            report(
                f"step {step}/{steps} loss {recent:.4f} tokens {tokens} cpu {cpu:.0f} s ({tokens / cpu:.0f} tokens/s)"
            )
    model.set_attn_implementation("sdpa")
    wall, cpu = time.perf_counter() - started_wall, time.process_time() - started_cpu
    return TrainingRecord(steps, rows, tokens, learned, wall, cpu, recent)
