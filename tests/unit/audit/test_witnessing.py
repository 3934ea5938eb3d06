"""The log's side of witnessing: what it asks, what it keeps, what it publishes, over both databases."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from kala.audit.checkpoint import open_checkpoint
from kala.audit.cosignature import CosignatureKind, Cosigner, cosignatures
from kala.errors import InvalidArgumentError, UnavailableError
from services.audit.publishing import witnessing as witnessing_module
from services.audit.publishing.cosignature_store import KEPT_SIZES, CosignatureStore
from services.audit.publishing.published import PublishedLog
from services.audit.publishing.witness_policy import WitnessAddress, parse_witnesses
from services.audit.publishing.witnessing import Witnessing
from services.audit.witness.add_checkpoint import AddCheckpoint
from services.audit.witness.state import WitnessState
from tests.fakes.audit_log import ORIGIN, LogFile, open_log, record, signer

NOW = 1_790_000_000
KEYS = {
    name: Cosigner.of(f"{name}.test", CosignatureKind.ED25519, name.encode() * 16) for name in ("w1", "w2")
}


class Witnesses:
    """Witnesses as a transport: no sockets, their real rules; `broken` ones answer as told."""

    def __init__(self, directory: Path) -> None:
        self.acts = {
            f"{name}.test": AddCheckpoint(
                logs=[signer().verifier],
                cosigners=[key],
                state=WitnessState(directory / f"{name}.json"),
                clock=lambda: NOW,
            )
            for name, key in KEYS.items()
        }
        self.broken: dict[str, Callable[[httpx.Request], httpx.Response]] = {}
        self.asked: list[str] = []

    async def answer(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/prefix/add-checkpoint"
        host = request.url.host
        self.asked.append(host)
        if host in self.broken:
            return self.broken[host](request)
        reply = self.acts[host].answer(await request.aread())
        return httpx.Response(reply.status.value, text=reply.body)


ADDRESSES = [WitnessAddress(f"http://{name}.test/prefix", [key.witness]) for name, key in KEYS.items()]


class Setting:
    """A log, its cosignatures and its witnesses."""

    def __init__(self, log: LogFile, witnesses: Witnesses, store: CosignatureStore) -> None:
        self.log, self.witnesses, self.store = log, witnesses, store
        self.published = PublishedLog(log.reader, store)
        self.shown: dict[str, int] = {}
        self.number = 0

    def grow(self, count: int = 1) -> int:
        for _ in range(count):
            self.log.append(record(self.number), with_proof=False)
            self.number += 1
        return self.number

    @asynccontextmanager
    async def asking(self, own: Cosigner | None = None) -> AsyncIterator[Witnessing]:
        transport = httpx.MockTransport(self.witnesses.answer)
        with closing(self.log.open_reader()) as reader:
            async with httpx.AsyncClient(transport=transport) as client:
                yield Witnessing(
                    reader=reader,
                    store=self.store,
                    witnesses=ADDRESSES,
                    client=client,
                    own=own,
                    clock=lambda: float(NOW),
                    show=self.shown.__setitem__,
                )

    def cosigned(self) -> tuple[int, set[str]]:
        """The size of what is published, and who cosigned it."""
        note = self.published.checkpoint()
        names = {witness.name for witness in cosignatures(note, [key.witness for key in KEYS.values()])}
        return open_checkpoint(note, [signer().verifier]).size, names


@pytest.fixture
def setting(log_database: str, tmp_path: Path) -> Iterator[Setting]:
    with open_log(log_database) as log:
        engine = log.open_engine()
        store = CosignatureStore(
            engine, log.log_id, policy=[address.keys for address in ADDRESSES], required=2
        )
        yield Setting(log, Witnesses(tmp_path), store)
        engine.dispose()


async def test_what_two_witnesses_cosigned_is_published_with_both_lines(setting: Setting) -> None:
    setting.grow(3)
    with pytest.raises(UnavailableError, match="cosignatures"):
        setting.published.checkpoint()
    async with setting.asking() as witnessing:
        await witnessing.advance()
        assert setting.cosigned() == (3, {"w1.test", "w2.test"})
        setting.grow(300)
        assert setting.cosigned()[0] == 3
        await witnessing.advance()
        assert setting.cosigned() == (303, {"w1.test", "w2.test"})
        asked = len(setting.witnesses.asked)
        await witnessing.advance()
    assert len(setting.witnesses.asked) == asked
    assert setting.shown == {"w1.test": 303, "w2.test": 303}


async def test_a_new_process_goes_on_where_the_last_one_ended(setting: Setting) -> None:
    setting.grow(3)
    async with setting.asking() as witnessing:
        await witnessing.advance()
    setting.grow()
    setting.witnesses.asked.clear()
    async with setting.asking() as witnessing:
        await witnessing.advance()
    assert sorted(setting.witnesses.asked) == ["w1.test", "w2.test"]
    assert setting.cosigned()[0] == 4


async def test_a_witness_that_remembers_more_than_the_log_does_is_told_the_proof(setting: Setting) -> None:
    """As after a restored database: the log forgot its cosignatures, the witness did not."""
    setting.grow(3)
    async with setting.asking() as witnessing:
        await witnessing.advance()
    fresh = CosignatureStore(setting.store._engine, setting.log.log_id + 7)
    setting.grow(2)
    setting.store, before = fresh, setting.store
    async with setting.asking() as witnessing:
        await witnessing.advance()
    setting.store = before
    assert fresh.lines(5)
    assert sorted(setting.witnesses.asked) == ["w1.test"] * 3 + ["w2.test"] * 3


async def test_replicas_that_ask_the_same_witnesses_at_once_take_each_other_for_no_thief(
    setting: Setting,
) -> None:
    async with setting.asking() as first, setting.asking() as second:
        with capture_logs() as lines:
            for _ in range(6):
                setting.grow()
                await first.advance()
                setting.grow()
                await asyncio.gather(first.advance(), second.advance())
            await asyncio.gather(first.advance(), second.advance())
    assert [line for line in lines if line["log_level"] == "error"] == []
    assert setting.cosigned() == (12, {"w1.test", "w2.test"})


async def test_one_witness_that_is_away_holds_back_the_publication_and_nothing_else(setting: Setting) -> None:
    setting.grow(2)
    async with setting.asking() as witnessing:
        await witnessing.advance()
        setting.witnesses.broken["w2.test"] = lambda _request: httpx.Response(503, text="busy")
        setting.grow(1)
        await witnessing.advance()
        assert setting.cosigned()[0] == 2
        setting.witnesses.broken.clear()
        setting.grow(1)
        await witnessing.advance()
        await witnessing.advance()
    assert setting.cosigned() == (4, {"w1.test", "w2.test"})


async def test_a_witness_that_keeps_failing_is_asked_less_and_less_often(setting: Setting) -> None:
    setting.witnesses.broken["w2.test"] = lambda _request: httpx.Response(500)
    async with setting.asking() as witnessing:
        for _ in range(32):
            setting.grow()
            await witnessing.advance()
    assert setting.witnesses.asked.count("w1.test") == 32
    assert 3 <= setting.witnesses.asked.count("w2.test") <= 8


class Dripping(httpx.AsyncByteStream):
    """An answer that never ends and is never silent for long."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0.001)
            yield b""


