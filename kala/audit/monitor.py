"""One look at a log that somebody follows: it only grew, and enough witnesses saw the same log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kala.audit.checkpoint import Checkpoint, open_checkpoint
from kala.audit.compare import LogView, Relation, compare
from kala.audit.cosignature import Witness, cosignatures
from kala.audit.mirror import open_pinned
from kala.audit.note import Verifier
from kala.audit.report import TamperedError, UnverifiableError
from kala.errors import VerificationError

_PLACE = "the log"


@dataclass(frozen=True, slots=True)
class Policy:
    """Whom a follower trusts, and what it demands."""

    trusted: Sequence[Verifier]
    witnesses: Sequence[Witness] = ()
    required: int = 0
    """How many of the witnesses must have cosigned."""
    max_age_seconds: float | None = None
    """How long ago the newest of the required cosignatures may have been made; a checkpoint itself has no time."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What one look showed and proved."""

    checkpoint: Checkpoint
    note: str
    relation: Relation
    """To the checkpoint of the look before; SAME at the first look."""
    cosigned: Sequence[str]
    """The names of the witnesses that cosigned it."""


class HistoryError(TamperedError):
    """The log shows another history than before; `note` is the checkpoint that it shows now.

    With `is_proof` it and the one from before prove that the log signed two; without, what it gives leads to neither.
    """

    def __init__(
        self, first_bad_index: int | None, problem: str, note: str, *, is_proof: bool = True
    ) -> None:
        super().__init__(first_bad_index, problem, place=_PLACE)
        self.note = note
        self.is_proof = is_proof


def look(view: LogView, policy: Policy, before: str | None, *, now: float) -> Sight:
    """Looks once. `before` is the note that was kept from the last look, `now` the seconds since 1970.

    `TamperedError`: the log was forked or cut, which is a `HistoryError`, or bears a false signature. `UnverifiableError`: it cannot be seen, too
    few witnesses cosigned it, or too long ago.
    """
    if not policy.trusted:
        raise UnverifiableError("a log is followed with its public key: none was given")
    known = None if before is None else open_pinned(before, policy.trusted)
    note = view.newest()
    try:
        if note.partition("\n")[0] not in {verifier.name for verifier in policy.trusted}:
            # A page of a proxy in between, or another log's: no word of this one, true or false.
            raise UnverifiableError("what is shown is no checkpoint of a log whose key was given")
        checkpoint = open_checkpoint(note, policy.trusted)
        times = cosignatures(note, policy.witnesses)
    except VerificationError as error:
        raise TamperedError(None, error.message, place="the checkpoint") from error
    relation = Relation.SAME if known is None else _follow(known, checkpoint, view, note, policy)
    newest: dict[str, int] = {}
    for witness, made in times.items():
        # A witness with two keys is still one witness.
        newest[witness.name] = max(made, newest.get(witness.name, 0))
    _require_witnesses(sorted(newest.values(), reverse=True), policy, now)
    return Sight(checkpoint, note, relation, sorted(newest))


def _follow(known: Checkpoint, shown: Checkpoint, view: LogView, note: str, policy: Policy) -> Relation:
    if shown.size < known.size:
        problem = f"it shows {shown.size} entries and showed {known.size} before: cut, or an old copy"
        raise HistoryError(shown.size, problem, note)
    try:
        relation = compare(known, shown, view, policy.trusted).relation
    except TamperedError as error:
        problem = f"nothing that it gives leads from the {known.size} entries seen before to the {shown.size} that it shows"
        raise HistoryError(None, problem, note, is_proof=False) from error
    if relation is Relation.FORKED:
        problem = (
            f"its {shown.size} entries do not continue the {known.size} that were seen before: it was forked"
        )
        raise HistoryError(None, problem, note)
    return relation


def _require_witnesses(times: Sequence[int], policy: Policy, now: float) -> None:
    if len(times) < policy.required:
        raise UnverifiableError(
            f"{len(times)} of {policy.required} required witnesses cosigned the checkpoint"
        )
    if policy.max_age_seconds is None:
        return
    counted = times[: max(policy.required, 1)]
    if not counted or now - counted[-1] > policy.max_age_seconds:
        age = "never" if not counted else f"{now - counted[-1]:.0f} s ago"
        raise UnverifiableError(
            f"witnesses cosigned the checkpoint {age}, longer than {policy.max_age_seconds:.0f} s: it may be stale"
        )
