"""What the offline commands of `kala audit` are told: keys, checkpoints, and where a log is; and how they end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kala.cli.output import note, show_json
from kala.cli.tool_words import on_one_line

if TYPE_CHECKING:
    from kala.audit.note import Verifier
    from kala.audit.report import TamperedError
    from kala.audit.sources import TileSource
    from kala.errors import KalaError
    from kala.suite.layout import StateLayout

EXIT_TAMPERED: Final = 1
EXIT_UNVERIFIABLE: Final = 2
MAX_SHOWN_CHARS: Final = 2_000
"""Of a problem; `--json` has it whole."""
MAX_TEXT_CHARS: Final = 1 << 22
"""Of a key, checkpoint, certificate or receipt; the largest receipt has a quarter."""
SQLITE_MAGIC: Final = b"SQLite format 3\0"

VkeyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--vkey",
        help="The log's public key, as text or as a file. Default: trust/audit.vkey of --state.",
        show_default=False,
    ),
]
TokenOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        help="File with the token of the log's tiles, for an address without one.",
        show_default=False,
    ),
]
RememberOption = Annotated[
    Path | None,
    typer.Option(
        "--remember",
        help="Hold the log to the checkpoint in this file, if it is there, and keep the newest in it.",
        show_default=False,
    ),
]


def trusted_of(vkeys: list[str] | None, layout: StateLayout) -> list[Verifier]:
    """The keys of the log that a command is told to trust; UnverifiableError when one cannot be read."""
    from kala.audit.note import Verifier
    from kala.audit.report import UnverifiableError
    from kala.errors import VerificationError

    try:
        lines = [vkey_text(given) for given in vkeys or [str(layout.vkey_file)]]
        return [Verifier.parse(line) for text in lines for line in text.splitlines() if line.strip()]
    except VerificationError as error:
        raise UnverifiableError(f"--vkey: {error.message}") from error


def vkey_text(given: str) -> str:
    """A vkey holds at least two plus signs and no slash-separated file of that name exists; all else is a file."""
    if given.count("+") >= 2 and not os.path.exists(given):  # noqa: PLR2004, PTH110 - name+id+key; Path.exists raises for a name that is too long
        return given
    return read_text(Path(given))


def read_text(path: Path) -> str:
    """A text file; UnverifiableError when it is none."""
    from kala.audit.report import UnverifiableError

    try:
        with path.open(encoding="utf-8", newline=None) as file:
            text = file.read(MAX_TEXT_CHARS + 1)
    except OSError as error:
        raise UnverifiableError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UnverifiableError(f"{path} is not text") from error
    if len(text) > MAX_TEXT_CHARS:
        raise UnverifiableError(
            f"{path} has more than {MAX_TEXT_CHARS} characters: it is no key, note or receipt"
        )
    return text


def remembered(path: Path | None) -> str | None:
    """The checkpoint that an earlier run kept in this file, if there is one."""
    return read_text(path) if path is not None and path.exists() else None


def remember(path: Path, checkpoint_note: str) -> None:
    """Keep what was just verified, so that the next run notices a log that was cut or rewritten in between."""
    from kala.suite.layout import write_private_file

    try:
        write_private_file(path, checkpoint_note.encode())
    except OSError as error:
        note(f"the checkpoint could not be kept in {path}: {error.strerror}")


def is_address(log: str) -> bool:
    """Whether a log is named by an address rather than a path."""
    return log.startswith(("http://", "https://"))


def is_database(path: Path) -> bool:
    """Whether a file is an SQLite database."""
    try:
        with path.open("rb") as file:
            return file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC
    except OSError:
        return False


@contextmanager
def tiles_at(log: str, token_file: Path | None) -> Iterator[TileSource]:
    """The tiles behind an address, in a directory, or of an SQLite log; UnverifiableError for anything else."""
    from kala.audit.database_source import DatabaseSource
    from kala.audit.sources import DirectorySource, HttpSource

    if is_address(log):
        token = None if token_file is None else read_text(token_file).strip()
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        with closing(HttpSource(log, headers)) as source:
            yield source
    elif is_database(Path(log)):
        with closing(DatabaseSource(Path(log))) as database:
            yield database
    else:
        yield DirectorySource(Path(log))


def judged(check: Callable[[], int], *, as_json: bool) -> int:
    """Run a check and give its exit code: 1 when the log was tampered with, 2 when that cannot be told, for any reason."""
    from kala.audit.report import TamperedError
    from kala.errors import KalaError

    try:
        return check()
    except TamperedError as error:
        say_tampered(error, as_json=as_json)
        return EXIT_TAMPERED
    except KalaError as error:
        say_bad("unverifiable", error, as_json=as_json)
        return EXIT_UNVERIFIABLE


def say_tampered(error: TamperedError, *, as_json: bool) -> None:
    """Say what was changed, and which entry is the first that cannot be relied on."""
    say_bad("tampered", error, as_json=as_json, first_bad_index=error.first_bad_index)


def say_bad(result: str, error: KalaError, *, as_json: bool, **more: Any) -> None:  # Any: JSON
    """Say how a check failed."""
    if as_json:
        show_json({"result": result, "first_bad_index": None, **more, "problem": error.message})
    else:
        # What is checked may put words into its own verdict, and 34 MB of them.
        message = error.message
        note(
            f"{result}: {on_one_line(message[:MAX_SHOWN_CHARS])}{'…' if len(message) > MAX_SHOWN_CHARS else ''}"
        )
