"""Judge lines of JSON without a server: `python -m services.ethics.offline < texts.jsonl > verdicts.jsonl`.

Each line `{"id", "text"[, "request"][, "stage"]}` is answered by one line, in order: the verdict of the same judges as
the service's, over a verified constitution, on one core. A line that cannot be judged is answered with an `error` that
names field and cure; it has no outcome. Nothing is signed, recorded or kept.

Exit status: 0 when every line was judged, 1 when some were not, 2 when no judging was possible at all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal

from kala.errors import InvalidArgumentError, KalaError
from kala.ethics.constitution import Trust, VerifiedConstitution, verify_constitution
from kala.ethics.lanes import MAX_LINE_BYTES, failure, read_lines

if TYPE_CHECKING:
    from services.ethics.action_text import Text
    from services.ethics.bench import Bench
    from services.ethics.judge import Ratings
    from services.ethics.judgement import Judgement, OnFault

MAX_TEXT_CHARS: Final = 1_048_576
"""As the service's own limit for a text."""

EXIT_OK: Final = 0
EXIT_SOME_FAILED: Final = 1
EXIT_CANNOT_START: Final = 2

StageName = Literal["request", "output", "tool_result"]
STAGES: Final[tuple[StageName, ...]] = ("request", "output", "tool_result")
_HERE: Final = Path(__file__).resolve()
_PACKAGED: Final = _HERE.parent / "constitution"
_REPOSITORY: Final = _HERE.parents[2] / "constitution"


@dataclass(frozen=True, slots=True)
class Question:
    """One text to judge; `request` is what an output answers, empty when unknown."""

    id: str | int
    text: str
    stage: StageName
    request: str = ""


@dataclass(frozen=True, slots=True)
class Form:
    """How lines are answered: the stage of those that name none, and how much is said of each."""

    stage: StageName
    explains: bool = False
    is_brief: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Judge standard input; returns the exit status."""
    # Whoever stops the caller stops this too, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    arguments = parser().parse_args(argv)
    try:
        judge = open_judge(verified_by(arguments))
    except (KalaError, ModuleNotFoundError) as error:
        _say(_start_problem(error))
        return EXIT_CANNOT_START
    with asyncio.Runner() as runner:
        form = Form(arguments.stage, arguments.explain, arguments.brief)
        return runner.run(_answer_all(judge, sys.stdin.buffer, sys.stdout.buffer, form))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m services.ethics.offline", description=__doc__)
    add_source_options(made)
    made.add_argument("--stage", choices=STAGES, default="request", help="of lines that name none")
    said = made.add_mutually_exclusive_group()
    said.add_argument("--explain", action="store_true", help="add views, evidence, path and message")
    said.add_argument("--brief", action="store_true", help="leave out the scores by law, which cost time")
    return made


def add_source_options(made: argparse.ArgumentParser) -> None:
    """The options that say by which constitution is judged, and who must have signed it."""
    made.add_argument(
        "--constitution", type=Path, help="directory; unset takes the packaged one, or the repository's"
    )
    made.add_argument("--trust", choices=("pinned", "development"), help="unset: see the trusted keys")
    made.add_argument("--trusted-key", type=Path, action="append", default=[], help="PEM; may be repeated")
    made.add_argument("--threshold", type=int, help="how many trusted keys must have signed")


def verified_by(arguments: argparse.Namespace) -> VerifiedConstitution:
    """The constitution that the arguments name; a warning goes with one that only the public key has signed."""
    directory = arguments.constitution or (_PACKAGED if _PACKAGED.is_dir() else _REPOSITORY)
    verified = verify_constitution(directory, _trust(arguments))
    if verified.banner is not None:
        _say(verified.banner)
    return verified


def _trust(arguments: argparse.Namespace) -> Trust:
    mode = arguments.trust
    if mode is None and arguments.trusted_key:
        mode = "pinned"
    if mode is None:
        if arguments.constitution is not None:
            raise InvalidArgumentError("--trust", "name the --trusted-key files, or say --trust development")
        # The laws that KALA ships are signed by its public key; nothing follows from a verdict but its banner.
        mode = "development"
    if mode == "pinned":
        return Trust.pinned(*arguments.trusted_key, threshold=arguments.threshold)
    if arguments.trusted_key or arguments.threshold is not None:
        raise InvalidArgumentError("--trusted-key", "goes with --trust pinned; development trusts one key")
    return Trust.development()


class OfflineJudge:
    """The bench of the service, with what it says as plain values."""

    def __init__(self, bench: Bench, on_fault: OnFault) -> None:
        self._bench = bench
        self._on_fault = on_fault

    async def answer(self, data: bytes, form: Form) -> dict[str, Any]:
        """The line that answers this one; Any: what JSON holds."""
        from services.ethics.verdict import is_silent, laws_of, reasons_of, verdict_of

        line_id: str | int | None = None
        try:
            document = read_document(data)
            line_id = read_id(document)
            question = read_question(document, line_id, form.stage)
        except InvalidArgumentError as error:
            return dict(failure(error.problem, error.field, line_id=line_id))
        began = time.perf_counter_ns()
        judgement = await self.judge(question)
        elapsed = time.perf_counter_ns() - began
        ratings = None if form.is_brief and not is_silent(judgement) else await self._rate(question)
        verdict = verdict_of(question.id, judgement, ratings, elapsed)
        if not form.is_brief:
            verdict["laws"] = laws_of(judgement, ratings, self._bench.constitution.laws)
        return verdict | (reasons_of(judgement, self._bench.views(question.text)) if form.explains else {})

    async def judge(self, question: Question) -> Judgement:
        """The decision that the service would come to: of an output, by the check that its stream goes through."""
        if question.stage == "output":
            return await self._bench.judge_output(question.text, question.request)
        return await self._bench.judge([self._text(question)])

    async def _rate(self, question: Question) -> Ratings | None:
        try:
            return await self._bench.rate(self._text(question))
        except Exception as error:  # noqa: BLE001 - ratings decide nothing; the judgement stands without them
            self._on_fault("ratings", error)
            return None

    def _text(self, question: Question) -> Text:
        from services.ethics.action_text import Text
        from services.ethics.judge import Stage

        return Text("text", Stage(question.stage), question.text, context=question.request)


def open_judge(verified: VerifiedConstitution) -> OfflineJudge:
    """The judges over a verified constitution, ready; ModuleNotFoundError when their extra is not installed."""
    from services.ethics.seating import seat_judges

    on_fault = _Faults()
    return OfflineJudge(seat_judges(verified, allow_unreadable=False, on_fault=on_fault, workers=1), on_fault)


def read_document(data: bytes) -> dict[str, Any]:
    """The JSON object of a line; Any: its values are checked by those who read them."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError("line", f"must be a JSON object in UTF-8: {error}") from None
    if not isinstance(document, dict):
        raise InvalidArgumentError("line", 'must be a JSON object, such as {"id": 1, "text": "…"}')
    return document


