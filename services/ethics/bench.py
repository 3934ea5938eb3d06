"""The bench: one constitution with its judges, ready to judge texts, actions and outputs. Pure but for its clocks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final

from services.ethics.action_text import MESSAGES, Piece, Text, Unreadable
from services.ethics.conversation import Joined
from services.ethics.fold import Folder
from services.ethics.hard_blocks import INLINE_CHARS, HardBlockJudge, HardBlocks
from services.ethics.judge import Evidence, Extent, Judge, Material, Outcome, Part, Rater, Ratings, Stage
from services.ethics.judgement import Judgement, OnFault, decide, judge_material
from services.ethics.laws import Constitution
from services.ethics.messages import UNREADABLE
from services.ethics.output_check import Channel, OutputCheck, hold_back_chars
from services.ethics.output_stream import OutputStream, StretchReader
from services.ethics.texts import language_of
from services.ethics.views import Reader, View

PARTS_JUDGE: Final = "parts"


class Bench:
    """Judges by one constitution. Further judges (a classifier, a guard model) come after the hard blocks."""

    def __init__(
        self,
        constitution: Constitution,
        *,
        further_judges: Sequence[Judge] = (),
        rater: Rater | None = None,
        allow_unreadable: bool,
        on_fault: OnFault,
    ) -> None:
        self.constitution = constitution
        self._folder = Folder(constitution.look_alikes)
        self._reader = Reader(self._folder)
        self._rules = HardBlocks(constitution.blocks)
        self._hold_back = {stage: hold_back_chars(constitution.blocks, stage) for stage in Stage}
        self._hard_blocks = HardBlockJudge(self._rules)
        self._judges: tuple[Judge, ...] = (self._hard_blocks, *further_judges)
        self._rater = rater
        self._allow_unreadable = allow_unreadable
        self._on_fault = on_fault

    @property
    def judges(self) -> tuple[str, ...]:
        """The judges' names, in the order in which they are asked."""
        return tuple(judge.name for judge in self._judges)

    @property
    def seated(self) -> tuple[Judge, ...]:
        """The judges themselves, in the same order."""
        return self._judges

    async def judge(
        self, pieces: Iterable[Piece], judges: Sequence[Judge] | None = None, *, is_strict: bool = False
    ) -> Judgement:
        """The decision over all pieces together, by its own judges unless a replay names others.

        `is_strict` asks back about everything that judges leave open, as after untrusted content.
        """
        pieces = tuple(pieces)
        texts = [piece for piece in pieces if isinstance(piece, Text)]
        unread = [self._unread(piece) for piece in pieces if isinstance(piece, Unreadable)]
        return await judge_material(
            await self._material(texts),
            self._judges if judges is None else judges,
            self.constitution,
            self._on_fault,
            evidence=unread,
            language=language_of(_asked(texts), self.constitution.languages),
            is_strict=is_strict,
        )

    async def rate(self, text: Text) -> Ratings | None:
        """How strongly each law speaks against a text, whatever the decision; None without a judge that says so."""
        return None if self._rater is None else await self._rater.rate(await self._material([text]))

    def views(self, text: str) -> tuple[View, ...]:
        """In which ways a text is read, for an explanation."""
        return self._reader.read(text).views

    def open_check(self) -> OutputCheck:
        """The check of one output."""
        return OutputCheck(self._rules, self._folder, self._hold_back)

    def open_stream(self, request_text: str = "") -> OutputStream:
        """The check of one output by all judges; `request_text` is what it answers."""
        reading = self._judges[1:]
        read = StretchReader(reading, self._reader, request_text, self._on_fault) if reading else None
        language = language_of(request_text, self.constitution.languages)
        return OutputStream(self.open_check(), read, self._read_joins, language)

    async def judge_output(self, text: str, request_text: str = "") -> Judgement:
        """The decision over a whole output, as if it had come as a stream."""
        stream = self.open_stream(request_text)
        await stream.feed(Channel.TEXT, 0, text)
        await stream.finish()
        return self.conclude(stream)

    def conclude(self, stream: OutputStream) -> Judgement:
        """The decision over an output as far as it came; never ALLOW where a judge failed."""
        results = {item.field for item in stream.evidence if item.field.startswith(Channel.TOOL_RESULT.value)}
        return decide(
            stream.evidence,
            self.constitution,
            judges=self.judges,
            failed=stream.failed,
            parts=stream.channels,
            language=stream.language,
            documents=results,
        )

    def _read_joins(self, joins: Sequence[Joined]) -> list[Evidence]:
        texts = [Text(join.field, join.stage, join.text, join.extent, join.borders) for join in joins]
        return self._hard_blocks.judge_now(self._read(texts))

    async def _material(self, texts: Sequence[Text]) -> Material:
        if sum(len(text.text) for text in texts) > INLINE_CHARS:
            return await asyncio.to_thread(self._read, texts)
        return self._read(texts)

    def _read(self, texts: Sequence[Text]) -> Material:
        return Material(
            tuple(
                Part(
                    text.field,
                    text.stage,
                    self._reader.read(text.text),
                    text.extent,
                    text.borders,
                    # Only what answers a request has one before it; beside a request it could say it is harmless.
                    "" if text.stage is Stage.REQUEST else text.context,
                )
                for text in texts
            )
        )

    def _unread(self, piece: Unreadable) -> Evidence:
        outcome = Outcome.ALLOW if self._allow_unreadable else Outcome.REFUSE
        rule = f"unjudged_parts={'allow' if self._allow_unreadable else 'refuse'}"
        return Evidence(PARTS_JUDGE, None, UNREADABLE, outcome, rule, piece.field, 0, 0, piece.kind)


def _asked(texts: Sequence[Text]) -> str:
    """What was asked last, in whose language an answer is: the latest turn of a chat, or whatever else is a request."""
    requests = [text for text in texts if text.stage is Stage.REQUEST and text.extent is Extent.WHOLE]
    turns = [text for text in requests if text.field.startswith(MESSAGES)]
    return (turns or requests or [Text("", Stage.REQUEST, "")])[-1].text
