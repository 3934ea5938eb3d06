"""`kala ethics score` and `kala ethics eval`: judge files of texts, on all cores of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final

import typer

from kala.cli.options import (
    ConstitutionOption,
    DevelopmentOption,
    KeyOption,
    StateOption,
    ThresholdOption,
    TrustedKeysOption,
    UrlOption,
    WorkersOption,
    offline_of,
)
from kala.cli.output import console, note
from kala.errors import InvalidArgumentError

if TYPE_CHECKING:
    from kala.ethics.lanes import Answer

EVALUATION_MODULE: Final = "services.ethics.evaluation"
EXIT_SOME_FAILED: Final = 1
"""All that could be judged was judged and written; some lines could not."""

STANDARD_STREAM: Final = Path("-")
MAX_REPORTED: Final = 20
"""More bad lines than this are counted; the output has each of them."""

_SHOWN_FIELDS: Final = ("id", "outcome", "law", "score", "elapsed_ms")
_LINES_PER_UPDATE: Final = 32


def score(
    *,
    source: Annotated[
        Path,
        typer.Option("--input", help='Lines {"id", "text"[, "request"]} of JSON; - reads standard input.'),
    ],
    target: Annotated[
        Path,
        typer.Option(
            "--output",
            help='Lines {"id", "outcome", "law", "score", "elapsed_ms"}, in order; - writes standard output.',
        ),
    ],
    stage: Annotated[
        str, typer.Option(help="Of lines that name none: request, output or tool_result.")
    ] = "request",
    workers: WorkersOption = None,
    constitution: ConstitutionOption = None,
    trusted_key: TrustedKeysOption = None,
    threshold: ThresholdOption = None,
    development: DevelopmentOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> int:
    """Judge every line of a file; exit code 1 when some could not be judged, which have an "error" and no outcome.

    Judged on all cores of this machine, or with --url, --key or --state by a running suite.
    """
    from kala.cli.ethics_lanes import Elsewhere, open_lanes
    from kala.ethics.lanes import judge_in_lanes, read_lines

    offline = offline_of(constitution, trusted_key, threshold, development=development)
    elsewhere = Elsewhere(url, key, state)
    summary = _Summary()
    with (
        _opened(source) as lines,
        _written(target) as answers,
        _progress(source) as advance,
        open_lanes(offline, elsewhere, stage=stage, workers=workers) as lanes,
    ):
        for answer in judge_in_lanes(read_lines(lines), lanes):
            answers.write(_line(answer))
            summary.count(answer)
            advance(answer.line.size_bytes)
    summary.tell()
    return EXIT_SOME_FAILED if summary.failed else 0


def evaluate(
    sets: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of labelled sets, *.jsonl.")],
    *,
    report: Annotated[Path, typer.Option("--output", help="Directory that the report is written to.")],
    workers: WorkersOption = None,
    constitution: ConstitutionOption = None,
    trusted_key: TrustedKeysOption = None,
    threshold: ThresholdOption = None,
    development: DevelopmentOption = False,
) -> int:
    """Judge labelled sets and report how well: report.json, report.html, evaluation.md and reliability.png."""
    offline = offline_of(constitution, trusted_key, threshold, development=development)
    command = [sys.executable, "-m", EVALUATION_MODULE, str(sets), "--out", str(report), *offline.arguments]
    command += [] if workers is None else ["--workers", str(workers)]
    status = subprocess.run(command, check=False).returncode  # noqa: S603 - this interpreter and our own module
    # Its last line has said why; 2 would be this command line's word for wrong usage.
    return 1 if status else 0


class _Summary:
    """What came of all lines."""

    def __init__(self) -> None:
        self.failed = 0
        self._outcomes: Counter[str] = Counter()
        self._began = time.monotonic()

    def count(self, answer: Answer) -> None:
        """Count one answer, and report it when it is none."""
        if not answer.failed:
            self._outcomes[answer.verdict["outcome"]] += 1
            return
        self.failed += 1
        if self.failed <= MAX_REPORTED:
            error = answer.verdict["error"]
            field = f"{error['field']}: " if error["field"] else ""
            note(f"line {answer.line.number}: {field}{error['problem']}")

    def tell(self) -> None:
        """Say it."""
        if self.failed > MAX_REPORTED:
            note(f"… and {self.failed - MAX_REPORTED} lines more, each with its error in the output")
        judged = sum(self._outcomes.values())
        outcomes = ", ".join(f"{count} {name}" for name, count in sorted(self._outcomes.items())) or "none"
        note(f"{judged} judged ({outcomes}), {self.failed} not, in {time.monotonic() - self._began:.1f} s")


def _line(answer: Answer) -> bytes:
    verdict = answer.verdict
    if answer.failed:
        fields = {"id": verdict["id"], "line": answer.line.number, "error": verdict["error"]}
    else:
        fields = {name: verdict[name] for name in _SHOWN_FIELDS}
    return json.dumps(fields).encode("ascii") + b"\n"


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if path == STANDARD_STREAM:
        yield sys.stdin.buffer
        return
    try:
        stream = path.open("rb")
    except OSError as error:
        raise InvalidArgumentError("--input", f"{path} cannot be read: {error.strerror}") from error
    with stream:
        yield stream


@contextmanager
def _written(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content is at `path` when all of it is written, and not before."""
    if path == STANDARD_STREAM:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if path.is_dir():
        raise InvalidArgumentError("--output", f"{path} is a directory; name a file")
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise InvalidArgumentError("--output", f"{path} cannot be written: {error.strerror}") from error
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


def _umask() -> int:
    """What this process takes away from new files; reading it means setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextmanager
def _progress(source: Path) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; what it gives takes the bytes of each line that is done."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    screen = console(to_stderr=True)
    size = None if source == STANDARD_STREAM else source.stat().st_size
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[lines]} lines"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("", total=size, lines=0)
        lines = pending = 0

        def advance(size_bytes: int) -> None:
            nonlocal lines, pending
            lines, pending = lines + 1, pending + size_bytes
            if lines % _LINES_PER_UPDATE == 0:
                bar.update(task, advance=pending, lines=lines)
                pending = 0

        yield advance
