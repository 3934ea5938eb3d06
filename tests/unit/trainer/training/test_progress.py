"""How long a run will take follows from its last ten steps."""

from __future__ import annotations

import pytest

from services.trainer.training.layout import Layout, Source
from services.trainer.training.progress import Pace, remaining
from services.trainer.training.recipe import Recipe
from services.trainer.training.stages import ReadyStage


def test_speed_is_that_of_the_last_ten_steps():
    now = [0.0]
    pace = Pace(lambda: now[0])
    assert (pace.tokens_per_second(), pace.seconds_per_step()) == (0, 0)
    for _ in range(5):
        now[0] += 100.0
        pace.step(1)
    for _ in range(10):
        now[0] += 2.0
        pace.step(50)
    assert (pace.tokens_per_second(), pace.seconds_per_step()) == (25.0, 2.0)
    assert remaining(pace.seconds_per_step(), 30).seconds == 60


def stage(**changes: object) -> ReadyStage:
    recipe = Recipe(learning_rate=1.0, warmup_share=0.2, max_steps=10, **changes)
    layout = Layout([Source("a", [3] * 8, 1.0)], seed=0, max_tokens=8, packing=False)
    return ReadyStage(recipe, layout, [], [], 10, {})


@pytest.mark.parametrize(
    ("schedule", "last"), [("constant", 1.0), ("linear", 1 / 8), ("cosine", 0.0381)], ids=str
)
def test_the_learning_rate_warms_up_and_then_falls_but_never_to_nought(schedule, last):
    ready = stage(schedule=schedule)
    rates = [ready.learning_rate(step) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[-1] == pytest.approx(last, abs=1e-3)
    assert rates[2:] == sorted(rates[2:], reverse=True)
