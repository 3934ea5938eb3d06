"""Rows that share a sequence compute what they would compute alone, and every row has its turn."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kala.errors import FailedPreconditionError
from services.trainer.training.encoding import Encoded
from services.trainer.training.layout import Layout, Source
from tests.fakes.training_jobs import EMBEDDED


def encoded(*tokens: int, prompt: int = 1) -> Encoded:
    learned = bytes([0] * prompt + [1] * (len(tokens) - prompt))
    return Encoded(array("i", tokens), learned)


@pytest.mark.torch
def test_packed_rows_have_the_logits_that_they_have_alone():
    import torch
    from transformers import GPTNeoXForCausalLM

    from services.trainer.training.batches import collate

    model = GPTNeoXForCausalLM.from_pretrained(
        EMBEDDED, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    rows = [encoded(5, 9, 300, 17, 2), encoded(40, 41), encoded(900, 3, 77, 8), encoded(6, 7, 8)]
    batch = collate([rows[:3], rows[3:]], padding=0)
    with torch.no_grad():
        packed = model(input_ids=batch.ids, attention_mask=batch.sees, position_ids=batch.positions).logits
        start = 0
        for row in rows[:3]:
            alone = model(input_ids=torch.tensor([list(row.ids)])).logits[0]
            assert torch.allclose(packed[0, start : start + len(row.ids)], alone, atol=1e-4)
            start += len(row.ids)


@pytest.mark.torch
def test_the_loss_of_packed_rows_is_the_sum_of_their_losses():
    import torch
    from transformers import GPTNeoXForCausalLM

    from services.trainer.training.batches import collate
    from services.trainer.training.objectives import make_objective

    model = GPTNeoXForCausalLM.from_pretrained(
        EMBEDDED, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    objective = make_objective("sft", model, beta=0.1)
    rows = [encoded(5, 9, 300, 17, 2, prompt=2), encoded(40, 41), encoded(900, 3, 77, 8, prompt=3)]
    with torch.no_grad():
        together = objective(collate([rows], padding=0))
        apart = sum(objective(collate([[row]], padding=0)) for row in rows)
        expected = 0.0
        for row in rows:
            ids = torch.tensor([list(row.ids)])
            labels = torch.where(torch.tensor([list(row.learned)]) == 1, ids, -100)
            loss = model(input_ids=ids, labels=labels).loss
            expected += loss * sum(row.learned)
    assert together.item() == pytest.approx(apart.item(), rel=1e-5)
    assert together.item() == pytest.approx(float(expected), rel=1e-5)


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@given(LENGTHS, st.integers(0, 5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_row_has_its_turn_in_each_epoch_and_no_sequence_is_too_long(lengths, seed, packing):
    layout = Layout([Source("a", lengths, 1.0)], seed=seed, max_tokens=40, packing=packing)
    for epoch in range(2):
        sequences = layout.epoch(epoch)
        rows = sorted(row for sequence in sequences for _, row in sequence)
        assert rows == list(range(len(lengths)))
        assert all(sum(lengths[row] for _, row in sequence) <= 40 for sequence in sequences)


@given(LENGTHS, st.integers(0, 80), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_a_position_gives_the_same_rows_however_one_came_there(lengths, first, count):
    straight = Layout([Source("a", lengths, 1.0)], seed=1, max_tokens=40, packing=True)
    whole = straight.sequences(0, first + count)
    resumed = Layout([Source("a", lengths, 1.0)], seed=1, max_tokens=40, packing=True)
    assert resumed.sequences(first, count) == whole[first:]


def test_replay_of_the_same_weight_is_half_of_the_rows():
    sources = [Source("task", [3] * 30, 1.0), Source("old", [3] * 500, 1.0, is_replay=True)]
    layout = Layout(sources, seed=0, max_tokens=64, packing=False)
    rows = [dataset for sequence in layout.epoch(0) for dataset, _ in sequence]
    assert (rows.count(0), rows.count(1)) == (30, 30)
    replayed = {row for epoch in (0, 1) for ((dataset, row),) in layout.epoch(epoch) if dataset == 1}
    assert len(replayed) == 60  # other rows in the second epoch


def test_a_dataset_with_nothing_to_learn_and_one_of_replay_alone_are_refused():
    with pytest.raises(FailedPreconditionError, match="datasets/x"):
        Layout([Source("datasets/x", [], 1.0)], seed=0, max_tokens=8, packing=True)
    with pytest.raises(FailedPreconditionError, match="none is there to train on"):
        Layout([Source("old", [3], 1.0, is_replay=True)], seed=0, max_tokens=8, packing=True)
