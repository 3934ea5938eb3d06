"""Asks witnesses to cosign the log's checkpoints (c2sp.org/tlog-witness), again and again while the log grows.

Nothing waits for it: a record is acknowledged under the log's own signature, and the published checkpoint follows.
"""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, TypeVar

import httpx
import structlog

from kala.audit.cosignature import Cosigner, cosignatures
from kala.audit.merkle import consistency_proof
from kala.audit.note import SIGNATURE_MARK, parse_decimal
from kala.audit.tile_nodes import TileReader
from kala.errors import KalaError, VerificationError
from services.audit.publishing.cosignature_store import CosignatureStore
from services.audit.publishing.witness_policy import WitnessAddress
from services.audit.storage.store import LogReader

# A witness answers in milliseconds; one that is far and busy has this long.
TIMEOUT_SECONDS: Final = 5.0
# Twenty ML-DSA-44 cosignatures in base64 fit.
MAX_ANSWER_BYTES: Final = 64 * 1024
# A witness that fails is asked again after 1, 2, 4 … and at most 64 rounds.
MAX_DOUBLINGS: Final = 6

_T = TypeVar("_T")

log = structlog.get_logger()


class WitnessError(VerificationError):
    """The witness did not cosign, or what it gave does not hold."""

    default_reason = "WITNESS_REFUSED"


class HistoryError(WitnessError):
    """The witness remembers another log than this one: somebody changed what was signed."""


@dataclass(slots=True)
class _Known:
    """What is remembered of one witness: the size that it saw last, and the newest that it gave its cosignature for."""

    size: int
    cosigned: int
    failures: int = 0
    pause: int = 0