def read_id(document: dict[str, Any]) -> str | int:  # Any: see read_document
    """The id, which names the line in its answer."""
    found = document.get("id")
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise InvalidArgumentError("id", "must be a text or a whole number")
    return found


def read_question(
    document: Mapping[str, Any], line_id: str | int, stage: StageName
) -> Question:  # Any: the same
    """What the line asks; further fields are left alone, for data sets carry their own."""
    named = document.get("stage") or stage
    if named not in STAGES:
        raise InvalidArgumentError("stage", f"must be one of {', '.join(STAGES)}")
    text = _read_text(document.get("text"), "text")
    if not text:
        raise InvalidArgumentError("text", f"must have 1 to {MAX_TEXT_CHARS} characters")
    return Question(line_id, text, named, _read_text(document.get("request") or "", "request"))


def _read_text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise InvalidArgumentError(field, "must be a text")
    if len(value) > MAX_TEXT_CHARS:
        raise InvalidArgumentError(field, f"must have at most {MAX_TEXT_CHARS} characters")
    return value


async def _answer_all(judge: OfflineJudge, lines: BinaryIO, answers: BinaryIO, form: Form) -> int:
    failed = 0
    for line in read_lines(lines):
        if line.data is None:
            answer = dict(failure(f"must be at most {MAX_LINE_BYTES} bytes", "line"))
        else:
            answer = await judge.answer(line.data, form)
        failed += "error" in answer
        # ASCII: a lone surrogate in an id has no other form, and no reader is in doubt about the encoding.
        answers.write(json.dumps(answer).encode("ascii") + b"\n")
        answers.flush()
    if failed:
        _say(f"{failed} lines were not judged")
    return EXIT_SOME_FAILED if failed else EXIT_OK


class _Faults:
    """Tells of each kind of fault once; the verdict it leads to is REFUSE each time."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    def __call__(self, judge: str, error: Exception) -> None:
        kind = (judge, type(error).__name__)
        if kind not in self._told:
            self._told.add(kind)
            _say(f"{judge} failed; what a judge fails on is refused: {kind[1]}: {error}")


def _start_problem(error: KalaError | ModuleNotFoundError) -> str:
    if isinstance(error, KalaError):
        return " ".join(error.message.split())
    return f"judging here needs {error.name}, which is not installed: pip install '.[ethics]'"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
