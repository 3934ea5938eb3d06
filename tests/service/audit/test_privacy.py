"""Erasure and holds: content goes, proofs stay, the certificate tells the truth, whatever stops in between."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest
from sqlalchemy import select

from kala.audit.erasure import verify_certificate
from kala.audit.receipt import verify_receipt
from kala.audit.v1 import audit_pb2
from kala.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    VerificationError,
)
from services.audit.once import key_of
from services.audit.privacy.store import PrivacyStore
from services.audit.storage.schema import PAYLOAD, SUBJECT_KEY
from services.common.status import translated
from tests.fakes.audit_privacy import (
    ALICE,
    BOB,
    TRUSTED,
    PrivateLog,
    ciphertexts,
    leaf_of,
    principal,
    private_log,
    spoken,
)


@pytest.fixture
async def log(log_database: str) -> AsyncIterator[PrivateLog]:
    async with private_log(log_database) as opened:
        yield opened


async def test_what_a_person_said_is_gone_and_what_others_said_is_there(log: PrivateLog) -> None:
    await log.append(spoken(0, ALICE), spoken(1, BOB), spoken(2, ALICE))
    erased = await log.erase(ALICE)
    assert ciphertexts(log) == {1: 2}
    assert {one.store: one.items for one in erased.stores} == {"audit.keys": 1, "audit.payloads": 4}
    assert list(log.reading.entry(0).payload_kinds) == []
    with log.store.engine.connect() as connection:
        rows = connection.execute(select(SUBJECT_KEY.c.subject, SUBJECT_KEY.c.wrapped)).all()
    wrapped = {row.subject: row.wrapped for row in rows}
    assert wrapped[ALICE] is None
    assert wrapped[BOB]


async def test_every_proof_from_before_an_erasure_still_verifies(log: PrivateLog) -> None:
    before = await log.append(*(spoken(number, ALICE) for number in range(5)))
    await log.erase(ALICE)
    for index, receipt in enumerate(before.receipts):
        assert verify_receipt(receipt.proof, TRUSTED).index == index
        assert verify_receipt(log.reading.entry(index).proof, TRUSTED).leaf.hash == receipt.leaf_hash
    assert log.reading.consistency(5, None)[1] == 7


async def test_the_certificate_is_signed_and_names_stores_and_entry(log: PrivateLog) -> None:
    await log.append(spoken(0, ALICE))
    erased = await log.erase(
        ALICE,
        elsewhere=[
            audit_pb2.ErasedStore(store="tools.workspaces", items=3),
            audit_pb2.ErasedStore(store="trainer.adapters", remaining=["adapters/a@1"]),
        ],
    )
    value = verify_certificate(erased.certificate, erased.signature, TRUSTED)
    assert value["subject"] == ALICE
    assert value["tenant"] == "default"
    assert value["covers_entries_below"] == 2
    assert value["stores"] == [
        {"store": "audit.keys", "items": 1, "remaining": []},
        {"store": "audit.payloads", "items": 2, "remaining": []},
        {"store": "tools.workspaces", "items": 3, "remaining": []},
        {"store": "trainer.adapters", "items": 0, "remaining": ["adapters/a@1"]},
    ]
    leaf = leaf_of(erased.receipt)
    assert (
        value["receipt"] == f"rcpt_{leaf['idempotency_key']}" == erased.receipt.name.removeprefix("receipts/")
    )
    assert leaf["type"] == "erasure.outcome"
    assert leaf["references"] == [
        {
            "name": f"certificates/{'72' * 16}",
            "sha256": sha256(erased.certificate).hexdigest(),
            "bytes": len(erased.certificate),
        }
    ]
    changed = erased.certificate.replace(b'"items":3', b'"items":9')
    with pytest.raises(VerificationError, match="another certificate"):
        verify_certificate(changed, erased.signature, TRUSTED)


async def test_intent_and_outcome_are_logged_with_who_and_why(log: PrivateLog) -> None:
    await log.append(spoken(0, ALICE))
    await log.erase(ALICE)
    intent, outcome = log.leaves()[1:]
    assert (intent["type"], outcome["type"]) == ("erasure.intent", "erasure.outcome")
    assert outcome["intent"] == intent["idempotency_key"]
    facts = dict(intent["attributes"])
    assert (facts["by"], facts["reason"]) == ("keys/dpo", "the person asked for it")
    assert (intent["tenant"], intent["subject_key_id"]) == ("default", ALICE)
    assert dict(outcome["attributes"])["items.audit.payloads"] == "2"


async def test_the_same_request_gives_the_same_certificate_and_erases_nothing_new(log: PrivateLog) -> None:
    await log.append(spoken(0, ALICE))
    first = await log.erase(ALICE)
    await log.append(spoken(1, ALICE))
    again = await log.erase(ALICE, elsewhere=[audit_pb2.ErasedStore(store="tools.runs", items=1)])
    assert (again.certificate, again.signature) == (first.certificate, first.signature)
    assert (again.receipt.index, again.receipt.created) == (first.receipt.index, False)
    assert ciphertexts(log) == {3: 2}
    another = await log.erase(ALICE, b"s" * 16)
    assert ciphertexts(log) == {}
    assert another.certificate != first.certificate


async def test_a_person_who_comes_back_gets_a_new_key(log: PrivateLog) -> None:
    await log.append(spoken(0, ALICE))
    await log.erase(ALICE)
    await log.append(spoken(1, ALICE))
    with log.store.engine.connect() as connection:
        keys = connection.execute(select(SUBJECT_KEY.c.key_id, SUBJECT_KEY.c.erased_at)).all()
    assert sorted(key.erased_at is None for key in keys) == [False, True]


async def test_a_writer_that_remembers_a_key_from_before_seals_nothing_with_it(log: PrivateLog) -> None:
    """Another replica destroyed the key: this one's writer never heard of it."""
    await log.append(spoken(0, ALICE))
    log.privacy_store.begin(b"r" * 16, ALICE, "default")
    log.privacy_store.destroy(b"r" * 16, [])
    await log.append(spoken(1, ALICE))
    with log.store.engine.connect() as connection:
        keys = connection.execute(
            select(SUBJECT_KEY.c.wrapped)
            .join(PAYLOAD, PAYLOAD.c.key_id == SUBJECT_KEY.c.key_id)
            .where(PAYLOAD.c.idx == 1)
        ).scalars()
        assert all(keys.all())
    assert log.reading.payload(1, "released")[1] == b"secret canary 1"


