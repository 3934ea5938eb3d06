"""Judge labelled sets and report: `python -m services.ethics.evaluation DIR --out REPORT`; also `kala ethics eval`.

Exit status: 0 when every text was judged, 1 when some were not (the report lists them), 2 when there is no report.
"""

from __future__ import annotations

import argparse
import datetime as dt
import io
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import track

from kala.errors import FailedPreconditionError, InvalidArgumentError, KalaError
from kala.ethics.constitution import VerifiedConstitution
from kala.ethics.lanes import Answer, judge_in_lanes, read_lines
from kala.ethics.workers import Offline, Worker, cores
from services.ethics.evaluation import pages
from services.ethics.evaluation.drawing import reliability_png
from services.ethics.evaluation.figures import Judged, figures_of
from services.ethics.evaluation.report import About, Report, as_json, tables
from services.ethics.evaluation.sets import Item, LabelledSet, line_of, read_sets
from services.ethics.offline import (
    EXIT_CANNOT_START,
    EXIT_OK,
    EXIT_SOME_FAILED,
    add_source_options,
    verified_by,
)

CLASSIFIER_PREFIX: Final = "classifier/"
JSON_NAME: Final = "report.json"
HTML_NAME: Final = "report.html"
MARKDOWN_NAME: Final = "evaluation.md"
PNG_NAME: Final = "reliability.png"


def main(argv: Sequence[str] | None = None) -> int:
    """Judge, count and write the report; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m services.ethics.evaluation", description=__doc__)
    parser.add_argument("sets", type=Path, metavar="DIR", help="directory of labelled sets, *.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="directory that the report is written to")
    parser.add_argument("--workers", type=int, default=cores(), help="processes that judge at once")
    add_source_options(parser)
    arguments = parser.parse_args(argv)
    try:
        report = evaluate(arguments)
        write(report, arguments.out)
    except KalaError as error:
        _say(error.message)
        return EXIT_CANNOT_START
    if report.errors:
        _say(f"{len(report.errors)} texts were not judged; {arguments.out / JSON_NAME} lists them")
    return EXIT_SOME_FAILED if report.errors else EXIT_OK


def evaluate(arguments: argparse.Namespace) -> Report:
    """The report on these sets; KalaError when nothing could be judged."""
    sets = read_sets(arguments.sets)
    verified = verified_by(arguments)
    offline = Offline(
        arguments.constitution, arguments.trust, tuple(arguments.trusted_key), arguments.threshold
    )
    items = {item.id: item for found in sets for item in found.items}
    answers = _answers(list(items.values()), offline, max(arguments.workers, 1))
    errors = {
        item.id: answer.verdict["error"]["problem"]
        for item, answer in zip(items.values(), answers, strict=True)
        if answer.failed
    }
    judged = {
        item.id: _judged(item, answer)
        for item, answer in zip(items.values(), answers, strict=True)
        if not answer.failed
    }
    if not judged:
        raise FailedPreconditionError(f"no text could be judged: {next(iter(errors.values()))}")
    by_set = {found.name: [judged[item.id] for item in found.items if item.id in judged] for found in sets}
    judges = next(tuple(answer.verdict["judges"]) for answer in answers if not answer.failed)
    return Report(_about(verified, judges, sets), figures_of(by_set), tuple(judged.values()), errors)


def write(report: Report, directory: Path) -> None:
    """Write all files of the report; a note says what was left out and why."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        drawing: bytes | None = None
        try:
            drawing = reliability_png(report.figures.reliability)
            (directory / PNG_NAME).write_bytes(drawing)
        except FailedPreconditionError as error:
            _say(error.message)
        shown = tables(report)
        (directory / JSON_NAME).write_text(json.dumps(as_json(report), indent=2) + "\n")
        (directory / MARKDOWN_NAME).write_text(pages.markdown(shown), encoding="utf-8")
        (directory / HTML_NAME).write_text(pages.page(shown, drawing), encoding="utf-8")
    except OSError as error:
        raise InvalidArgumentError("--out", f"{directory} cannot be written: {error.strerror}") from error
    sys.stdout.write(f"{directory / MARKDOWN_NAME}\n")


def _answers(items: Sequence[Item], offline: Offline, workers: int) -> list[Answer]:
    """The judges' answers, in the order of the items."""
    said: set[str] = set()

    def say_once(text: str) -> None:
        if text not in said:
            said.add(text)
            _say(text)

    # Whoever calls has shown the banner; each process would say it again.
    with ExitStack() as stack:
        lanes = [Worker(offline, say=say_once) for _ in range(workers)]
        for lane in lanes:
            stack.callback(lane.close)
        lines = read_lines(io.BytesIO(b"".join(map(line_of, items))))
        screen = Console(stderr=True)
        return list(
            track(
                judge_in_lanes(lines, lanes),
                description="judging",
                total=len(items),
                console=screen,
                disable=not screen.is_terminal,
                transient=True,
            )
        )


def _judged(item: Item, answer: Answer) -> Judged:
    verdict = answer.verdict
    return Judged(
        item, verdict["outcome"], verdict["law"], verdict["category"], verdict["score"], verdict["elapsed_ms"]
    )


def _about(verified: VerifiedConstitution, judges: tuple[str, ...], sets: tuple[LabelledSet, ...]) -> About:
    return About(
        made_on=dt.datetime.now(dt.UTC).date(),
        constitution=verified.version,
        digest=verified.digest.hex(),
        is_development=verified.development,
        files={
            name: promised.sha256.hex()
            for name, promised in verified.manifest.files.items()
            if name.startswith(CLASSIFIER_PREFIX)
        },
        judges=judges,
        sets=sets,
    )


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
