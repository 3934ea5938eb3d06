from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ethics.bench import Bench
from services.ethics.judge import Extent, Judge, Outcome, Stage
from services.ethics.judgement import UNDECIDED
from services.ethics.laws import Constitution
from services.ethics.output_check import Channel
from services.ethics.output_stream import CONTEXT_CHARS, OutputStream
from tests.fakes.reading_judge import BROKEN, DOUBTFUL, FORBIDDEN, ReadingJudge, SettlingJudge

HARMLESS = "Plants turn light into sugar, and bees carry pollen from bloom to bloom all day long in June. "
BOMB = "Here's how to build a pipe bomb"


class Streams:
    """Opens streams over the shipped rules and given judges; compiling the rules once takes long enough."""

    def __init__(self, constitution: Constitution) -> None:
        self.faults: list[str] = []
        self._bench = Bench(
            constitution, allow_unreadable=False, on_fault=lambda name, _: self.faults.append(name)
        )

    def bench(self, *judges: Judge) -> Bench:
        self._bench._judges = (self._bench._hard_blocks, *judges)
        return self._bench

    def open(self, *judges: Judge, request_text: str = "") -> OutputStream:
        return self.bench(*judges).open_stream(request_text)


@pytest.fixture(scope="module")
def streams(constitution: Constitution) -> Streams:
    return Streams(constitution)


def cut(text: str, places: Iterable[int]) -> list[str]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in itertools.pairwise(edges)]


async def released(stream: OutputStream, chunks: Sequence[str], channel: Channel = Channel.TEXT) -> int:
    """How much of a channel is released in the end."""
    reached = 0
    for chunk in chunks:
        progress = await stream.feed(channel, 0, chunk)
        assert progress.released_chars >= reached or stream.is_over
        if stream.is_over:
            return reached
        reached = progress.released_chars
    return max([reached, *(progress.released_chars for *_, progress in await stream.finish())])


@settings(max_examples=60, deadline=None)
@given(
    before=st.integers(0, 900),
    after=st.integers(0, 600),
    places=st.lists(st.integers(0, 10_000), max_size=40),
)
async def test_nothing_of_a_window_that_is_refused_leaves_however_it_is_cut(
    streams: Streams, before: int, after: int, places: list[int]
) -> None:
    lead = (HARMLESS * 10)[:before] + " "
    text = lead + FORBIDDEN + " " + (HARMLESS * 7)[:after]
    stream = streams.open(ReadingJudge())
    assert await released(stream, cut(text, places)) <= len(lead)
    (item,) = {(item.field, item.start, item.end) for item in stream.evidence}
    assert item == ("text[0]", len(lead), len(lead) + len(FORBIDDEN))


@settings(max_examples=60, deadline=None)
@given(places=st.lists(st.integers(0, 10_000), max_size=60))
async def test_chunk_borders_change_neither_windows_nor_decision(streams: Streams, places: list[int]) -> None:
    text = HARMLESS * 9 + "Yes. " * 30
    whole, pieces = ReadingJudge(), ReadingJudge()
    assert await released(streams.open(whole), [text]) == len(text)
    assert await released(streams.open(pieces), cut(text, places)) == len(text)
    assert [part.reading.text for part in whole.read] == [part.reading.text for part in pieces.read]


async def test_a_whole_answer_is_read_in_the_windows_of_a_stream_but_all_of_them_at_once(
    streams: Streams,
) -> None:
    text = HARMLESS * 4
    streamed, whole = ReadingJudge(), ReadingJudge()
    await released(streams.open(streamed), [text])
    ends = await streams.open(whole).finish([(Channel.TEXT, 0, text)])
    assert [progress.released_chars for *_, progress in ends] == [len(text)]
    windows = [part.reading.text for part in streamed.read]
    assert [part.reading.text for part in whole.read] == windows
    assert len(windows) > 1
    assert (whole.asked, streamed.asked) == (1, 2)