async def test_a_reader_of_old_pages_delays_the_certificate_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    async with private_log(str(path)) as log:
        await log.append(spoken(0, ALICE))
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM entry").fetchone()
            log.privacy_store.scrub_seconds = 0.0
            with pytest.raises(UnavailableError, match="same request_id") as caught:
                await log.erase(ALICE)
            assert caught.value.reason == "ERASURE_UNFINISHED"
            await log.append(spoken(1, BOB))
        assert ciphertexts(log) == {2: 2}
        assert (await log.erase(ALICE)).certificate


async def test_words_that_waited_in_a_spool_far_away_do_not_come_back(log: PrivateLog) -> None:
    """Another gateway was cut off: what Alice said before her erasure comes after it, and is logged without content."""
    await log.append(spoken(0, ALICE))
    log.now[0] += 60_000_000
    await log.erase(ALICE)
    log.now[0] += 60_000_000
    late, bob, fresh = spoken(1, ALICE), spoken(2, BOB), spoken(3, ALICE)
    fresh.occurred_at.FromMicroseconds(log.now[0])
    (receipt, *_) = (await log.append(late, bob, fresh)).receipts
    assert leaf_of(receipt)["commitments"] == []
    assert ciphertexts(log) == {4: 2, 5: 2}
    assert (await log.append(spoken(1, ALICE))).receipts[0].created is False


async def test_an_unfinished_erasure_drops_no_late_words(log: PrivateLog) -> None:
    """It may still be refused by a hold; the call that finishes it destroys them."""
    await log.append(spoken(0, ALICE))
    await log.erase(ALICE, awaited=["tools"])
    log.now[0] += 60_000_000
    await log.append(spoken(1, ALICE))
    assert ciphertexts(log) == {2: 2}
    await log.erase(ALICE)
    assert ciphertexts(log) == {}


