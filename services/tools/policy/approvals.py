"""Calls that wait for a person: bound to exactly one call, decided once, used once, gone in time.

What a store keeps outlives the process; without one a restart forgets them, and the call has to be asked for again.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, Protocol

from kala.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
)
from services.common.page_tokens import page_size_of
from services.tools.files.model import Owner, Reference
from services.tools.pages import PageTokens
from services.tools.policy.model import ApprovalRule, Approver, Risk

# Decided, used and expired ones are kept so long, for lists.
KEPT_SECONDS: Final = 24 * 3600.0
# All of them, with their arguments, in this process's memory.
MAX_APPROVALS: Final = 10_000
MAX_HELD_BYTES: Final = 64 * 1024 * 1024
# Of one principal, undecided or approved and not used yet: nobody reads more, and nobody may crowd out the others.
MAX_PENDING_OF_ONE: Final = 100
MAX_HELD_BYTES_OF_ONE: Final = 8 * 1024 * 1024
MAX_COMMENT_CHARS: Final = 1_024
# Of stdin and of what a write would write: enough for a person; what is left out is said.
MAX_SHOWN_BYTES: Final = 64 * 1024
DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1_000
_PREFIX: Final = "approvals/"
_KEY: Final = struct.Struct(">Q")


class ApprovalState(Enum):
    """Where an approval stands; the names are the contract's."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    EXPIRED = "expired"
    USED = "used"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A call that needs approval, as its person will see it."""

    owner: Owner
    tool: str
    arguments_json: str
    # "workspaces/<workspace>"; empty for a throw-away one.
    workspace: str
    risk: Risk
    # The rule in words.
    reason: str
    call_digest: bytes
    # What it gets beside its arguments; of stdin the beginning.
    stdin: bytes = b""
    stdin_bytes: int = 0
    files: tuple[Reference, ...] = ()


@dataclass(frozen=True, slots=True)
class Approval:
    """A call that waits for a person, or did; moments in Unix seconds."""

    name: str
    state: ApprovalState
    call: Wanted
    approver: Approver
    created_at: float
    expires_at: float
    decided_by: str = ""
    comment: str = ""
    decided_at: float | None = None
    # Its place in the order of arrival.
    number: int = 0


@dataclass(frozen=True, slots=True)
class ApprovalPage:
    """A page of a list, the newest first; the token is empty on the last."""

    approvals: tuple[Approval, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class Person:
    """Who looks at approvals or decides one."""

    owner: Owner
    # Holds the scope `admin`.
    is_admin: bool = False


def call_digest(
    *, tool: str, workspace: str, arguments: bytes, stdin: bytes = b"", files: Iterable[Reference] = ()
) -> bytes:
    """What binds an approval to one call, as the contract defines it; `files` are in the call's order."""
    digest = hashlib.sha256(tool.encode() + b"\0" + workspace.encode() + b"\0")
    digest.update(hashlib.sha256(arguments).digest() + hashlib.sha256(stdin).digest())
    for file in files:
        digest.update(hashlib.sha256(file.path.encode()).digest() + file.sha256)
    return digest.digest()


class ApprovalStore(Protocol):
    """Where approvals outlive the process."""

    def load(self) -> Sequence[Approval]:
        """Give all that were kept, in the order of arrival."""
        ...

    def keep(self, approval: Approval) -> None:
        """Make one durable, new or changed, or raise UnavailableError and change nothing."""
        ...

    def drop(self, name: str) -> None:
        """Take one away for good."""
        ...