async def test_a_witness_whose_answer_never_ends_keeps_the_other_from_nothing(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witnessing_module, "TIMEOUT_SECONDS", 0.2)
    setting.witnesses.broken["w2.test"] = lambda _request: httpx.Response(200, stream=Dripping())
    setting.grow(2)
    async with setting.asking() as witnessing:
        with capture_logs() as lines:
            async with asyncio.timeout(20):
                await witnessing.advance()
    assert ["did not answer within" in line["problem"] for line in lines] == [True]
    assert setting.shown == {"w1.test": 2, "w2.test": 0}


async def test_a_cosignature_that_was_lost_on_the_way_is_asked_for_again(setting: Setting) -> None:
    """The witness cosigned and remembers; the log was killed before it had the answer, and grows no more."""
    setting.grow(2)
    async with setting.asking() as witnessing:
        await witnessing.advance()
    setting.store = CosignatureStore(
        setting.store._engine,
        setting.log.log_id + 7,
        policy=[address.keys for address in ADDRESSES],
        required=2,
    )
    answers = iter([httpx.Response(409, text="2\n"), httpx.Response(503)])
    setting.witnesses.broken["w2.test"] = lambda _request: next(answers)
    async with setting.asking() as witnessing:
        await witnessing.advance()
        assert setting.store.publishable() == -1
        setting.witnesses.broken.clear()
        await witnessing.advance()
    assert setting.store.publishable() == 2


def bug(_request: httpx.Request) -> httpx.Response:
    raise RuntimeError("a bug")


async def test_a_bug_about_one_witness_cuts_no_other_short(setting: Setting) -> None:
    setting.witnesses.broken["w1.test"] = bug
    setting.grow(2)
    async with setting.asking() as witnessing:
        with pytest.raises(RuntimeError, match="a bug"):
            await witnessing.advance()
    assert setting.shown == {"w1.test": 0, "w2.test": 2}


def forged(_request: httpx.Request) -> httpx.Response:
    text = signer().sign(f"{ORIGIN}\n1\n{'A' * 43}=\n").rpartition("\n\n")[0] + "\n"
    return httpx.Response(200, text=KEYS["w2"].line(text, NOW))