async def test_a_legal_hold_forbids_erasure_and_is_named(log: PrivateLog) -> None:
    await log.append(spoken(0, ALICE))
    held = await log.hold(ALICE)
    assert leaf_of(held.receipt)["type"] == "hold.placed"
    with pytest.raises(FailedPreconditionError, match=held.hold) as refused:
        await log.erase(ALICE)
    assert refused.value.reason == "LEGAL_HOLD"
    assert ciphertexts(log) == {0: 2}
    released = await log.release(held.hold)
    assert leaf_of(released.receipt)["type"] == "hold.released"
    await log.erase(ALICE)
    assert ciphertexts(log) == {}


async def test_a_hold_is_released_once_and_every_hold_counts(log: PrivateLog) -> None:
    first, second = await log.hold(ALICE), await log.hold(ALICE)
    released = await log.release(first.hold)
    assert (await log.release(first.hold)).receipt.index == released.receipt.index
    with pytest.raises(FailedPreconditionError, match=second.hold):
        await log.erase(ALICE)


async def test_a_hold_that_comes_between_stops_an_unfinished_erasure(log: PrivateLog) -> None:
    await log.append(spoken(0, ALICE))
    await log.erase(ALICE, awaited=["tools"])
    await log.append(spoken(1, ALICE))
    await log.hold(ALICE)
    with pytest.raises(FailedPreconditionError, match="holds/"):
        await log.erase(ALICE, elsewhere=[audit_pb2.ErasedStore(store="tools.runs", items=1)])
    assert ciphertexts(log) == {2: 2}


async def test_no_certificate_is_given_while_a_part_is_awaited(log: PrivateLog) -> None:
    await log.append(spoken(0, ALICE))
    first = await log.erase(ALICE, awaited=["tools", "trainer"])
    assert (first.certificate, first.signature, first.HasField("receipt")) == (b"", "", False)
    assert ciphertexts(log) == {}
    assert log.open_intents() == [1]
    runs = [audit_pb2.ErasedStore(store="tools.runs", items=2)]
    await log.erase(ALICE, elsewhere=runs, awaited=["trainer"])
    last = await log.erase(ALICE, elsewhere=[audit_pb2.ErasedStore(store="trainer.rows", items=7)])
    counted = {one.store: one.items for one in last.stores}
    assert counted == {"audit.keys": 1, "audit.payloads": 2, "tools.runs": 2, "trainer.rows": 7}
    assert log.open_intents() == []


async def test_another_tenants_person_does_not_exist(log: PrivateLog) -> None:
    await log.append(spoken(0, ALICE, tenant="other"))
    for call in (log.erase(ALICE), log.hold(ALICE)):
        with pytest.raises(NotFoundError, match="in your tenant"):
            await call
    assert ciphertexts(log) == {0: 2}
    held = await log.hold(ALICE, tenant="other")
    with pytest.raises(NotFoundError):
        await log.release(held.hold)


async def test_a_request_id_is_not_shared(log: PrivateLog) -> None:
    await log.append(spoken(0, ALICE), spoken(1, BOB))
    await log.erase(ALICE, awaited=["tools"])
    with pytest.raises(AlreadyExistsError, match="another"):
        await log.erase(BOB)
    await log.erase(ALICE)
    with pytest.raises(AlreadyExistsError, match="another"):
        await log.erase(BOB)
    with pytest.raises(AlreadyExistsError, match="another"):
        await log.erase(ALICE, tenant="other")
    assert ciphertexts(log) == {1: 2}


