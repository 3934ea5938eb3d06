"""Approvals outlive the process, and what they allow grows by no restart, damage or full disk."""

from __future__ import annotations

import errno
import json
import os
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from kala.errors import FailedPreconditionError, NotFoundError, UnavailableError
from services.tools.files.model import Owner, Reference
from services.tools.pages import PageTokens
from services.tools.policy.approval_files import ApprovalFiles
from services.tools.policy.approvals import (
    KEPT_SECONDS,
    Approval,
    ApprovalBook,
    ApprovalState,
    Person,
    Wanted,
)
from services.tools.policy.model import ApprovalRule, Approver, Risk

WAIT = 600.0
ANNA = Owner("acme", "keys/anna", "a" * 64)
FILES = (Reference("a.txt", b"\x01" * 32, 5),)
CALL = Wanted(
    ANNA, "shell", '{"command":"rm x"}', "workspaces/w", Risk.HIGH, "because", b"d" * 32, b"\xff in", 4, FILES
)
_ids = count(1)


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def started(directory: Path, clock: Clock, approver: Approver = Approver.OWNER) -> ApprovalBook:
    """The book of a service that starts, again or for the first time."""
    return ApprovalBook(
        replica="r1",
        rule=ApprovalRule(Risk.HIGH, Risk.MEDIUM, approver, WAIT),
        tokens=PageTokens(key=b"k" * 32, now=clock),
        clock=clock,
        new_id=lambda: f"{next(_ids):032x}",
        store=ApprovalFiles.open(directory),
    )


def decided(book: ApprovalBook, name: str, *, approve: bool = True) -> Approval:
    return book.decide(name, Person(ANNA), approve=approve, comment="go on")


def state_of(book: ApprovalBook, name: str) -> ApprovalState:
    return book.get(name, Person(ANNA)).state


def test_a_call_that_waits_is_decided_and_used_after_restarts(tmp_path: Path, clock: Clock) -> None:
    waiting = started(tmp_path, clock).request(CALL)
    again = started(tmp_path, clock)
    assert again.get(waiting.name, Person(ANNA)) == waiting
    assert again.request(CALL) == waiting
    approved = decided(again, waiting.name)
    last = started(tmp_path, clock)
    assert last.get(waiting.name, Person(ANNA)) == approved
    assert last.use(waiting.name, ANNA, CALL.call_digest).state is ApprovalState.USED


def test_a_restart_spends_no_approval_anew(tmp_path: Path, clock: Clock) -> None:
    book = started(tmp_path, clock)
    used, denied = book.request(CALL), book.request(_other(b"e"))
    decided(book, used.name)
    decided(book, denied.name, approve=False)
    book.use(used.name, ANNA, CALL.call_digest)
    again = started(tmp_path, clock)
    for name, digest, says in ((used.name, b"d", "is used"), (denied.name, b"e", "is denied")):
        with pytest.raises(FailedPreconditionError, match=says):
            again.use(name, ANNA, digest * 32)


def test_time_goes_on_while_the_service_is_away(tmp_path: Path, clock: Clock) -> None:
    name = started(tmp_path, clock).request(CALL).name
    clock.now += WAIT
    assert state_of(started(tmp_path, clock), name) is ApprovalState.EXPIRED
    clock.now += KEPT_SECONDS
    book = started(tmp_path, clock)
    with pytest.raises(NotFoundError):
        book.get(name, Person(ANNA))
    assert list(tmp_path.iterdir()) == []


def test_the_order_of_arrival_goes_on(tmp_path: Path, clock: Clock) -> None:
    first = started(tmp_path, clock).request(CALL)
    book = started(tmp_path, clock)
    second = book.request(_other(b"e"))
    assert [each.name for each in book.page(Person(ANNA)).approvals] == [second.name, first.name]


def test_a_call_that_waited_under_another_rule_has_to_be_asked_for_again(
    tmp_path: Path, clock: Clock
) -> None:
    book = started(tmp_path, clock)
    name = book.request(CALL).name
    decided(book, name)
    stricter = started(tmp_path, clock, Approver.ADMIN)
    with pytest.raises(NotFoundError):
        stricter.use(name, ANNA, CALL.call_digest)
    assert len(started(tmp_path, clock)) == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:-9],
        lambda raw: raw.replace(b'"version": 1', b'"version": 2'),
        lambda raw: raw.replace(b'"pending"', b'"granted"'),
        lambda raw: raw.replace(b'"number"', b'"nombre"'),
        lambda raw: b"[" * 100_000,
    ],
    ids=["empty", "cut", "another version", "no state", "no field", "deep"],
)
def test_what_cannot_be_read_is_no_approval(damage: Any, tmp_path: Path, clock: Clock) -> None:
    book = started(tmp_path, clock)
    name, other = book.request(CALL).name, book.request(_other(b"e")).name
    decided(book, other)
    path = tmp_path / f"{name.rpartition('.')[2]}.json"
    path.write_bytes(damage(path.read_bytes()))
    again = started(tmp_path, clock)
    with pytest.raises(NotFoundError):
        again.get(name, Person(ANNA))
    assert state_of(again, other) is ApprovalState.APPROVED
    assert not path.exists()


def test_a_file_under_another_name_is_no_second_approval(tmp_path: Path, clock: Clock) -> None:
    name = started(tmp_path, clock).request(CALL).name
    path = tmp_path / f"{name.rpartition('.')[2]}.json"
    (tmp_path / f"{'f' * 32}.json").write_bytes(path.read_bytes())
    (tmp_path / f"{'e' * 32}.json").symlink_to(path)
    (tmp_path / f"{'d' * 32}.new").write_bytes(path.read_bytes())
    assert len(started(tmp_path, clock)) == 1
    assert [left.name for left in tmp_path.iterdir()] == [path.name]


def test_where_nothing_can_be_kept_nothing_is_granted_or_used(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = started(tmp_path, clock)
    waiting, ready = book.request(CALL).name, book.request(_other(b"e")).name
    decided(book, ready)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        for act in (
            lambda: book.request(_other(b"f")),
            lambda: decided(book, waiting),
            lambda: book.use(ready, ANNA, b"e" * 32),
        ):
            with pytest.raises(UnavailableError, match="No space left on device"):
                act()
        assert (state_of(book, waiting), state_of(book, ready), len(book)) == (
            ApprovalState.PENDING,
            ApprovalState.APPROVED,
            2,
        )
    again = started(tmp_path, clock)
    assert (state_of(again, waiting), state_of(again, ready), len(again)) == (
        ApprovalState.PENDING,
        ApprovalState.APPROVED,
        2,
    )


def test_an_erased_person_is_in_no_file(tmp_path: Path, clock: Clock) -> None:
    book = started(tmp_path, clock)
    book.request(CALL)
    assert len(book.erase("acme", ANNA.subject)) == 1
    assert list(tmp_path.iterdir()) == []


def test_only_its_owner_may_read_a_file(tmp_path: Path, clock: Clock) -> None:
    started(tmp_path / "approvals", clock).request(CALL)
    (path,) = (tmp_path / "approvals").iterdir()
    assert (path.parent.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    assert json.loads(path.read_bytes())["call"]["tool"] == "shell"


def _other(letter: bytes) -> Wanted:
    return Wanted(ANNA, "shell", "{}", "", Risk.HIGH, "because", letter * 32)
