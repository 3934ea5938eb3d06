"""What is timed inside one process over the bench of judges: single checks, throughput, the output stream.

Each of the three functions at the end runs in a process of its own, held to some cores, and returns plain values.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final

import onnxruntime as ort
from tokenizers import Tokenizer

from bench.ethics_texts import TextMaker, chunks
from bench.measure import Arm, interleaved
from kala.ethics.constitution import verify_constitution
from services.ethics.action_text import Text
from services.ethics.bench import Bench
from services.ethics.classifier.calibration import MODEL_FILE, TOKENIZER_FILE
from services.ethics.classifier.encoding import arrange, batch_arrays
from services.ethics.classifier.passes import Planner
from services.ethics.config import EthicsSettings
from services.ethics.fold import Folder
from services.ethics.judge import Extent, Part, Stage
from services.ethics.laws import read_constitution
from services.ethics.output_check import Channel
from services.ethics.output_stream import OutputStream
from services.ethics.seating import seat_judges
from services.ethics.views import Reader

SHORT_TOKENS: Final = 60
# 256 with the marks at both ends: the most that the network reads at once.
LONG_TOKENS: Final = 254
# Four parts of so many words: every view of such a text is nearly as long as the network reads at once.
DISGUISED_WORDS: Final = 20
CHUNK_CHARS: Final = 5
ANSWER_TOKENS: Final = 1_000
CALLERS: Final = 16
WARM_UP: Final = 10
# A long check takes some ten times as long as a short one, so there are fewer of them.
LONG_SHARE: Final = 4
SEED: Final = 20261121

Feeds = Mapping[str, object]
# One thread, as in the service; a plain call of the library is what every figure here stands beside.
PLAIN: Final = "onnxruntime alone"
RULES: Final = "hard blocks alone"


@dataclass(frozen=True, slots=True)
class Check:
    """One kind of check: its times, how often and how long the network was asked for it, and how often it passed.

    `cpu_ms` is the CPU of all threads, the median: it hardly changes where other work makes the check wait.
    """

    tokens: int
    arm: Arm
    cpu_ms: float
    passes: float = 0.0
    read_tokens: float = 0.0
    allowed: float = 1.0


@dataclass(frozen=True, slots=True)
class Rate:
    """Texts per second, the median of the rounds."""

    name: str
    per_second: float


@dataclass(frozen=True, slots=True)
class Stream:
    """CPU of all threads for one token of an answer, the median of the answers, and how many of them passed."""

    name: str
    cpu_ms_per_token: float
    allowed: float = 1.0


@dataclass(frozen=True, slots=True)
class _Kind:
    """Texts of one kind, and to what extent they are said to be a text."""

    name: str
    make: Callable[[], str]
    extent: Extent = Extent.WHOLE


class Subject:
    """Everything that is timed, over the repository's constitution; `text` makes what it is timed with."""

    def __init__(self) -> None:
        settings = EthicsSettings(trust="development")
        self.verified = verify_constitution(settings.constitution, settings.constitution_trust)
        constitution = read_constitution(self.verified)
        self.rules = Bench(constitution, allow_unreadable=False, on_fault=_raise)
        self._tokenizer = Tokenizer.from_buffer(self.verified.files[TOKENIZER_FILE])
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._planner = Planner(self._tokenizer)
        self._reader = Reader(Folder(constitution.look_alikes))
        self.text = TextMaker(self.count, SEED)

    def bench(self, workers: int) -> Bench:
        """All judges, the classifier with so many threads and nothing in its cache."""
        return seat_judges(self.verified, allow_unreadable=False, on_fault=_raise, workers=workers)

    def count(self, text: str) -> int:
        """How many tokens the classifier sees in a text, without its marks."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def feeds(self, text: str) -> Feeds:
        """A text as the network's inputs."""
        encoded = arrange(self._tokenizer.encode(text, add_special_tokens=False).ids, (), Stage.REQUEST)
        names = ("input_ids", "attention_mask", "token_type_ids")
        return dict(zip(names, batch_arrays([encoded], len(encoded.ids)), strict=True))

    def passes(self, text: str, extent: Extent) -> list[int]:
        """The length of every pass that the classifier plans for a text."""
        plan = self._planner.plan(Part("text", Stage.REQUEST, self._reader.read(text), extent))
        return [item.tokens for item in plan.passes]

    def session(self) -> ort.InferenceSession:
        """The network without the service, on one thread."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return ort.InferenceSession(
            self.verified.files[MODEL_FILE], options, providers=["CPUExecutionProvider"]
        )


def single_checks(workers: int, rounds: int, requests: int) -> list[Check]:
    """One check after the other: the service, the rules alone and the plain call of the library, in turn."""
    subject = Subject()
    bench, session = subject.bench(workers), subject.session()
    make = subject.text
    short = [_Kind("request", lambda: make.ordinary(SHORT_TOKENS))]
    long = [
        _Kind("request in one view and pass", lambda: make.ordinary(LONG_TOKENS), Extent.WINDOW),
        _Kind("request, whole and by halves", lambda: make.ordinary(LONG_TOKENS)),
        _Kind("request in four disguises", lambda: make.disguised(DISGUISED_WORDS)),
        _Kind("request with hidden words", lambda: make.with_hidden_words(LONG_TOKENS)),
    ]
    found: list[Check] = []
    with asyncio.Runner() as runner:
        for tokens, kinds, per_round in (
            (SHORT_TOKENS, short, requests),
            (LONG_TOKENS, long, max(1, requests // LONG_SHARE)),
        ):
            count = WARM_UP + rounds * per_round
            plain = [make.ordinary(tokens) for _ in range(count)]
            series = [_Series(kind, subject, runner, bench, count) for kind in kinds]
            arms: dict[str, Callable[[], float]] = {
                PLAIN: _plain_call(session, [subject.feeds(text) for text in plain]),
                RULES: _check(runner, subject.rules, plain, Extent.WHOLE, []),
            }
            arms |= {item.kind.name: item.arm for item in series}
            spent: dict[str, list[float]] = {name: [] for name in arms}
            arms = {name: _counted(arm, spent[name]) for name, arm in arms.items()}
            timed = interleaved(arms, rounds=rounds, requests=per_round, warm_up=WARM_UP)
            said = {item.kind.name: item for item in series}
            for arm in timed:
                cpu_ms = statistics.median(spent[arm.name][WARM_UP:])
                known = said.get(arm.name)
                found.append(known.check(tokens, arm, cpu_ms) if known else Check(tokens, arm, cpu_ms))
    return found


def throughput(rounds: int, requests: int) -> list[Rate]:
    """Short requests per second: one caller, and CALLERS at once, with one worker and with two."""
    subject = Subject()
    session = subject.session()
    one, two = subject.bench(1), subject.bench(2)

    def texts() -> list[str]:
        return [subject.text.ordinary(SHORT_TOKENS) for _ in range(requests)]

    arms: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {  # Any: nothing is sent to a coroutine
        f"{PLAIN}, one thread": lambda: _call_at_once(session, [subject.feeds(text) for text in texts()], 1),
        f"{PLAIN}, two threads": lambda: _call_at_once(session, [subject.feeds(text) for text in texts()], 2),
        "one worker, one caller": lambda: _check_at_once(one, texts(), 1),
        f"one worker, {CALLERS} callers": lambda: _check_at_once(one, texts(), CALLERS),
        f"two workers, {CALLERS} callers": lambda: _check_at_once(two, texts(), CALLERS),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    with asyncio.Runner() as runner:
        for number in range(rounds + 1):
            for name, arm in arms.items():
                work = arm()
                taken = runner.run(_timed(work))
                # The first round warms up.
                if number:
                    seconds[name].append(taken)
    return [Rate(name, requests / statistics.median(taken)) for name, taken in seconds.items()]


def output_stream(rounds: int) -> list[Stream]:
    """CPU for one token of a long answer, by the rules alone and by all judges."""
    subject = Subject()
    bench = subject.bench(2)
    request = subject.text.ordinary(SHORT_TOKENS)
    arms: dict[str, tuple[Bench, int]] = {
        f"{RULES}, chunks of {CHUNK_CHARS} characters": (subject.rules, CHUNK_CHARS),
        f"all judges, chunks of {CHUNK_CHARS} characters": (bench, CHUNK_CHARS),
        "all judges, the answer at once": (bench, 0),
    }
    taken: dict[str, list[float]] = {name: [] for name in arms}
    passed: dict[str, list[bool]] = {name: [] for name in arms}
    with asyncio.Runner() as runner:
        for number in range(rounds + 1):
            for name, (judging, size) in arms.items():
                answer = subject.text.answer(ANSWER_TOKENS)
                stream = judging.open_stream(request)
                began = time.process_time()
                runner.run(_read(stream, answer, size or len(answer)))
                spent = time.process_time() - began
                if number:
                    taken[name].append(spent * 1000 / subject.count(answer))
                    passed[name].append(not stream.is_over)
    return [Stream(name, statistics.median(taken[name]), _mean(passed[name])) for name in arms]


class _Series:
    """All checks of one kind: their texts, what is read of them and what came out."""

    def __init__(
        self, kind: _Kind, subject: Subject, runner: asyncio.Runner, bench: Bench, count: int
    ) -> None:
        self.kind = kind
        texts = [kind.make() for _ in range(count)]
        self._passes = [subject.passes(text, kind.extent) for text in texts]
        self._allowed: list[bool] = []
        self.arm = _check(runner, bench, texts, kind.extent, self._allowed)

    def check(self, tokens: int, arm: Arm, cpu_ms: float) -> Check:
        """What came out."""
        return Check(
            tokens,
            arm,
            cpu_ms,
            passes=statistics.fmean(map(len, self._passes)),
            read_tokens=statistics.fmean(map(sum, self._passes)),
            allowed=_mean(self._allowed),
        )


async def _read(stream: OutputStream, answer: str, size: int) -> None:
    for chunk in chunks(answer, size):
        await stream.feed(Channel.TEXT, 0, chunk)
    await stream.finish()


def _plain_call(session: ort.InferenceSession, feeds: Sequence[Feeds]) -> Callable[[], float]:
    following = cycle(feeds)

    def call() -> float:
        given = next(following)
        began = time.perf_counter()
        session.run(None, given)
        return time.perf_counter() - began

    return call


def _counted(call: Callable[[], float], spent: list[float]) -> Callable[[], float]:
    """The call, with the CPU milliseconds of all threads noted."""

    def counted() -> float:
        began = time.process_time()
        taken = call()
        spent.append((time.process_time() - began) * 1000)
        return taken

    return counted


def _check(
    runner: asyncio.Runner, bench: Bench, texts: Sequence[str], extent: Extent, allowed: list[bool]
) -> Callable[[], float]:
    following = iter(texts)

    async def timed(text: Text) -> float:
        began = time.perf_counter()
        judgement = await bench.judge([text])
        taken = time.perf_counter() - began
        allowed.append(judgement.allows)
        return taken

    return lambda: runner.run(timed(Text("text", Stage.REQUEST, next(following), extent)))


async def _timed(work: Coroutine[Any, Any, None]) -> float:  # Any: nothing is sent to a coroutine
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def _check_at_once(bench: Bench, texts: Sequence[str], callers: int) -> None:
    following = iter(texts)

    async def caller() -> None:
        for text in following:
            await bench.judge([Text("text", Stage.REQUEST, text)])

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())


async def _call_at_once(session: ort.InferenceSession, feeds: Sequence[Feeds], threads: int) -> None:
    following = iter(feeds)

    def caller(given: Iterator[Feeds]) -> None:
        # next() of a list's iterator is one step of the interpreter, so threads may share it.
        for item in given:
            session.run(None, item)

    async with asyncio.TaskGroup() as group:
        for _ in range(threads):
            group.create_task(asyncio.to_thread(caller, following))


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0


def _raise(_judge: str, error: Exception) -> None:
    raise error