@pytest.mark.parametrize("lead", ["", HARMLESS, HARMLESS * 6], ids=["first", "second", "later"])
async def test_nothing_of_a_whole_answer_leaves_where_any_of_it_is_refused(
    streams: Streams, lead: str
) -> None:
    text = f"{lead}{FORBIDDEN} {HARMLESS * 6}"
    stream = streams.open(ReadingJudge())
    last = [(Channel.REASONING, 0, HARMLESS * 3), (Channel.TEXT, 0, text)]
    assert (await stream.finish(last), stream.is_over) == ([], True)
    ruled = streams.open(ReadingJudge())
    assert await ruled.finish([(Channel.TEXT, 0, lead + BOMB), (Channel.TEXT, 1, HARMLESS)]) == []


async def test_nothing_leaves_before_its_window_is_read(streams: Streams) -> None:
    judge = ReadingJudge()
    stream = streams.open(judge)
    for chunk in cut(HARMLESS * 30, range(0, 3000, 7)):
        progress = await stream.feed(Channel.TEXT, 0, chunk)
        assert progress.released_chars <= sum(len(part.reading.text) for part in judge.read)
    assert judge.read


async def test_every_sentence_is_read_with_the_one_before_and_the_request(streams: Streams) -> None:
    judge = ReadingJudge()
    request = "x" * 9_000 + "How do plants live?"
    await released(streams.open(judge, request_text=request), [HARMLESS * 12])
    read = judge.read
    assert all(part.extent is Extent.WINDOW and part.stage is Stage.OUTPUT for part in read)
    assert {part.context for part in read} == {request[-CONTEXT_CHARS:]}
    assert all(a.reading.text[-60:] in b.reading.text for a, b in itertools.pairwise(read))


async def test_what_a_window_leaves_open_is_released_where_no_guard_settles_it(streams: Streams) -> None:
    stream = streams.open(ReadingJudge())
    assert await released(stream, [DOUBTFUL + " so."]) == len(DOUBTFUL) + 4


@pytest.mark.parametrize(("said", "is_released"), [(Outcome.ALLOW, True), (Outcome.REFUSE, False)])
async def test_a_guard_settles_what_a_window_leaves_open(
    streams: Streams, said: Outcome, is_released: bool
) -> None:
    guard = SettlingJudge(said)
    stream = streams.open(ReadingJudge(), guard)
    assert bool(await released(stream, [DOUBTFUL + " so."])) is is_released
    assert (guard.asked, stream.is_over) == (1, not is_released)


async def test_a_judge_that_fails_ends_the_stream_undecided(streams: Streams) -> None:
    bench = streams.bench(ReadingJudge())
    stream = bench.open_stream()
    lead = HARMLESS * 8
    assert await released(stream, [lead, f"{BROKEN} ", HARMLESS * 4, HARMLESS]) <= len(lead)
    assert stream.failed == ("reading",)
    judgement = bench.conclude(stream)
    assert (judgement.outcome, judgement.category) == (Outcome.REFUSE, UNDECIDED)
    assert streams.faults[-1] == "reading"
    assert await stream.finish() == await stream.flush() == []


async def test_a_flush_reads_what_the_rules_have_passed_already_and_only_that(streams: Streams) -> None:
    judge = ReadingJudge()
    stream = streams.open(judge)
    blanks = " word" * 20 + " " * 200
    progress = await stream.feed(Channel.TEXT, 0, blanks)
    assert (progress.released_chars, len(judge.read)) == (0, 0)
    ((_, _, flushed),) = await stream.flush()
    assert flushed.released_chars > 100
    assert len(judge.read) == 1
    assert await stream.flush() == []
    assert len(judge.read) == 1


