from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from kala.errors import InternalError
from services.ethics.classifier.calibration import TOKENIZER_FILE
from services.ethics.classifier.classifier import CATEGORIES_FROM, Classifier, Question
from services.ethics.classifier.encoding import Encoded
from services.ethics.judge import Stage
from tests.unit.ethics.classifier_files import classifier, verified

ASKED = [Question(f"How do I bake {number} loaves of bread?", Stage.REQUEST) for number in range(64)]


class Network:
    """Answers with what it counts, and can be held up."""

    def __init__(self, columns: int) -> None:
        self.seen: list[Encoded] = []
        self.threads: set[int] = set()
        self.may_answer = threading.Event()
        self.may_answer.set()
        self._columns = columns

    def columns(self, encoded: Encoded) -> NDArray[np.float32]:
        assert self.may_answer.wait(30)
        self.threads.add(threading.get_ident())
        self.seen.append(encoded)
        return np.full(self._columns, float(len(encoded.ids)), np.float32)


def made(*, workers: int = 2, cached: int = 16) -> tuple[Classifier, Network]:
    calibration = classifier().calibration
    network = Network(CATEGORIES_FROM + len(calibration.categories))
    tokenizer = Tokenizer.from_str(verified().files[TOKENIZER_FILE].decode())
    return (
        Classifier(network, tokenizer, calibration, workers=workers, cached=cached),  # type: ignore[arg-type] # a fake
        network,
    )


def test_probabilities_are_probabilities() -> None:
    for scores in classifier().ask_now(ASKED[:3]):
        assert all(0 <= value <= 1 for value in (scores.unsafe, scores.jailbreak, scores.injection))
        assert sum(scores.laws) == pytest.approx(1)
        assert sum(scores.intents) == pytest.approx(1)
        assert sum(scores.categories) == pytest.approx(1)
        assert len(scores.categories) == len(classifier().calibration.categories)


async def test_sixty_four_at_once_get_the_answers_that_each_gets_alone() -> None:
    answers = await asyncio.gather(*(classifier().ask([question]) for question in ASKED))
    assert [answer[0] for answer in answers] == classifier().ask_now(ASKED)


async def test_a_text_scores_the_same_whatever_else_is_asked() -> None:
    fresh, _ = made()
    del fresh
    together = await classifier().ask(ASKED[:9])
    assert together[4] == (await classifier().ask([ASKED[4]]))[0]


async def test_the_loop_goes_on_while_the_network_thinks() -> None:
    asked, network = made()
    network.may_answer.clear()
    thinking = asyncio.ensure_future(asked.ask(ASKED[:4]))
    turns = 0
    for _ in range(100):
        await asyncio.sleep(0)
        turns += 1
    assert not thinking.done()
    network.may_answer.set()
    assert len(await thinking) == 4
    assert turns == 100
    assert threading.get_ident() not in network.threads


async def test_a_cancelled_call_leaves_the_others_alone() -> None:
    asked, network = made()
    network.may_answer.clear()
    calls = [asyncio.ensure_future(asked.ask([question])) for question in ASKED]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    network.may_answer.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in results] == [True, False] * 32


def test_what_was_asked_before_is_not_asked_again() -> None:
    asked, network = made()
    asked.ask_now(ASKED[:3])
    asked.ask_now(ASKED[:3])
    assert len(network.seen) == 3


def test_the_same_text_in_another_stage_or_after_another_request_is_another_question() -> None:
    asked, network = made()
    text = "Mix it slowly."
    asked.ask_now(
        [
            Question(text, Stage.REQUEST),
            Question(text, Stage.OUTPUT),
            Question(text, Stage.TOOL_RESULT),
            Question(text, Stage.OUTPUT, "How do I bake bread?"),
            Question(text, Stage.OUTPUT, "How do I clean the oven?"),
        ]
    )
    assert len(network.seen) == 5


def test_the_cache_is_bounded() -> None:
    asked, network = made(cached=16)
    asked.ask_now(ASKED)
    assert len(asked._cache) == 16
    asked.ask_now(ASKED[-1:])
    assert len(network.seen) == 64


async def test_a_long_call_takes_no_more_than_its_share_of_the_queue() -> None:
    asked, network = made(workers=1, cached=1)
    long = asyncio.ensure_future(asked.ask(ASKED))
    await asyncio.sleep(0)
    await asked.ask([Question("short", Stage.REQUEST)])
    assert len(network.seen) < len(ASKED)
    await long


class Nonsense:
    """A session that answers what makes no sense."""

    def __init__(self, row: Sequence[Sequence[float]]) -> None:
        self._row = np.array(row, np.float32)

    def run(self, *_: object) -> list[NDArray[np.float32]]:
        return [self._row]


@pytest.mark.parametrize("row", [[[0.0]], [[float("nan")] * 51], [[float("inf")] * 51], [[0.0] * 51] * 2])
def test_an_answer_that_makes_no_sense_is_an_error(row: list[list[float]]) -> None:
    network = object.__new__(type(classifier()._network))
    network._session, network._columns = Nonsense(row), 51
    with pytest.raises(InternalError, match="makes no sense"):
        network.columns(Encoded(np.array([101, 102], np.int32), np.zeros(2, np.int8)))
