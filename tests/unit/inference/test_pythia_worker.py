"""The thread of the model in process, without a model."""

from __future__ import annotations

import queue
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn, cast

from services.inference.backend import BackendFailure
from services.inference.chat import Sampling
from services.inference.pythia.worker import Generation, Told, Worker


class IdleEngine:
    """A model that is never to be used."""

    context_tokens = 64

    def computing(self) -> AbstractContextManager[None]:
        return nullcontext()


def never(_engine: object) -> NoReturn:
    raise AssertionError("the template was rendered")


def test_messages_of_an_act_that_is_over_are_not_rendered() -> None:
    # Its deadline had passed while it waited for the thread, which then rendered the template all the same.
    told: queue.Queue[Told] = queue.Queue()
    work = Generation(never, Sampling(), 8, tell=told.put)
    work.cancelled.set()
    # A cast, because the worker asks no more of its engine here than this.
    worker = Worker("test", lambda: cast("Any", IdleEngine()))
    worker.submit(work)
    answer = told.get(timeout=10)
    worker.stop()
    assert isinstance(answer, BackendFailure)
    assert answer.reason == "STOPPED"
