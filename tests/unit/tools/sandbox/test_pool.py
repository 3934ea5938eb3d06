"""Which sandboxes wait, and when more are made."""

from __future__ import annotations

from typing import cast

from services.tools.sandbox.launcher.plan import Shape
from services.tools.sandbox.launcher.pool import REFILL_DELAY_SECONDS, Pool
from services.tools.sandbox.launcher.slot import Slot
from services.tools.sandbox.model import Language

PYTHON = Shape(Language.PYTHON, 100)
SHELL = Shape(Language.SHELL, 100)


class Waiting:
    """All that a pool sees of a sandbox."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape


def waiting(shape: Shape) -> Slot:
    return cast("Slot", Waiting(shape))


def pool() -> Pool:
    return Pool({Language.PYTHON: 2, Language.SHELL: 1, Language.JAVASCRIPT: 0}, 100)


def fill(subject: Pool, now: float = 0) -> list[Shape]:
    made = []
    while (shape := subject.wanted(now, busy=False)) is not None:
        slot = waiting(shape)
        subject.coming(slot)
        subject.park(slot)
        made.append(shape)
    return made


def test_an_idle_pool_is_filled_one_at_a_time() -> None:
    subject = pool()
    shape = subject.wanted(0, busy=False)
    assert shape == PYTHON
    subject.coming(waiting(shape))
    assert subject.wanted(0, busy=False) is None


def test_it_is_filled_to_its_sizes() -> None:
    subject = pool()
    assert fill(subject) == [PYTHON, PYTHON, SHELL]
    assert subject.count() == {"python": 2, "shell": 1}


def test_the_one_that_waited_longest_is_taken_first_and_once() -> None:
    subject = pool()
    slots = [waiting(PYTHON), waiting(PYTHON)]
    for slot in slots:
        subject.park(slot)
    assert [subject.take(PYTHON) for _ in range(3)] == [*slots, None]
    assert subject.parked == set()


def test_another_shape_is_not_served_from_it() -> None:
    subject = pool()
    fill(subject)
    assert subject.take(Shape(Language.PYTHON, 99)) is None
    assert subject.take(Shape(Language.PYTHON, 100, "/home/me")) is None


def test_while_runs_have_the_processor_nothing_is_made_until_they_take_long() -> None:
    subject = pool()
    fill(subject)
    subject.take(PYTHON)
    assert subject.wanted(10, busy=True) is None
    assert subject.wanted(10 + REFILL_DELAY_SECONDS / 2, busy=True) is None
    assert subject.wanted(10 + REFILL_DELAY_SECONDS, busy=True) == PYTHON


def test_one_that_is_being_made_may_be_claimed_by_a_run() -> None:
    subject = pool()
    slot = waiting(PYTHON)
    subject.coming(slot)
    assert subject.claim(SHELL) is None
    assert subject.claim(PYTHON) is slot
    assert subject.claim(PYTHON) is None


def test_after_one_that_died_it_waits_longer_each_time() -> None:
    subject = pool()
    now = 0.0
    waits = []
    for _ in range(8):
        subject.lost(waiting(PYTHON), now)
        waits.append(subject.patience(now))
        assert subject.wanted(now, busy=False) is None
        now += waits[-1]
        assert subject.wanted(now, busy=False) == PYTHON
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_one_that_stands_ends_the_waiting() -> None:
    subject = pool()
    subject.failed(0)
    subject.failed(0)
    subject.park(waiting(PYTHON))
    subject.failed(10)
    assert subject.patience(10) == 1