async def test_two_calls_at_once_are_one_erasure(log: PrivateLog) -> None:
    await log.append(spoken(0, ALICE))
    first, second = await asyncio.gather(log.erase(ALICE), log.erase(ALICE))
    assert first.certificate == second.certificate
    assert first.receipt.index == second.receipt.index


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": "subjects/alice"}, "name"),
        ({"reason": "short"}, "reason"),
        ({"reason": " " * 20}, "reason"),
        ({"reason": "x" * 1025}, "reason"),
        ({"request_id": b"short"}, "request_id"),
        ({"elsewhere": [audit_pb2.ErasedStore(store="audit.payloads")]}, "elsewhere.store"),
        ({"elsewhere": [audit_pb2.ErasedStore(store="x", items=2**60)]}, "elsewhere.items"),
        ({"elsewhere": [audit_pb2.ErasedStore(store="x", remaining=[""])]}, "elsewhere.remaining"),
        ({"awaited": [""]}, "awaited"),
        ({"awaited": ["x"] * 33}, "awaited"),
    ],
)
async def test_a_malformed_request_names_its_field(
    log: PrivateLog, fields: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await log.erase(ALICE, **fields)  # type: ignore[arg-type] # fields of the message
    assert caught.value.field == field


async def test_only_who_may_erase_erases(log: PrivateLog) -> None:
    request = audit_pb2.EraseSubjectRequest(
        name=f"subjects/{ALICE}", reason="because I can", request_id=b"r" * 16
    )
    with pytest.raises(PermissionDeniedError, match=r"audit\.erase"), translated():
        await log.calls.EraseSubject(request, metadata=principal("default", 1))
    with pytest.raises(UnauthenticatedError), translated():
        await log.calls.EraseSubject(request)


STEPS = ("begin", "destroy", "empty_ciphertexts", "scrub", "seal", "finish")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_erasure_cut_at_any_step_is_finished_by_the_same_request(
    log: PrivateLog, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    """The process dies around one step; the next one, or another replica, goes on from what the database holds."""
    await log.append(spoken(0, ALICE), spoken(1, BOB))
    done = getattr(PrivacyStore, step)

    def dying(*args: object) -> object:
        if when == "after":
            done(*args)
        raise UnavailableError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(PrivacyStore, step, dying)
        with pytest.raises(UnavailableError):
            await log.erase(ALICE)
    erased = await log.erase(ALICE)
    assert {one.store: one.items for one in erased.stores} == {"audit.keys": 1, "audit.payloads": 2}
    assert ciphertexts(log) == {1: 2}
    value = verify_certificate(erased.certificate, erased.signature, TRUSTED)
    assert leaf_of(erased.receipt)["references"][0]["sha256"] == sha256(erased.certificate).hexdigest()  # type: ignore[index] # JSON
    assert value["covers_entries_below"] >= 2
    kinds = [leaf["type"] for leaf in log.leaves()]
    assert kinds.count("erasure.intent") == kinds.count("erasure.outcome") == 1


async def test_nothing_is_destroyed_that_could_not_be_logged_before(log: PrivateLog) -> None:
    await log.append(spoken(0, ALICE))
    await log.log.stop()
    with pytest.raises(UnavailableError):
        await log.erase(ALICE)
    assert ciphertexts(log) == {0: 2}


async def test_a_hold_that_could_not_be_logged_is_none(log: PrivateLog) -> None:
    await log.log.stop()
    with pytest.raises(UnavailableError):
        await log.hold(ALICE)
    log.privacy_store.require_free(ALICE)


async def test_a_hold_that_does_not_exist_is_not_released(log: PrivateLog) -> None:
    with pytest.raises(NotFoundError, match="there is no holds/"):
        await log.release(f"holds/{'0' * 32}")


@pytest.mark.parametrize("kind", ["erasure.intent", "erasure.outcome"])
async def test_an_entry_that_another_part_put_in_the_place_of_the_logs_own_stops_the_erasure(
    log: PrivateLog, kind: str
) -> None:
    """Whoever knows the request_id could log beforehand, under its key, that nothing was to be erased."""
    planted = spoken(0, BOB)
    planted.idempotency_key, planted.type = key_of(kind, b"r" * 16), kind
    await log.append(planted, spoken(1, ALICE))
    with pytest.raises(FailedPreconditionError, match="the log did not write it"):
        await log.erase(ALICE)
    assert (ciphertexts(log) == {0: 2, 1: 2}) is (kind == "erasure.intent")
