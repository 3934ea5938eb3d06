"""The reading RPCs: entries, receipts, checkpoints, proofs and queries."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kala.audit.checkpoint import open_checkpoint
from kala.audit.proof import verify_consistency
from kala.audit.receipt import verify_receipt
from kala.audit.v1 import audit_pb2
from kala.common.v1 import decision_pb2
from kala.common.v1.clearance_pb2 import Principal
from kala.errors import InvalidArgumentError, NotFoundError
from services.audit.payloads import KeyEncryptionKey
from services.audit.reading.query import PageToken, digest_of
from services.audit.reading.read_records import Reader
from services.common.principals import principal_metadata
from services.common.status import translated
from tests.fakes.audit_log import KEK, NOW, is_url, open_log, record
from tests.fakes.audit_server import ServedLog, served_log
from tests.postgres import Databases, name_of

TOTAL = 700


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A log to copy: a file, or the URL of a database."""
    if request.param == "sqlite":
        path = str(tmp_path_factory.mktemp("filled") / "audit.db")
        fill_log(path)
        yield path
        return
    databases: Databases = request.getfixturevalue("postgres_databases")
    url = databases.create(template=request.getfixturevalue("migrated_postgres"))
    fill_log(url)
    yield url
    databases.drop(url)


def fill_log(path: str) -> None:
    with open_log(path) as log:
        for start in range(0, TOTAL, 70):
            numbers = range(start, start + 70)
            log.append(*(record(number, payloads=number % 4) for number in numbers), with_proof=False)


