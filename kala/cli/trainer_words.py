"""How the commands of the trainer say things: states, losses, durations, digests, and bars while something takes long."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kala.cli.output import console

if TYPE_CHECKING:
    from rich.progress import Progress

    from kala.client import KalaClient
    from kala.trainer_calls import Show, Trainer

# Any: JSON of the gateway.
Json = Mapping[str, Any]

_MINUTE: Final = 60
_HOUR: Final = 3600


@contextlib.contextmanager
def trainer_of(url: str | None, key: str | None, state: Path | None) -> Iterator[Trainer]:
    """Open the trainer behind the gateway that a command means."""
    from kala.trainer_calls import Trainer

    with _client(url, key, state) as client:
        yield Trainer(client)


def _client(url: str | None, key: str | None, state: Path | None) -> KalaClient:
    from kala.client import KalaClient
    from kala.target import find_target

    return KalaClient(find_target(url=url, key=key, state=state))


def word(value: object, prefix: str) -> str:
    """Write an enumeration's value as a word: JOB_STATE_TRAINING is "training"."""
    return str(value or "").removeprefix(prefix).lower().replace("_", " ").removeprefix("unspecified")


def number(value: object, digits: int = 4) -> str:
    """Write a number that may be missing."""
    return "" if value is None else f"{float(str(value)):.{digits}f}"


def seconds_of(duration: object) -> float | None:
    """Read a duration of JSON, "12.5s"; None for none."""
    text = str(duration or "").removesuffix("s")
    return float(text) if text else None


def span(seconds: float | None) -> str:
    """Write a span of time for people: "1 h 5 min", "40 s"; empty for none."""
    if seconds is None:
        return ""
    if seconds >= _HOUR:
        return f"{int(seconds // _HOUR)} h {int(seconds % _HOUR // _MINUTE)} min"
    if seconds >= _MINUTE:
        return f"{int(seconds // _MINUTE)} min {int(seconds % _MINUTE)} s"
    return f"{seconds:.0f} s"


def hexadecimal(value: object) -> str:
    """Write the bytes of a digest, which JSON holds in base64."""
    return base64.b64decode(str(value or "")).hex()


def size(value: object) -> str:
    """Write a number of bytes for people."""
    left = float(str(value or 0))
    for unit in ("B", "kB", "MB"):
        if left < 1000:  # noqa: PLR2004 - units go by thousands
            return f"{left:.0f} {unit}" if unit == "B" else f"{left:.1f} {unit}"
        left /= 1000
    return f"{left:.1f} GB"


def when(value: object) -> str:
    """Write a time to the second, in UTC."""
    return str(value or "").partition(".")[0].replace("T", " ").removesuffix("Z")


@contextlib.contextmanager
def bar_of(describe: Callable[[Json], tuple[str, int, int | None]], *, quiet: bool) -> Iterator[Show]:
    """Draw an operation on standard error; `describe` gives words, done and total of its metadata."""
    with _bars(quiet=quiet) as progress:
        task = progress.add_task("waiting", total=None)

        def show(metadata: Json) -> None:
            words, done, total = describe(metadata)
            progress.update(task, description=words, completed=done, total=total)

        yield show


@contextlib.contextmanager
def job_bar(*, quiet: bool) -> Iterator[Callable[[Json], None]]:
    """Draw a job's progress on standard error."""
    with _bars(quiet=quiet) as progress:
        task = progress.add_task("waiting", total=None)

        def show(at: Json) -> None:
            total = int(at.get("total_steps") or 0) or None
            progress.update(task, description=job_words(at), completed=int(at.get("step") or 0), total=total)

        yield show


def job_words(at: Json) -> str:
    """Say how far a job is, in one line."""
    rate = float(at.get("tokens_per_second") or 0)
    left = span(seconds_of(at.get("remaining")))
    parts = (
        word(at.get("state"), "JOB_STATE_"),
        f"loss {number(at['loss'])}" if at.get("loss") is not None else "",
        f"validation {number(at['validation_loss'])}" if at.get("validation_loss") is not None else "",
        f"{rate:.0f} tokens/s" if rate else "",
        f"{left} left" if left else "",
    )
    return ", ".join(part for part in parts if part)


@contextlib.contextmanager
def _bars(*, quiet: bool) -> Iterator[Progress]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(to_stderr=True), transient=True, disable=quiet) as progress:
        yield progress