class ApprovalBook:
    """The approvals of one replica."""

    def __init__(
        self,
        *,
        replica: str,
        rule: ApprovalRule,
        tokens: PageTokens,
        clock: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: secrets.token_hex(16),
        max_approvals: int = MAX_APPROVALS,
        max_held_bytes: int = MAX_HELD_BYTES,
        max_held_bytes_of_one: int = MAX_HELD_BYTES_OF_ONE,
        store: ApprovalStore | None = None,
    ) -> None:
        """Begin with what the store kept, but for what was asked under another rule of who decides."""
        self._replica = replica
        self._rule = rule
        self._tokens = tokens
        self._clock = clock
        self._new_id = new_id
        self._max_approvals = max_approvals
        self._max_held_bytes = max_held_bytes
        self._max_held_bytes_of_one = max_held_bytes_of_one
        # By name, in the order of arrival.
        self._book: dict[str, Approval] = {}
        self._held_bytes = 0
        self._last_number = 0
        self._store = store
        for approval in () if store is None else store.load():
            self._book[approval.name] = approval
            self._held_bytes += _held(approval.call)
            self._last_number = max(self._last_number, approval.number)
            if approval.approver is not rule.approver and approval.state in _LIVE:
                self._drop(approval)

    def request(self, wanted: Wanted) -> Approval:
        """Ask for a person. The same call of the same principal that waits already is given again.

        Raises ResourceExhaustedError when the principal has too many waiting, or the book is full of waiting ones.
        """
        self._sweep()
        waiting = [item for item in self._live() if item.call.owner.is_same(wanted.owner)]
        for item in waiting:
            is_same_call = item.call.call_digest == wanted.call_digest and item.call.owner == wanted.owner
            if is_same_call and item.state is ApprovalState.PENDING:
                return item
        held = sum(_held(item.call) for item in waiting)
        if len(waiting) >= MAX_PENDING_OF_ONE or (
            waiting and held + _held(wanted) > self._max_held_bytes_of_one
        ):
            raise ResourceExhaustedError(
                f"{len(waiting)} of your calls, {held} bytes of them, wait for approval or to be sent again; "
                "decide some of them first, or send those that are approved",
                reason="TOO_MANY_APPROVALS",
                retry_after_seconds=self._rule.wait_seconds,
            )
        self._make_room(_held(wanted))
        now = self._clock()
        self._last_number += 1
        approval = Approval(
            name=f"{_PREFIX}{self._replica}.{self._new_id()}",
            state=ApprovalState.PENDING,
            call=wanted,
            approver=self._rule.approver,
            created_at=now,
            expires_at=now + self._rule.wait_seconds,
            number=self._last_number,
        )
        self._put(approval)
        self._held_bytes += _held(wanted)
        return approval

    def decide(self, name: str, person: Person, *, approve: bool, comment: str = "") -> Approval:
        """Let a person decide. An approved call has again as long to be used as it had to be decided.

        Raises NotFoundError for one that the person may not see, PermissionDeniedError when somebody else must decide,
        FailedPreconditionError when it is no longer pending, InvalidArgumentError for a comment that is too long.
        """
        if len(comment) > MAX_COMMENT_CHARS:
            raise InvalidArgumentError("comment", f"must have at most {MAX_COMMENT_CHARS} characters")
        self._sweep()
        approval = self._visible(name, person)
        if not _may_decide(approval, person):
            raise PermissionDeniedError(
                f"{name}: the policy wants {_DECIDERS[approval.approver]} to decide", reason="WRONG_APPROVER"
            )
        if approval.state is not ApprovalState.PENDING:
            raise FailedPreconditionError(
                f"{name}: is {approval.state.value} already", reason="APPROVAL_NOT_PENDING"
            )
        now = self._clock()
        return self._put(
            replace(
                approval,
                state=ApprovalState.APPROVED if approve else ApprovalState.DENIED,
                decided_by=person.owner.principal,
                comment=comment,
                decided_at=now,
                expires_at=now + self._rule.wait_seconds if approve else approval.expires_at,
            )
        )

    def use(self, name: str, owner: Owner, digest: bytes) -> Approval:
        """Spend an approval on the call that it was given for; from then on it is used, whatever becomes of the call.

        Raises NotFoundError for one that is not the owner's, FailedPreconditionError when it is not approved or was given
        for another call: that one does not spend it.
        """
        self._sweep()
        approval = self._book.get(name)
        if approval is None or not approval.call.owner.is_same(owner):
            raise _unknown(name)
        if approval.call.call_digest != digest:
            raise FailedPreconditionError(
                f"{name}: was given for another call; send exactly the call that was approved",
                reason="APPROVAL_FOR_ANOTHER_CALL",
            )
        if approval.state is not ApprovalState.APPROVED:
            raise FailedPreconditionError(
                f"{name}: is {approval.state.value}; {_CURES[approval.state]}", reason="APPROVAL_NOT_USABLE"
            )
        return self._put(replace(approval, state=ApprovalState.USED))

    def get(self, name: str, person: Person) -> Approval:
        """The approval as it stands; raises NotFoundError for one that the person may not see."""
        self._sweep()
        return self._visible(name, person)

    def page(
        self, person: Person, *, state: ApprovalState | None = None, page_size: int = 0, page_token: str = ""
    ) -> ApprovalPage:
        """What the person may see, the newest first; raises InvalidArgumentError for a bad size or token."""
        self._sweep()
        size = page_size_of(page_size, default=DEFAULT_PAGE, most=MAX_PAGE)
        question = "\0".join(
            ("approvals", person.owner.tenant, person.owner.principal, state.value if state else "")
        )
        after = self._tokens.after(question, page_token)
        before = _KEY.unpack(after)[0] if after is not None else self._last_number + 1
        found = [
            item
            for item in reversed(self._book.values())
            if item.number < before and _may_see(item, person) and (state is None or item.state is state)
        ]
        shown = found[:size]
        more = len(found) > size
        token = self._tokens.make(question, _KEY.pack(shown[-1].number)) if more else ""
        return ApprovalPage(tuple(shown), token)

    def erase(self, tenant: str, subject: str) -> Sequence[Approval]:
        """Forget every approval of a person and give what was forgotten."""
        gone = [
            item
            for item in self._book.values()
            if subject and item.call.owner.tenant == tenant and item.call.owner.subject == subject
        ]
        for item in gone:
            self._drop(item)
        return gone

    def __len__(self) -> int:
        return len(self._book)

    def _visible(self, name: str, person: Person) -> Approval:
        approval = self._book.get(name)
        if approval is None or not _may_see(approval, person):
            raise _unknown(name)
        return approval

    def _live(self) -> Iterator[Approval]:
        return (item for item in self._book.values() if item.state in _LIVE)

    def _put(self, approval: Approval) -> Approval:
        if self._store is not None:
            # First: what a caller is told must outlive the process, and above all that an approval is spent.
            self._store.keep(approval)
        self._book[approval.name] = approval
        return approval

    def _drop(self, approval: Approval) -> None:
        if self._store is not None:
            self._store.drop(approval.name)
        del self._book[approval.name]
        self._held_bytes -= _held(approval.call)

    def _sweep(self) -> None:
        now = self._clock()
        for item in list(self._book.values()):
            if item.state in _LIVE and item.expires_at <= now:
                # Not kept: its time says so, too.
                self._book[item.name] = replace(item, state=ApprovalState.EXPIRED)
            if item.expires_at + KEPT_SECONDS <= now:
                self._drop(item)

    def _make_room(self, wanted_bytes: int) -> None:
        finished = (item for item in list(self._book.values()) if item.state not in _LIVE)
        while (
            len(self._book) >= self._max_approvals or self._held_bytes + wanted_bytes > self._max_held_bytes
        ):
            oldest = next(finished, None)
            if oldest is None:
                raise ResourceExhaustedError(
                    "too many calls wait for approval; decide some of them first",
                    reason="TOO_MANY_APPROVALS",
                    retry_after_seconds=self._rule.wait_seconds,
                )
            self._drop(oldest)