@pytest.fixture
def copied(filled: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A log of 700 entries for this test."""
    if not is_url(filled):
        yield str(shutil.copy(filled, tmp_path / "audit.db"))
        return
    databases: Databases = request.getfixturevalue("postgres_databases")
    url = databases.create(template=name_of(filled))
    yield url
    databases.drop(url)


@pytest.fixture
async def served(copied: str) -> AsyncIterator[ServedLog]:
    async with served_log(copied) as log:
        yield log


@pytest.mark.parametrize("index", [0, 255, 256, 511, TOTAL - 1])
async def test_an_entry_comes_with_a_proof_against_the_newest_checkpoint(
    served: ServedLog, index: int
) -> None:
    response = await served.read.GetEntry(audit_pb2.GetEntryRequest(name=f"entries/{index}"))
    verified = verify_receipt(response.proof, [served.verifier])
    assert (verified.index, verified.checkpoint.size, verified.leaf.data) == (
        index,
        TOTAL,
        response.entry.leaf,
    )
    assert len(response.entry.payload_kinds) == min(index % 4, 2)  # the third keeps its salt alone


@pytest.mark.parametrize(
    "name",
    [
        "entries/700",
        "entries/-1",
        "entries/01",
        "entries/x",
        "",
        "entries/99999999999999999999",
        "entries/9999999999999999999",
    ],
)
async def test_an_entry_that_is_not_there_is_not_found_and_a_bad_name_is_refused(
    served: ServedLog, name: str
) -> None:
    with pytest.raises((NotFoundError, InvalidArgumentError)), translated():
        await served.read.GetEntry(audit_pb2.GetEntryRequest(name=name))


async def test_a_receipt_is_found_by_the_id_of_its_answer(served: ServedLog) -> None:
    name = f"receipts/rcpt_{300:032x}"
    response = await served.read.GetReceipt(audit_pb2.GetReceiptRequest(name=name))
    assert verify_receipt(response.receipt.proof, [served.verifier]).leaf.receipt_id == f"rcpt_{300:032x}"
    with pytest.raises(NotFoundError, match="spool"), translated():
        await served.read.GetReceipt(audit_pb2.GetReceiptRequest(name=f"receipts/rcpt_{TOTAL:032x}"))


async def test_checkpoints_are_given_by_size(served: ServedLog) -> None:
    newest = await served.read.GetCheckpoint(audit_pb2.GetCheckpointRequest())
    assert newest.verifier_key == str(served.verifier)
    assert open_checkpoint(newest.checkpoint, [served.verifier]).size == TOTAL
    older = await served.read.GetCheckpoint(audit_pb2.GetCheckpointRequest(size=140))
    assert open_checkpoint(older.checkpoint, [served.verifier]).size == 140
    with pytest.raises(NotFoundError, match="no checkpoint of size 141"), translated():
        await served.read.GetCheckpoint(audit_pb2.GetCheckpointRequest(size=141))
    with pytest.raises(NotFoundError, match="no checkpoint of size"), translated():
        await served.read.GetCheckpoint(audit_pb2.GetCheckpointRequest(size=2**64 - 1))
    with pytest.raises(NotFoundError, match="no checkpoint of size"), translated():
        await served.read.GetConsistencyProof(
            audit_pb2.GetConsistencyProofRequest(old_size=1, new_size=2**63)
        )


async def test_an_empty_log_has_no_checkpoint(log_database: str) -> None:
    async with served_log(log_database) as served:
        with pytest.raises(NotFoundError, match="empty"), translated():
            await served.read.GetCheckpoint(audit_pb2.GetCheckpointRequest())


@pytest.mark.parametrize(("old", "new"), [(70, None), (70, 140), (630, 700), (700, 700)])
async def test_the_log_proves_that_it_only_grew(served: ServedLog, old: int, new: int | None) -> None:
    request = audit_pb2.GetConsistencyProofRequest(old_size=old)
    if new is not None:
        request.new_size = new
    response = await served.read.GetConsistencyProof(request)
    before = await served.read.GetCheckpoint(audit_pb2.GetCheckpointRequest(size=old))
    old_root = open_checkpoint(before.checkpoint, [served.verifier]).root
    new_root = open_checkpoint(response.checkpoint, [served.verifier]).root
    assert response.new_size == (new or TOTAL)
    assert verify_consistency(old, response.new_size, list(response.hashes), old_root, new_root) == new_root


@pytest.mark.parametrize(("old", "new"), [(0, 70), (141, 140), (701, None)])
async def test_no_proof_leads_backwards_or_from_nothing(served: ServedLog, old: int, new: int | None) -> None:
    request = audit_pb2.GetConsistencyProofRequest(old_size=old)
    if new is not None:
        request.new_size = new
    with pytest.raises(InvalidArgumentError, match="old_size"), translated():
        await served.read.GetConsistencyProof(request)


async def indexes(served: ServedLog, request: audit_pb2.QueryRequest) -> list[int]:
    with translated():
        response = await served.read.Query(request)
    return [entry.index for entry in response.entries]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (audit_pb2.EntryFilter(law=3), lambda n: n % 5 == 3),
        (audit_pb2.EntryFilter(law=0), lambda n: n % 5 == 0),
        (audit_pb2.EntryFilter(model="model-1"), lambda n: n % 3 == 1),
        (audit_pb2.EntryFilter(actor=f"{2:064x}"), lambda n: n % 7 == 2),
        (audit_pb2.EntryFilter(trace_id=f"{99:032x}"), lambda n: n == 99),
        (
            audit_pb2.EntryFilter(outcomes=[decision_pb2.OUTCOME_REFUSE, decision_pb2.OUTCOME_REDIRECT]),
            lambda n: n % 4 in {1, 2},
        ),
        (audit_pb2.EntryFilter(types=["chat.outcome"], tenant="default"), lambda _: True),
        (audit_pb2.EntryFilter(types=["chat.intent"]), lambda _: False),
        (audit_pb2.EntryFilter(tool="shell"), lambda _: False),
        (audit_pb2.EntryFilter(law=3, model="model-1"), lambda n: n % 5 == 3 and n % 3 == 1),
    ],
    # Names that are the same in every worker.
    ids=[
        "law",
        "law 0",
        "model",
        "actor",
        "trace",
        "outcomes",
        "type and tenant",
        "type",
        "tool",
        "law and model",
    ],
)
async def test_a_query_finds_exactly_what_meets_its_filter(
    served: ServedLog, wanted: audit_pb2.EntryFilter, expected: object
) -> None:
    found = await indexes(served, audit_pb2.QueryRequest(filter=wanted, page_size=1_000))
    assert found == [number for number in range(TOTAL) if expected(number)]  # type: ignore[operator] # a predicate


@pytest.mark.parametrize("descending", [False, True])
async def test_pages_follow_each_other_over_one_snapshot(served: ServedLog, descending: bool) -> None:
    request = audit_pb2.QueryRequest(filter=audit_pb2.EntryFilter(law=3), page_size=33, descending=descending)
    found: list[int] = []
    while True:
        response = await served.read.Query(request)
        assert response.snapshot_size == TOTAL
        found += [entry.index for entry in response.entries]
        if not response.next_page_token:
            break
        served.file.append(record(TOTAL + len(found) * 5 + 3))  # law 3: must not enter this query
        request.page_token = response.next_page_token
    expected = [number for number in range(TOTAL) if number % 5 == 3]
    assert found == (expected[::-1] if descending else expected)


async def test_a_query_by_time_uses_the_log_s_own_clock(served: ServedLog) -> None:
    response = await served.read.GetEntry(audit_pb2.GetEntryRequest(name="entries/100"))
    recorded = served.file.reader.query([], first=100, last=101, limit=1, descending=False)[0]
    assert recorded.leaf == response.entry.leaf
    at = audit_pb2.EntryFilter()
    getattr(at, "from").FromMicroseconds(NOW + 1_000)  # the second batch
    at.until.FromMicroseconds(NOW + 2_000)
    found = await indexes(served, audit_pb2.QueryRequest(filter=at, page_size=1_000))
    assert found == list(range(70, 140))


@pytest.mark.parametrize(
    "request_",
    [
        audit_pb2.QueryRequest(page_size=1_001),
        audit_pb2.QueryRequest(page_size=-1),
        audit_pb2.QueryRequest(page_token="nonsense"),
        audit_pb2.QueryRequest(page_token="\u00e9"),
        audit_pb2.QueryRequest(filter=audit_pb2.EntryFilter(outcomes=[0])),
        audit_pb2.QueryRequest(filter=audit_pb2.EntryFilter(types=["t"] * 33)),
    ],
    ids=str,
)
async def test_a_malformed_query_is_refused(served: ServedLog, request_: audit_pb2.QueryRequest) -> None:
    with pytest.raises(InvalidArgumentError):
        await indexes(served, request_)


@pytest.mark.parametrize("size", [TOTAL + 1, 2**63, 2**64 - 1])
async def test_a_token_reaches_beyond_no_log(served: ServedLog, size: int) -> None:
    key, reader = KeyEncryptionKey(KEK).page_key, repr(Reader("local:gateway"))
    token = PageToken(size, min(size, TOTAL)).text(key, digest_of([], None, None, False, reader))
    with pytest.raises(InvalidArgumentError, match="larger log"):
        await indexes(served, audit_pb2.QueryRequest(page_token=token))
    token = PageToken(size, 0).text(key, digest_of([], "gaps", reader))
    with pytest.raises(InvalidArgumentError, match="larger log"), translated():
        await served.read.ListGaps(audit_pb2.ListGapsRequest(page_token=token))


async def test_nobody_reads_unlogged_by_a_token_that_they_made_up(served: ServedLog) -> None:
    """Only the first page of a query is logged: a made-up token for page one read everything and left no entry."""
    asked = digest_of([], None, None, False, repr(Reader("local:gateway")))
    token = PageToken(TOTAL, 0).text(bytes(32), asked)
    with pytest.raises(InvalidArgumentError, match="page_token"):
        await indexes(served, audit_pb2.QueryRequest(page_token=token))
    gaps = PageToken(TOTAL, 0).text(bytes(32), digest_of([], "gaps", repr(Reader("local:gateway"))))
    with pytest.raises(InvalidArgumentError, match="page_token"), translated():
        await served.read.ListGaps(audit_pb2.ListGapsRequest(page_token=gaps))


async def test_nobody_turns_the_pages_of_another_s_query(served: ServedLog) -> None:
    """The query is logged as the one's who asked; whoever had the token read on under that name."""
    mine, yours = (
        principal_metadata(Principal(id=f"keys/{who}", tenant="acme", subject=who * 64)) for who in "ab"
    )
    first = await served.read.Query(audit_pb2.QueryRequest(page_size=1), metadata=mine)
    following = audit_pb2.QueryRequest(page_size=1, page_token=first.next_page_token)
    assert (await served.read.Query(following, metadata=mine)).entries[0].index == 1
    with pytest.raises(InvalidArgumentError, match="another query or reader"), translated():
        await served.read.Query(following, metadata=yours)


async def test_a_token_of_another_query_is_refused(served: ServedLog) -> None:
    first = await served.read.Query(audit_pb2.QueryRequest(page_size=1))
    with pytest.raises(InvalidArgumentError, match="another query"):
        await indexes(
            served,
            audit_pb2.QueryRequest(filter=audit_pb2.EntryFilter(law=1), page_token=first.next_page_token),
        )


async def test_a_summary_and_gaps_of_one_tenant_say_nothing_of_another(log_database: str) -> None:
    """The gateway confines every request that has a filter to its caller's tenant."""
    async with served_log(log_database) as served:
        ours, theirs = numbered(0, 1, kind="chat.intent"), numbered(1, 3, kind="chat.intent")
        ours.tenant, theirs.tenant = "ours", "theirs"
        served.file.append(ours, theirs)
        wanted = audit_pb2.EntryFilter(tenant="ours")
        summary = await served.read.Summary(audit_pb2.SummaryRequest(filter=wanted))
        assert [count.count for count in summary.types] == [1]
        request = audit_pb2.ListGapsRequest(filter=wanted)
        request.intent_age.seconds = 1
        assert [gap.entry for gap in (await served.read.ListGaps(request)).gaps] == ["entries/0"]
        request.filter.ClearField("tenant")
        assert len((await served.read.ListGaps(request)).gaps) == 3
        wanted.until.seconds = 1
        with pytest.raises(InvalidArgumentError, match="filter"), translated():
            await served.read.Summary(audit_pb2.SummaryRequest(filter=wanted))


async def test_a_summary_counts_a_window(served: ServedLog) -> None:
    response = await served.read.Summary(audit_pb2.SummaryRequest())
    assert response.tree_size == TOTAL
    assert {count.label: count.count for count in response.types} == {"chat.outcome": TOTAL}
    assert {count.label: count.count for count in response.laws} == {str(law): TOTAL // 5 for law in range(5)}
    assert sum(count.count for count in response.models) == TOTAL
    request = audit_pb2.SummaryRequest()
    request.window.seconds = 1
    assert not (await served.read.Summary(request)).types
    request.window.seconds = 0
    with pytest.raises(InvalidArgumentError, match="window"), translated():
        await served.read.Summary(request)


def numbered(
    number: int, sequence: int, *, kind: str = "chat.outcome", boot: bytes = b"bootboot"
) -> audit_pb2.Record:
    made = record(number, kind=kind)
    made.producer.sequence, made.producer.boot = sequence, boot
    return made


async def test_gaps_name_what_is_missing(log_database: str) -> None:
    async with served_log(log_database) as served:
        answered, unanswered = numbered(0, 1, kind="chat.intent"), numbered(1, 2, kind="chat.intent")
        outcome = numbered(2, 5)
        outcome.intent = answered.idempotency_key
        served.file.append(answered, unanswered, outcome, numbered(3, 6), numbered(4, 3, boot=b"another-"))
        request = audit_pb2.ListGapsRequest(page_size=1)
        request.intent_age.seconds = 1
        gaps = []
        while True:
            response = await served.read.ListGaps(request)
            gaps += response.gaps
            if not response.next_page_token:
                break
            request.page_token = response.next_page_token
        found = [
            (gap.kind, gap.entry, gap.producer.boot, gap.first_missing, gap.last_missing) for gap in gaps
        ]
        assert found == [
            (audit_pb2.GAP_KIND_UNMATCHED_INTENT, "entries/1", b"bootboot", 0, 0),
            (audit_pb2.GAP_KIND_SEQUENCE_HOLE, "", b"bootboot", 3, 4),
            (audit_pb2.GAP_KIND_SEQUENCE_HOLE, "", b"another-", 1, 2),
        ]
        young = audit_pb2.ListGapsRequest()
        assert {gap.kind for gap in (await served.read.ListGaps(young)).gaps} == {
            audit_pb2.GAP_KIND_SEQUENCE_HOLE
        }
        young.intent_age.seconds = -1
        with pytest.raises(InvalidArgumentError, match="intent_age"), translated():
            await served.read.ListGaps(young)


async def test_only_an_outcome_answers_an_intent(log_database: str) -> None:
    """A step inside an act, such as a tool's intent, names the act's intent and does not end it."""
    async with served_log(log_database) as served:
        chat, tool = numbered(0, 1, kind="chat.intent"), numbered(1, 2, kind="tool.intent")
        approval, tool_outcome = numbered(2, 3, kind="tool.approved"), numbered(3, 4, kind="tool.outcome")
        tool.intent = chat.idempotency_key
        approval.intent = tool_outcome.intent = tool.idempotency_key
        served.file.append(chat, tool, approval, tool_outcome)
        request = audit_pb2.ListGapsRequest()
        request.intent_age.seconds = 1
        assert [gap.entry for gap in (await served.read.ListGaps(request)).gaps] == ["entries/0"]


async def test_a_log_whose_clock_once_jumped_ahead_still_names_old_intents(log_database: str) -> None:
    async with served_log(log_database) as served:
        served.file.clock = itertools.chain([NOW + 10**15], itertools.repeat(NOW))
        served.file.append(numbered(0, 1))
        served.file.append(numbered(1, 2, kind="chat.intent"))
        request = audit_pb2.ListGapsRequest()
        request.intent_age.seconds = 1
        assert [gap.entry for gap in (await served.read.ListGaps(request)).gaps] == ["entries/1"]


async def test_a_whole_log_has_no_gaps(served: ServedLog) -> None:
    response = await served.read.ListGaps(audit_pb2.ListGapsRequest())
    assert not response.gaps