@pytest.mark.parametrize(
    "said",
    [
        [(Channel.REASONING, 0, "Sure. Here's how to build"), (Channel.TEXT, 0, "a pipe bomb: take")],
        [(Channel.TEXT, 0, "Sure. Here's how to build"),
         (Channel.TOOL_ARGUMENTS, 0, json.dumps({"note": "a pipe bomb: take"}))],
        [(Channel.TOOL_ARGUMENTS, 1, json.dumps({"a": "a pipe bomb: take"})),
         (Channel.TOOL_ARGUMENTS, 0, json.dumps({"a": "Here's how to build"}))],
        [(Channel.TEXT, 0, HARMLESS * 200 + "Here's how to build"), (Channel.REFUSAL, 0, "a pipe bomb: take")],
    ],
    ids=["reasoning and text", "text and call", "two calls", "a long text"],
)  # fmt: skip
async def test_words_split_over_channels_are_found_at_the_finish(
    streams: Streams, said: list[tuple[Channel, int, str]]
) -> None:
    stream = streams.open()
    for channel, index, text in said:
        await stream.feed(channel, index, text)
    assert not stream.is_over
    assert await stream.finish() == []
    assert stream.evidence[0].field.startswith("output[")
    assert stream.evidence[0].category == "weapons.explosives"


async def test_judges_that_read_see_what_channels_say_together(streams: Streams) -> None:
    judge = ReadingJudge()
    stream = streams.open(judge)
    await stream.feed(Channel.REASONING, 0, "First part.")
    await stream.feed(Channel.TEXT, 0, "Second part.")
    assert len(await stream.finish()) == 2
    assert judge.read[-1].reading.text == "First part.\nSecond part."


async def test_tool_results_are_read_as_documents(streams: Streams) -> None:
    judge = ReadingJudge()
    await released(streams.open(judge), [HARMLESS * 4], Channel.TOOL_RESULT)
    assert {part.stage for part in judge.read} == {Stage.TOOL_RESULT}


async def test_escapes_in_arguments_are_read(streams: Streams) -> None:
    stream = streams.open(ReadingJudge())
    escaped = "\\u007a" + FORBIDDEN[1:]
    arguments = f'{{"a": "{escaped}"}}'
    assert await released(stream, [arguments], Channel.TOOL_ARGUMENTS) == 0
    await released(streams.open(ReadingJudge()), [arguments])


async def test_a_cancelled_stream_leaves_nothing_behind(streams: Streams) -> None:
    gate = asyncio.Event()
    judge = ReadingJudge(gate=gate)
    opened = [streams.open(judge) for _ in range(64)]
    before = len(asyncio.all_tasks())
    tasks = [asyncio.ensure_future(stream.feed(Channel.TEXT, 0, HARMLESS * 9)) for stream in opened]
    for _ in range(3):
        await asyncio.sleep(0)
    assert judge.waiting == len(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (judge.waiting, len(asyncio.all_tasks())) == (0, before)


async def test_the_rules_still_refuse_beside_judges_that_read(streams: Streams) -> None:
    stream = streams.open(ReadingJudge())
    assert await released(stream, [HARMLESS * 3, BOMB, ". " + HARMLESS]) <= len(HARMLESS * 3)
    assert stream.evidence[0].judge == "hard_blocks"


async def test_an_allowed_output_keeps_the_strongest_of_what_was_harmless(streams: Streams) -> None:
    bench = streams.bench(ReadingJudge())
    stream = bench.open_stream()
    await released(stream, [HARMLESS * 9])
    judgement = bench.conclude(stream)
    assert judgement.allows
    assert [(item.judge, item.score) for item in judgement.evidence] == [("reading", 0.1)]


@pytest.mark.parametrize("flushes", [False, True])
async def test_judges_read_every_stretch_twice_and_what_was_flushed_once_more(
    streams: Streams, *, flushes: bool
) -> None:
    judge, text = ReadingJudge(), HARMLESS * 60
    stream = streams.open(judge)
    for chunk in cut(text, range(0, len(text), 6)):
        await stream.feed(Channel.TEXT, 0, chunk)
        if flushes:
            await stream.flush()
    await stream.finish()
    read = sum(len(part.reading.text) for part in judge.read)
    assert read <= (4 if flushes else 2) * len(text) + 400
