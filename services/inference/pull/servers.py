"""Pulls that a model server makes itself: Ollama from its library, LM Studio from its catalogue or a Hugging Face URL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from kala.common.v1.reference_pb2 import ContentReference
from services.inference.backend import BackendFailure, Blame
from services.inference.backends.http import ModelServerClient, Reply
from services.inference.failures import failure_of_body, failure_of_error, read_error
from services.inference.ndjson import LineReader, LineTooLongError
from services.inference.pull.progress import Pulled

OLLAMA_PATH: Final = "/api/pull"
LM_STUDIO_PATH: Final = "/api/v1/models/download"
LM_STUDIO_STATUS_PATH: Final = "/api/v1/models/download/status/"

OK: Final = 200
START_SECONDS: Final = 60.0
"""LM Studio looks the model up in its catalogue before it answers."""

VERIFY_SECONDS: Final = 900.0
"""Ollama says nothing while it hashes what it got; a large model on a slow disk takes minutes."""

MAX_LAYERS: Final = 1000
MAX_BELIEVED: Final = 2**53 - 1
"""Largest size that is believed; a thousand of them are what a message can carry."""

POLL_SECONDS: Final = 1.0
MAX_MISSED_POLLS: Final = 5

_HAS_IT: Final = frozenset({"completed", "already_downloaded"})
_GOES_ON: Final = frozenset({"downloading", "paused"})


async def pull_by_ollama(http: ModelServerClient, source: str) -> AsyncGenerator[Pulled]:
    """Let Ollama get a model; it stops when this is closed, and goes on from there the next time."""
    body = orjson.dumps({"model": source, "stream": True})
    layers = _Layers()
    async with http.post(
        OLLAMA_PATH, body, lambda: None, streams=True, idle_seconds=VERIFY_SECONDS
    ) as answer:
        if answer.status != OK:
            raise failure_of_body(answer.status, await answer.error_body())
        lines = LineReader()
        while data := await answer.read():
            for line in _fed(lines, data):
                yield layers.read(line)
                if layers.is_done:
                    return
    raise BackendFailure("STREAM_CUT", "ended its progress without a success")


async def pull_by_lm_studio(
    http: ModelServerClient, source: str, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> AsyncGenerator[Pulled]:
    """Let LM Studio (0.4 or newer) get a model and tell its progress; LM Studio goes on when this is closed."""
    job = _job(await http.tell(LM_STUDIO_PATH, {"model": source}, within_seconds=START_SECONDS))
    missed = 0
    while True:
        yield Pulled(source, _whole(job.get("downloaded_bytes")) or 0, _whole(job.get("total_size_bytes")))
        if job.get("status") in _HAS_IT:
            return
        await sleep(POLL_SECONDS)
        try:
            job = _job(await http.get(f"{LM_STUDIO_STATUS_PATH}{job['job_id']}"))
            missed = 0
        except BackendFailure:
            # It is busy with a fast line and a slow disk; the download does not end for that.
            missed += 1
            if missed > MAX_MISSED_POLLS:
                raise


@dataclass(slots=True)
class _Layers:
    """The parts of an Ollama model, each with a size of its own."""

    is_done: bool = False
    _sizes: dict[str, int] = field(default_factory=dict)
    _received: dict[str, int] = field(default_factory=dict)

    def read(self, line: bytes) -> Pulled:
        """Take one line of progress; raises BackendFailure for an error, which comes inside a 200."""
        try:
            told = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise BackendFailure("MALFORMED_ANSWER", "told its progress in no JSON") from error
        if not isinstance(told, dict):
            raise BackendFailure("MALFORMED_ANSWER", "told its progress in no JSON object")
        if (problem := read_error(told)) is not None:
            raise failure_of_error(0, problem)
        digest, status = told.get("digest"), str(told.get("status") or "")
        if isinstance(digest, str):
            self._sizes[digest] = _whole(told.get("total")) or 0
            self._received[digest] = _whole(told.get("completed")) or 0
            if len(self._sizes) > MAX_LAYERS:
                raise BackendFailure("MALFORMED_ANSWER", f"pulls more than {MAX_LAYERS} parts")
        self.is_done = status == "success"
        total = sum(self._sizes.values())
        received = total if self.is_done else min(sum(self._received.values()), total)
        return Pulled(status, received, total or None, self._files() if self.is_done else ())

    def _files(self) -> tuple[ContentReference, ...]:
        return tuple(
            ContentReference(name=digest, sha256=bytes.fromhex(digest.removeprefix("sha256:")), bytes=size)
            for digest, size in self._sizes.items()
            if _is_digest(digest)
        )


def _job(reply: Reply) -> dict[str, Any]:  # Any: JSON of another process
    """Read a download's state; LM Studio answers 200 to unknown paths, so only the state itself counts."""
    parsed = reply.json()
    status = parsed.get("status") if isinstance(parsed, dict) else None
    if reply.status != OK or status is None:
        failure = failure_of_body(reply.status, reply.body)
        if reply.status == OK and failure.reason == "BACKEND_ERROR":
            raise BackendFailure(
                "PULL_NOT_SERVED", "cannot be told to get models before LM Studio 0.4.0; use `lms get`"
            )
        raise failure
    if status in _HAS_IT or (status in _GOES_ON and isinstance(parsed.get("job_id"), str)):
        return dict(parsed)
    raise BackendFailure("PULL_FAILED", f"could not get the model: {str(status)[:64]}", blame=Blame.BACKEND)


def _fed(lines: LineReader, data: bytes) -> list[bytes]:
    try:
        return lines.feed(data)
    except LineTooLongError as error:
        raise BackendFailure("MALFORMED_ANSWER", str(error)) from error


def _whole(value: object) -> int | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and 0 <= value <= MAX_BELIEVED else None  # type: ignore[call-overload,operator]  # told by is_number


def _is_digest(text: str) -> bool:
    digest = text.removeprefix("sha256:")
    return len(digest) == 64 and all(char in "0123456789abcdef" for char in digest)  # noqa: PLR2004 - SHA-256 in hex