class Witnessing:
    """Gathers cosignatures for one log; one round at a time."""

    def __init__(
        self,
        *,
        reader: LogReader,
        store: CosignatureStore,
        witnesses: Sequence[WitnessAddress],
        client: httpx.AsyncClient,
        own: Cosigner | None = None,
        clock: Callable[[], float] = time.time,
        show: Callable[[str, int], None] = lambda _name, _size: None,
    ) -> None:
        """`own` is the log's own second key; `show(name, size)` is told what each witness cosigned last."""
        self._reader = reader
        self._store = store
        self._witnesses = witnesses
        self._client = client
        self._own = own
        self._clock = clock
        self._show = show
        self._known: dict[str, _Known] = {}
        self._pruned_at = 0
        # The reader has one connection.
        self._lock = threading.Lock()

    async def run(self, interval_seconds: float) -> None:
        """Asks for as long as it is not cancelled, once per interval when the log grew."""
        while True:
            try:
                await self.advance()
            except KalaError as error:
                log.warning("the log was not witnessed", problem=error.message)
            except Exception:  # the edge of a task that must outlive a bug of its own
                log.exception("asking the witnesses met a bug")
            await asyncio.sleep(interval_seconds)

    async def advance(self) -> None:
        """One round: the newest checkpoint goes to every witness that has not cosigned it."""
        newest = await self._in_thread(lambda: self._reader.note(None))
        if newest is None:
            return
        size, note = newest
        if self._own is not None:
            await self._sign_own(self._own, size, note)
        asked = [self._ask(witness, size, note) for witness in self._witnesses]
        # Each to its end: what one meets must not leave another behind that runs into the next round.
        for met in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(met, BaseException):
                raise met
        if size > self._pruned_at:
            await asyncio.to_thread(self._store.prune)
            self._pruned_at = size

    async def _sign_own(self, own: Cosigner, size: int, note: str) -> None:
        if await asyncio.to_thread(self._store.size_of, own.witness) < size:
            line = own.line(_text(note), int(self._clock()))
            await asyncio.to_thread(self._store.add, size, own.witness, line)

    async def _ask(self, witness: WitnessAddress, size: int, note: str) -> None:
        known = self._known.get(witness.name)
        if known is None:
            cosigned = await asyncio.to_thread(lambda: max(map(self._store.size_of, witness.keys)))
            known = self._known[witness.name] = _Known(cosigned, cosigned)
            self._show(witness.name, cosigned)
        if known.cosigned >= size:
            return
        if known.pause:
            known.pause -= 1
            return
        try:
            await self._submit(witness, known, size, note)
        except (httpx.HTTPError, KalaError) as error:
            problem = error.message if isinstance(error, KalaError) else f"{type(error).__name__}: {error}"
            known.pause = (1 << known.failures) - 1
            known.failures = min(known.failures + 1, MAX_DOUBLINGS)
            say = log.error if isinstance(error, HistoryError) else log.warning
            say("a witness did not cosign", witness=witness.name, size=size, problem=problem)
        else:
            known.failures = 0
            self._show(witness.name, known.cosigned)

    async def _submit(self, witness: WitnessAddress, known: _Known, size: int, note: str) -> None:
        """Gets one cosignature, telling the witness what it saw last; asks once more when it says another size."""
        status, answer = await self._post(witness, known.size, size, note)
        if status == HTTPStatus.CONFLICT:
            seen = _seen(answer, known.size)
            if seen > size:
                await self._require_that_long(seen)
                return
            known.size = seen
            status, answer = await self._post(witness, seen, size, note)
        if status == HTTPStatus.CONFLICT:
            _seen(answer, known.size)
        if status == HTTPStatus.UNPROCESSABLE_ENTITY:
            raise HistoryError(
                "what it cosigned is not the beginning of this log: this log has two histories"
            )
        if status != HTTPStatus.OK:
            raise WitnessError(f"it answers {status}: {' '.join(answer.split())[:200]}")
        await self._keep(witness, size, note, answer)
        known.size = known.cosigned = size

    async def _require_that_long(self, seen: int) -> None:
        """Another writer may have sent its newer checkpoint first; a log that is shorter even now was cut."""
        head = await self._in_thread(self._reader.head)
        if head.size < seen:
            raise HistoryError(f"it cosigned {seen} entries, and this log has {head.size}: this log was cut")

    async def _post(self, witness: WitnessAddress, old: int, size: int, note: str) -> tuple[int, str]:
        proof = await self._in_thread(
            lambda: consistency_proof(old, size, TileReader(size, self._reader.hashes).node) if old else []
        )
        lines = "".join(f"{base64.b64encode(digest).decode()}\n" for digest in proof)
        body = f"old {old}\n{lines}\n{note}".encode()
        url = f"{witness.url}/add-checkpoint"
        try:
            # All of it at once: one witness that sends a byte now and then would keep the others from being asked.
            async with asyncio.timeout(TIMEOUT_SECONDS):
                status, answer = await self._exchange(url, body)
        except TimeoutError:
            raise WitnessError(f"it did not answer within {TIMEOUT_SECONDS:g} seconds") from None
        return status, answer.decode("utf-8", "replace")

    async def _exchange(self, url: str, body: bytes) -> tuple[int, bytes]:
        headers = {"accept-encoding": "identity"}
        async with self._client.stream("POST", url, content=body, headers=headers, timeout=None) as response:
            if response.headers.get("content-encoding", "identity") != "identity":
                # A few compressed bytes could fill the memory before they are counted.
                raise WitnessError("its answer is compressed, which it was not asked for")
            answer = b""
            async for part in response.aiter_bytes():
                answer += part
                if len(answer) > MAX_ANSWER_BYTES:
                    raise WitnessError(f"it answers more than {MAX_ANSWER_BYTES} bytes")
            return response.status_code, answer

    async def _keep(self, witness: WitnessAddress, size: int, note: str, answer: str) -> None:
        """Stores the lines of the witness's own keys, each verified; lines of other keys are passed over."""
        found: dict[int, str] = {}
        for line in answer.splitlines(keepends=True):
            if not line.startswith(SIGNATURE_MARK) or not line.endswith("\n"):
                raise WitnessError("its answer is not lines of signatures")
            for key in cosignatures(_text(note) + "\n" + line, witness.keys):
                found[list(witness.keys).index(key)] = line
        if not found:
            raise WitnessError("its answer holds no signature of its keys")
        for number, line in found.items():
            await asyncio.to_thread(self._store.add, size, witness.keys[number], line)

    async def _in_thread(self, method: Callable[[], _T]) -> _T:
        def locked() -> _T:
            with self._lock:
                return method()

        return await asyncio.to_thread(locked)


def _seen(answer: str, told: int) -> int:
    """The size that a witness says it saw last, when it was told another one; `HistoryError` when it was told this one."""
    seen = parse_decimal(answer.removesuffix("\n"), "the size that the witness answers")
    if seen == told:
        raise HistoryError(f"it cosigned another tree of size {seen}: this log has two histories")
    return seen


def _text(note: str) -> str:
    """The text that a note signs."""
    return note.rpartition("\n\n")[0] + "\n"
