"""A call that waits for a person runs once, as it was shown, when the right person said so in time, and never otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

import pytest

from kala.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    KalaError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
)
from services.tools.files.model import Owner, Reference
from services.tools.pages import PageTokens
from services.tools.policy.approvals import (
    KEPT_SECONDS,
    MAX_PENDING_OF_ONE,
    Approval,
    ApprovalBook,
    ApprovalState,
    Person,
    Wanted,
    call_digest,
)
from services.tools.policy.model import ApprovalRule, Approver, Risk

WAIT = 600.0
ANNA = Owner("acme", "keys/anna", "a" * 64)
BEN = Owner("acme", "keys/ben", "b" * 64)
EVE = Owner("evil", "keys/eve", "e" * 64)
ADMIN = Person(Owner("root", "keys/admin"), is_admin=True)
CALL = Wanted(ANNA, "shell", '{"command":"rm x"}', "workspaces/w", Risk.HIGH, "because", b"d" * 32)


@dataclass
class Time:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def book(approver: Approver = Approver.OWNER, time: Time | None = None, **limits: int) -> ApprovalBook:
    clock = time or Time()
    ids: Iterator[int] = count(1)
    return ApprovalBook(
        replica="r1",
        rule=ApprovalRule(Risk.HIGH, Risk.MEDIUM, approver, WAIT),
        tokens=PageTokens(key=b"k" * 32, now=clock),
        clock=clock,
        new_id=lambda: f"{next(ids):032x}",
        **limits,
    )


def test_an_approved_call_is_used_once() -> None:
    approvals = book()
    waiting = approvals.request(CALL)
    assert waiting.name == f"approvals/r1.{1:032x}"
    assert waiting.state is ApprovalState.PENDING
    decided = approvals.decide(waiting.name, Person(ANNA), approve=True, comment="go on")
    assert (decided.state, decided.decided_by, decided.comment) == (
        ApprovalState.APPROVED,
        "keys/anna",
        "go on",
    )
    assert approvals.use(waiting.name, ANNA, CALL.call_digest).state is ApprovalState.USED
    with pytest.raises(FailedPreconditionError, match="is used; send the call without it"):
        approvals.use(waiting.name, ANNA, CALL.call_digest)


def test_another_call_does_not_spend_it() -> None:
    approvals = book()
    name = approvals.request(CALL).name
    approvals.decide(name, Person(ANNA), approve=True)
    with pytest.raises(FailedPreconditionError, match="was given for another call"):
        approvals.use(name, ANNA, b"x" * 32)
    approvals.use(name, ANNA, CALL.call_digest)


def test_neither_a_waiting_nor_a_denied_one_can_be_used() -> None:
    approvals = book()
    name = approvals.request(CALL).name
    with pytest.raises(FailedPreconditionError, match="is pending; wait"):
        approvals.use(name, ANNA, CALL.call_digest)
    approvals.decide(name, Person(ANNA), approve=False)
    with pytest.raises(FailedPreconditionError, match="is denied; it stays denied"):
        approvals.use(name, ANNA, CALL.call_digest)
    with pytest.raises(FailedPreconditionError, match="is denied already"):
        approvals.decide(name, Person(ANNA), approve=True)


@pytest.mark.parametrize("owner", [BEN, EVE, replace(ANNA, tenant="other")])
def test_only_the_owner_of_the_call_uses_it(owner: Owner) -> None:
    approvals = book()
    name = approvals.request(CALL).name
    approvals.decide(name, Person(ANNA), approve=True)
    with pytest.raises(NotFoundError):
        approvals.use(name, owner, CALL.call_digest)


@pytest.mark.parametrize("name", ["", "approvals/r1.x", "approvals/r2." + "0" * 32])
def test_an_unknown_one_is_not_found(name: str) -> None:
    with pytest.raises(NotFoundError, match="too long ago"):
        book().use(name, ANNA, CALL.call_digest)


@pytest.mark.parametrize(
    ("approver", "person", "outcome"),
    [
        (Approver.OWNER, Person(ANNA), None),
        (Approver.OWNER, Person(BEN), NotFoundError),
        (Approver.OWNER, ADMIN, NotFoundError),
        (Approver.OTHER, Person(ANNA), PermissionDeniedError),
        (Approver.OTHER, Person(BEN), None),
        (Approver.OTHER, Person(replace(BEN, subject=ANNA.subject)), NotFoundError),
        (Approver.OTHER, Person(EVE), NotFoundError),
        (Approver.OTHER, ADMIN, NotFoundError),
        (Approver.ADMIN, Person(ANNA), PermissionDeniedError),
        (Approver.ADMIN, Person(BEN), NotFoundError),
        (Approver.ADMIN, ADMIN, None),
    ],
)
def test_only_whom_the_policy_names_decides(
    approver: Approver, person: Person, outcome: type[KalaError] | None
) -> None:
    approvals = book(approver)
    name = approvals.request(CALL).name
    if outcome is None:
        assert approvals.decide(name, person, approve=True).state is ApprovalState.APPROVED
        return
    with pytest.raises(outcome):
        approvals.decide(name, person, approve=True)
    assert approvals.get(name, Person(ANNA)).state is ApprovalState.PENDING


def test_one_that_nobody_decides_expires() -> None:
    time = Time()
    approvals = book(time=time)
    name = approvals.request(CALL).name
    time.now += WAIT
    with pytest.raises(FailedPreconditionError, match="is expired already"):
        approvals.decide(name, Person(ANNA), approve=True)
    time.now += KEPT_SECONDS
    with pytest.raises(NotFoundError):
        approvals.get(name, Person(ANNA))


def test_an_approved_one_that_nobody_uses_expires_too() -> None:
    time = Time()
    approvals = book(time=time)
    name = approvals.request(CALL).name
    time.now += WAIT - 1
    assert approvals.decide(name, Person(ANNA), approve=True).expires_at == time.now + WAIT
    time.now += WAIT
    with pytest.raises(FailedPreconditionError, match="is expired"):
        approvals.use(name, ANNA, CALL.call_digest)


def test_the_same_call_waits_only_once() -> None:
    approvals = book()
    first = approvals.request(CALL)
    assert approvals.request(CALL) == first
    assert approvals.request(replace(CALL, call_digest=b"e" * 32)) != first
    assert approvals.request(replace(CALL, owner=BEN)) != first
    approvals.decide(first.name, Person(ANNA), approve=False)
    assert approvals.request(CALL).name != first.name


def test_nobody_crowds_out_the_others() -> None:
    approvals = book()
    for number in range(MAX_PENDING_OF_ONE):
        approvals.request(replace(CALL, call_digest=number.to_bytes(32)))
    with pytest.raises(ResourceExhaustedError, match="decide some of them first"):
        approvals.request(CALL)
    approvals.request(replace(CALL, owner=BEN))


def test_nobody_crowds_out_the_others_by_large_calls() -> None:
    """64 calls of 1 MiB by one principal filled the book for everybody."""
    approvals = book(max_held_bytes=1_000, max_held_bytes_of_one=400)
    large = replace(CALL, arguments_json="x" * 300)
    approvals.request(large)
    with pytest.raises(ResourceExhaustedError, match="300 bytes of them"):
        approvals.request(replace(large, call_digest=b"e" * 32))
    approvals.request(replace(large, owner=BEN))


def test_nobody_crowds_out_the_others_by_calls_that_are_approved_and_never_sent() -> None:
    approvals = book()
    for number in range(MAX_PENDING_OF_ONE):
        name = approvals.request(replace(CALL, call_digest=number.to_bytes(32))).name
        approvals.decide(name, Person(ANNA), approve=True)
    with pytest.raises(ResourceExhaustedError, match="send those that are approved"):
        approvals.request(CALL)


def test_a_call_that_is_larger_than_its_share_waits_alone() -> None:
    approvals = book(max_held_bytes=1_000, max_held_bytes_of_one=400)
    approvals.request(replace(CALL, arguments_json="x" * 600))
    with pytest.raises(ResourceExhaustedError):
        approvals.request(replace(CALL, call_digest=b"e" * 32))


def test_a_full_book_forgets_what_is_over_but_nothing_that_waits() -> None:
    approvals = book(max_approvals=2)
    over = approvals.request(CALL)
    approvals.decide(over.name, Person(ANNA), approve=False)
    waiting = approvals.request(replace(CALL, owner=BEN))
    approvals.request(replace(CALL, call_digest=b"f" * 32))
    with pytest.raises(NotFoundError):
        approvals.get(over.name, Person(ANNA))
    with pytest.raises(ResourceExhaustedError):
        approvals.request(replace(CALL, call_digest=b"g" * 32))
    assert approvals.get(waiting.name, Person(BEN)).state is ApprovalState.PENDING


def test_the_arguments_that_are_kept_are_bounded_together() -> None:
    approvals = book(max_held_bytes=1_000)
    big = replace(CALL, arguments_json="x" * 600)
    name = approvals.request(big).name
    with pytest.raises(ResourceExhaustedError):
        approvals.request(replace(big, call_digest=b"h" * 32))
    assert len(approvals.erase(ANNA.tenant, ANNA.subject)) == 1
    assert approvals.request(replace(big, call_digest=b"h" * 32)).name != name


def test_lists_show_the_newest_first_and_only_what_concerns_the_reader() -> None:
    approvals = book(Approver.OTHER)
    made = [approvals.request(replace(CALL, call_digest=number.to_bytes(32))) for number in range(5)]
    approvals.request(replace(CALL, owner=EVE))
    approvals.decide(made[1].name, Person(BEN), approve=True)

    def names(found: tuple[Approval, ...]) -> list[int]:
        return [item.number for item in found]

    first = approvals.page(Person(BEN), page_size=2)
    assert names(first.approvals) == [5, 4]
    second = approvals.page(Person(BEN), page_size=2, page_token=first.next_page_token)
    third = approvals.page(Person(BEN), page_size=2, page_token=second.next_page_token)
    assert names((*second.approvals, *third.approvals)) == [3, 2, 1]
    assert third.next_page_token == ""
    assert names(approvals.page(Person(ANNA), state=ApprovalState.APPROVED).approvals) == [2]
    assert names(approvals.page(Person(EVE)).approvals) == [6]
    with pytest.raises(InvalidArgumentError, match="belongs to another list"):
        approvals.page(Person(ANNA), page_size=2, page_token=first.next_page_token)


def test_erasing_a_person_takes_all_of_theirs_and_nothing_else() -> None:
    approvals = book()
    mine = approvals.request(CALL)
    approvals.request(replace(CALL, owner=BEN))
    assert approvals.erase("evil", ANNA.subject) == []
    assert approvals.erase(ANNA.tenant, "") == []
    assert [item.name for item in approvals.erase(ANNA.tenant, ANNA.subject)] == [mine.name]
    assert len(approvals) == 1


def test_a_comment_is_bounded() -> None:
    approvals = book()
    with pytest.raises(InvalidArgumentError, match="comment: must have at most 1024"):
        approvals.decide(approvals.request(CALL).name, Person(ANNA), approve=True, comment="x" * 1025)


def test_the_digest_of_a_call_is_what_the_contract_says() -> None:
    def sha256(data: bytes) -> bytes:
        return hashlib.sha256(data).digest()

    named = sha256(b"a") + b"1" * 32 + sha256(b"b") + b"2" * 32
    expected = sha256(b"shell\0workspaces/w\0" + sha256(b"{}") + sha256(b"in") + named)
    files = [Reference("a", b"1" * 32, 1), Reference("b", b"2" * 32, 1)]
    found = call_digest(tool="shell", workspace="workspaces/w", arguments=b"{}", stdin=b"in", files=files)
    assert found == expected


def test_files_that_change_their_names_make_another_call() -> None:
    """Whoever agreed to `rm list` beside `keep` did not agree to the same two files the other way round."""
    contents = (b"1" * 32, b"2" * 32)

    def digest(*names: str) -> bytes:
        files = [Reference(name, content, 1) for name, content in zip(names, contents, strict=True)]
        return call_digest(tool="shell", workspace="w", arguments=b"{}", files=files)

    assert digest("a", "b") != digest("b", "a")
