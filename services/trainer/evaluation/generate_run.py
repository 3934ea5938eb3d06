"""The process of an evaluation: the candidate and its base answer every question; what that is worth is not said here.

Writes `answers/<adapter|base>/<suite>.jsonl`, one JSON object per item in the suite's order: {"id", "text"}, for texts
{"id", "nats", "tokens"}, for checks {"id", "holds"}.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kala.errors import FailedPreconditionError, VerificationError
from kala.trainer.v1 import trainer_pb2
from kala.trainer.v1.registry_pb2 import EvaluateAdapterMetadata
from services.trainer.evaluation.candidate import load_candidate
from services.trainer.evaluation.integrity import checks, copy_checked, require_base
from services.trainer.evaluation.suites import INTEGRITY, TEXT, Suite, read_suite
from services.trainer.work.events import PROGRESS_SECONDS, EventWriter
from services.trainer.work.order import Order
from services.trainer.work.results import write_atomically

ANSWERS: Final = "answers"
ADAPTER: Final = "adapter"
BASE: Final = "base"
CANDIDATE: Final = "candidate"


def main(order: Order, events: EventWriter) -> dict[str, Any]:  # Any: JSON
    """Answer the order's suites and say which files hold the answers."""
    _require_cleared(order)
    if order.base is None or order.adapter is None:
        raise FailedPreconditionError("the order names no base or no adapter")
    asked = [(_suite(order.folder, each), tuple(each["models"])) for each in order.settings["suites"]]
    checked = copy_checked(order.adapter.directory, order.adapter.digest, order.folder / CANDIDATE)
    require_base(order.base.directory, checked.description, order.base.digest)
    # What is wrong with the files has been said by now, without seconds of imports.
    import torch

    torch.set_num_threads(max(1, order.threads))
    candidate = load_candidate(order.base.directory, checked.folder, checked.description)
    progress = _Progress(events, order.name, sum(len(suite.items) * len(models) for suite, models in asked))
    files = []
    for suite, models in asked:
        for model in models:
            progress.begin(suite.name)
            lines: Iterable[Mapping[str, Any]]  # Any: JSON
            if suite.kind == INTEGRITY:
                lines = _held(suite, checks(candidate, checked))
            elif suite.kind == TEXT:
                losses = candidate.losses(suite.items, bare=model == BASE, told=progress.add)
                lines = [{"nats": loss.nats, "tokens": loss.tokens} for loss in losses]
            else:
                texts = candidate.answers(
                    suite.items, suite.max_tokens, bare=model == BASE, told=progress.add
                )
                lines = [{"text": text} for text in texts]
            files.append(_write(order.folder, model, suite, lines))
    progress.begin("")
    return {"answers": files}


def _require_cleared(order: Order) -> None:
    """A candidate is evaluated under its own clearance, or under that of the job that has just made it."""
    if order.action is not None and order.action.type_url.endswith("CreateTrainingJobAction"):
        order.parse(trainer_pb2.CreateTrainingJobAction)
        return
    action = order.parse(trainer_pb2.EvaluateAdapterAction)
    if order.adapter is None or order.base is None:
        raise FailedPreconditionError("the order names no base or no adapter")
    if (action.adapter.sha256, action.base.sha256) != (order.adapter.digest, order.base.digest):
        raise VerificationError("the order is about another adapter or base than was cleared")


def answers_path(folder: Path, model: str, suite: str) -> Path:
    """Where the answers of a model to a suite lie."""
    return folder / ANSWERS / model / f"{suite}.jsonl"


def _suite(folder: Path, asked: Mapping[str, Any]) -> Suite:  # Any: JSON
    suite = read_suite(folder / str(asked["file"]), str(asked["name"]))
    if suite.digest.hex() != asked["digest"]:
        raise VerificationError(
            f"suite {suite.name}: {asked['file']} is no longer the file that the profile names"
        )
    return suite


def _held(suite: Suite, checks: Mapping[str, Any]) -> list[dict[str, bool]]:  # Any: callables
    unknown = [item.id for item in suite.items if item.id not in checks]
    if unknown:
        raise FailedPreconditionError(f"suite {suite.name}: there is no check {unknown[0]!r}")
    return [{"holds": bool(checks[item.id]())} for item in suite.items]


def _write(folder: Path, model: str, suite: Suite, lines: Iterable[Mapping[str, Any]]) -> str:  # Any: JSON
    path = answers_path(folder, model, suite.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: Sequence[str] = [
        json.dumps({"id": item.id, **line}, ensure_ascii=False)
        for item, line in zip(suite.items, lines, strict=True)
    ]
    write_atomically(path, ("\n".join(rows) + "\n").encode("utf-8", "replace"))
    return path.relative_to(folder).as_posix()


class _Progress:
    """Tells how far it is: when a suite begins, and at most once a second within it."""

    def __init__(self, events: EventWriter, evaluation: str, total: int) -> None:
        self._events = events
        self._metadata = EvaluateAdapterMetadata(evaluation=evaluation, total_items=total)
        self._next = 0.0

    def begin(self, suite: str) -> None:
        self._metadata.suite = suite
        self._events.write(self._metadata)

    def add(self, items: int) -> None:
        self._metadata.items += items
        now = time.monotonic()
        if now >= self._next:
            self._next = now + PROGRESS_SECONDS
            self._events.write(self._metadata)
