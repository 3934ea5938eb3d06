"""The one act of a witness: to check that a checkpoint follows from the last one, remember it, and cosign it.

c2sp.org/tlog-witness, `add-checkpoint`; the status codes are the specification's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import structlog

from kala.audit.checkpoint import Checkpoint, open_checkpoint
from kala.audit.cosignature import Cosigner
from kala.audit.merkle import EMPTY_ROOT
from kala.audit.note import KEY_ID_BYTES, SIGNATURE_MARK, Verifier, decode_base64, parse_decimal
from kala.audit.proof import verify_consistency
from kala.audit.receipt import MAX_PROOF_HASHES
from kala.errors import UnavailableError, VerificationError
from services.audit.witness.state import Cosigned, WitnessState

SIZE_TYPE: Final = "text/x.tlog.size"
TEXT_TYPE: Final = "text/plain; charset=utf-8"
_OLD: Final = "old "

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer over HTTP."""

    status: HTTPStatus
    body: str
    content_type: str = TEXT_TYPE


class _RefusedError(Exception):
    """The request is answered with this, and nothing is cosigned."""

    def __init__(self, status: HTTPStatus, words: str) -> None:
        super().__init__(words)
        self.reply = Reply(status, f"{words}\n")


@dataclass(frozen=True, slots=True)
class _Request:
    """What was asked: nothing of it is verified yet."""

    old_size: int
    proof: Sequence[bytes]
    note: str


class AddCheckpoint:
    """Cosigns for the logs whose keys it was given; safe from several threads."""

    def __init__(
        self,
        *,
        logs: Sequence[Verifier],
        cosigners: Sequence[Cosigner],
        state: WitnessState,
        clock: Callable[[], int],
    ) -> None:
        """`logs` are all keys of all logs; `clock` gives seconds since 1970."""
        keys: dict[str, list[Verifier]] = {}
        for verifier in logs:
            keys.setdefault(verifier.name, []).append(verifier)
        self._logs: Mapping[str, Sequence[Verifier]] = keys
        self._cosigners = cosigners
        self._state = state
        self._clock = clock
        # The last size is compared and the new one kept under one lock, or a slower request could roll it back.
        self._lock = threading.Lock()

    def answer(self, body: bytes) -> Reply:
        """Answers one request; the cosignature is given only after the checkpoint is on disk."""
        try:
            request = _parse(body)
            checkpoint = self._open(request)
            with self._lock:
                return self._cosign(request, checkpoint)
        except _RefusedError as refused:
            return refused.reply

    def _open(self, request: _Request) -> Checkpoint:
        """The checkpoint that a log signed."""
        origin = request.note.partition("\n")[0]
        if origin not in self._logs:
            raise _RefusedError(HTTPStatus.NOT_FOUND, "this witness does not know the log")
        try:
            checkpoint = open_checkpoint(request.note, self._logs[origin])
        except VerificationError as error:
            raise _RefusedError(HTTPStatus.FORBIDDEN, error.message) from None
        if request.old_size > checkpoint.size:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "the old size is above the checkpoint's")
        return checkpoint

    def _cosign(self, request: _Request, checkpoint: Checkpoint) -> Reply:
        newest = self._state.newest(checkpoint.origin)
        known_size = 0 if newest is None else newest.checkpoint.size
        if request.old_size != known_size:
            return Reply(HTTPStatus.CONFLICT, f"{known_size}\n", SIZE_TYPE)
        known_root = EMPTY_ROOT if newest is None else newest.checkpoint.root
        if checkpoint.size == known_size and checkpoint.root != known_root:
            log.error(
                "a log signed two trees of one size",
                note=self._as_signed(request.note),
                cosigned="" if newest is None else newest.note,
            )
            return Reply(HTTPStatus.CONFLICT, f"{known_size}\n", SIZE_TYPE)
        self._require_growth(request, checkpoint, known_root, newest)
        if newest is None or checkpoint.size > known_size:
            self._keep(Cosigned(checkpoint, self._as_signed(request.note)))
        text = request.note.rpartition("\n\n")[0] + "\n"
        now = self._clock()
        return Reply(HTTPStatus.OK, "".join(cosigner.line(text, now) for cosigner in self._cosigners))

    def _require_growth(
        self, request: _Request, checkpoint: Checkpoint, known_root: bytes, newest: Cosigned | None
    ) -> None:
        if not request.old_size:
            if request.proof:
                raise _RefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, "a proof from nothing is empty")
            return
        try:
            verify_consistency(request.old_size, checkpoint.size, request.proof, known_root, checkpoint.root)
        except VerificationError as error:
            # The proof is whoever's who asks: a stranger's mistake, or a log that has two histories.
            log.warning(
                "a signed checkpoint came without a proof that holds",
                problem=error.message,
                note=self._as_signed(request.note),
                cosigned="" if newest is None else newest.note,
            )
            raise _RefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, error.message) from None

    def _keep(self, cosigned: Cosigned) -> None:
        try:
            self._state.keep(cosigned)
        except UnavailableError as error:
            log.warning("a checkpoint was not cosigned", problem=error.message)
            raise _RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "the witness cannot remember it") from None

    def _as_signed(self, note: str) -> str:
        """A verified note with the log's own signatures and no others, of which a stranger may send any number."""
        text, _, tail = note.rpartition("\n\n")
        known = {(verifier.name, verifier.key_id) for verifier in self._logs[note.partition("\n")[0]]}
        own = [line for line in tail.splitlines(keepends=True) if _signer_of(line) in known]
        return f"{text}\n\n{''.join(own)}"


def _signer_of(line: str) -> tuple[str, bytes]:
    """The name and key id of a signature's line that was read before."""
    name, _, encoded = line.removesuffix("\n").removeprefix(SIGNATURE_MARK).partition(" ")
    return name, decode_base64(encoded, "a signature")[:KEY_ID_BYTES]


def _parse(body: bytes) -> _Request:
    """Reads a request strictly."""
    try:
        head, separator, note = body.decode().partition("\n\n")
    except UnicodeDecodeError:
        raise _RefusedError(HTTPStatus.BAD_REQUEST, "the request is not text") from None
    first, *lines = head.split("\n")
    if not separator or not first.startswith(_OLD) or len(lines) > MAX_PROOF_HASHES:
        raise _RefusedError(
            HTTPStatus.BAD_REQUEST,
            f"a request is `old <size>`, at most {MAX_PROOF_HASHES} hashes, an empty line and a checkpoint",
        )
    try:
        old_size = parse_decimal(first.removeprefix(_OLD), "the old size")
        return _Request(old_size, [decode_base64(line, "the proof") for line in lines], note)
    except VerificationError as error:
        raise _RefusedError(HTTPStatus.BAD_REQUEST, error.message) from None