_LIVE: Final = frozenset({ApprovalState.PENDING, ApprovalState.APPROVED})
_DECIDERS: Final = {
    Approver.OWNER: "the principal that made the call",
    Approver.OTHER: "another person of the tenant",
    Approver.ADMIN: "a holder of the scope admin",
}
_CURES: Final = {
    ApprovalState.PENDING: "wait until it is decided",
    ApprovalState.DENIED: "it stays denied, a new call asks anew",
    ApprovalState.EXPIRED: "send the call without it to ask anew",
    ApprovalState.USED: "send the call without it to ask anew",
}


def _may_decide(approval: Approval, person: Person) -> bool:
    owner = approval.call.owner
    if approval.approver is Approver.ADMIN:
        return person.is_admin
    if approval.approver is Approver.OWNER:
        return owner.is_same(person.owner)
    same_person = bool(owner.subject) and owner.subject == person.owner.subject
    return owner.tenant == person.owner.tenant and not owner.is_same(person.owner) and not same_person


def _may_see(approval: Approval, person: Person) -> bool:
    return approval.call.owner.is_same(person.owner) or _may_decide(approval, person)


def _held(wanted: Wanted) -> int:
    named = sum(len(file.path.encode()) + len(file.sha256) for file in wanted.files)
    return len(wanted.arguments_json.encode()) + len(wanted.stdin) + named


def _unknown(name: str) -> NotFoundError:
    return NotFoundError(f"{name}: there is no such approval of yours; it may have been too long ago")