def bomb() -> httpx.Response:
    """A flood that is small until it is unpacked."""
    return httpx.Response(200, content=gzip.compress(bytes(1 << 20)), headers={"content-encoding": "gzip"})


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (lambda _request: httpx.Response(200, text=""), "no signature of its keys"),
        (lambda _request: httpx.Response(200, text="hello\n"), "not lines of signatures"),
        (lambda _request: httpx.Response(200, text="x" * 100_000), "more than"),
        (lambda _request: httpx.Response(200, content=b"\xff\xfe"), "not lines of signatures"),
        (lambda _request: httpx.Response(409, text="many\n"), "not a decimal"),
        (lambda _request: httpx.Response(404, text="unknown log"), "answers 404: unknown log"),
        (lambda _request: httpx.Response(302, headers={"location": "http://w1.test/"}), "answers 302"),
        (forged, "does not hold"),
        (lambda _request: bomb(), "is compressed"),
        (lambda _request: httpx.Response(200, text=KEYS["w1"].line("x\n", NOW)), "no signature of its keys"),
    ],
    ids=[
        "empty",
        "words",
        "flood",
        "no text",
        "no size",
        "unknown",
        "redirect",
        "forged",
        "bomb",
        "another's",
    ],
)
async def test_what_is_no_cosignature_is_not_kept(
    setting: Setting, broken: Callable[[httpx.Request], httpx.Response], problem: str
) -> None:
    setting.grow(2)
    setting.witnesses.broken["w2.test"] = broken
    async with setting.asking() as witnessing:
        with capture_logs() as lines:
            await witnessing.advance()
    assert [problem in line["problem"] for line in lines] == [True]
    assert len(setting.store.lines(2)) == 1


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ([(409, "0\n")], "two histories"),
        ([(409, "9\n")], "was cut"),
        ([(422, "no")], "two histories"),
        ([(409, "1\n"), (422, "no")], "two histories"),
        ([(409, "2\n"), (409, "2\n")], "two histories"),
    ],
    ids=["another tree", "cut", "no growth", "no growth from its size", "another tree of this size"],
)
async def test_a_witness_that_remembers_another_log_is_an_error(
    setting: Setting, answers: list[tuple[int, str]], problem: str
) -> None:
    setting.grow(2)
    replies = iter(answers)

    def answer(_request: httpx.Request) -> httpx.Response:
        status, text = next(replies)
        return httpx.Response(status, text=text)

    setting.witnesses.broken["w2.test"] = answer
    async with setting.asking() as witnessing:
        with capture_logs() as lines:
            await witnessing.advance()
    assert [(line["log_level"], problem in line["problem"]) for line in lines] == [("error", True)]


async def test_the_logs_own_second_key_cosigns_what_is_published(setting: Setting) -> None:
    setting.grow(2)
    second = Cosigner.of(ORIGIN, CosignatureKind.ML_DSA_44, b"m" * 32)
    async with setting.asking(second) as witnessing:
        await witnessing.advance()
    note = setting.published.checkpoint()
    assert cosignatures(note, [second.witness]) == {second.witness: NOW}
    assert open_checkpoint(note, [signer().verifier]).size == 2


def test_only_the_newest_cosignatures_are_kept_and_the_published_one(setting: Setting) -> None:
    for size in range(1, KEPT_SIZES + 50):
        setting.store.add(size, KEYS["w1"].witness, f"line {size}\n")
    setting.store.add(3, KEYS["w2"].witness, "line\n")
    setting.store.prune()
    assert setting.store.publishable() == 3
    assert setting.store.lines(4) == []
    assert setting.store.lines(KEPT_SIZES) == [f"line {KEPT_SIZES}\n"]
    assert setting.store.size_of(KEYS["w1"].witness) == KEPT_SIZES + 49


def test_two_keys_of_one_witness_count_as_one(setting: Setting) -> None:
    second = Cosigner.of("w1.test", CosignatureKind.ML_DSA_44, b"m" * 32).witness
    keys = [[KEYS["w1"].witness, second], [KEYS["w2"].witness]]
    engine, log_id = setting.store._engine, setting.log.log_id
    store = CosignatureStore(engine, log_id, policy=keys, required=2)
    for key in keys[0]:
        store.add(1, key, "line\n")
    assert store.publishable() == -1
    store.add(1, keys[1][0], "line\n")
    store.add(1, keys[1][0], "another line\n")
    assert store.publishable() == 1
    assert len(store.lines(1)) == 3


GOOD = f"https://w1.test/prefix/ {KEYS['w1'].witness}"


def test_a_policy_is_read_from_lines_of_an_address_and_keys() -> None:
    (one,) = parse_witnesses([GOOD], 1)
    assert (one.url, one.name) == ("https://w1.test/prefix", "w1.test")


@pytest.mark.parametrize(
    ("texts", "required", "problem"),
    [
        ([""], 0, "http or https"),
        ([f"ftp://w1.test {KEYS['w1'].witness}"], 0, "http or https"),
        (["https://w1.test"], 0, "at least one key"),
        ([f"https://w1.test:x {KEYS['w1'].witness}"], 0, "http or https url.*Port"),
        ([f"https://w1.test:65536 {KEYS['w1'].witness}"], 0, "http or https url.*Port"),
        ([f"https://[::1 {KEYS['w1'].witness}"], 0, "http or https url.*IPv6"),
        ([f"https://w1\x00.test {KEYS['w1'].witness}"], 0, "http or https url"),
        (["https://w1.test nonsense"], 0, "key"),
        ([f"{GOOD} {KEYS['w2'].witness}"], 0, "of one name"),
        ([GOOD, GOOD], 0, "count as one"),
        ([GOOD], 2, "is 2, and 1"),
    ],
)
def test_a_policy_that_cannot_be_met_is_refused(texts: list[str], required: int, problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem):
        parse_witnesses(texts, required)
