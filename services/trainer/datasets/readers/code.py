"""Source files with their documentation, and pairs of files before and after a fix, from single files and archives."""

from __future__ import annotations

import ast
import re
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, BinaryIO, Final, Self

from services.trainer.datasets.problems import (
    EMPTY,
    FILE_DAMAGED,
    FILE_EMPTY,
    NOT_UTF8,
    TOO_LONG,
    WRONG_VALUE,
    FileError,
    Found,
    RowError,
)
from services.trainer.datasets.readers.exercises import bug_fix
from services.trainer.datasets.readers.fields import answered
from services.trainer.datasets.readers.spool import Place, Spool
from services.trainer.datasets.rows import Row

MAX_FILE_BYTES: Final = 1024 * 1024
MAX_MEMBERS: Final = 1_000_000
_MIN_DOC: Final = 20
"""Shorter descriptions ("Run it.") do not say what code they belong to."""
_MAX_CODE: Final = 20_000
_MAX_NAME: Final = 1024
_MAX_DESCRIPTION: Final = 1024 * 1024
"""Long names and attributes of an entry, which tarfile reads whole."""
_DESCRIBING: Final = frozenset(
    {
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    }
)
_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_TAR: Final = (".tar", ".tar.gz", ".tgz")
_BEFORE: Final = frozenset({"before", "buggy", "python_programs", "java_programs"})
_AFTER: Final = frozenset({"after", "fixed", "correct_python_programs", "correct_java_programs"})
_LANGUAGES: Final = {".py": "python", ".java": "java", ".js": "javascript", ".ts": "typescript", ".go": "go",
                     ".rs": "rust", ".c": "c", ".cpp": "cpp", ".rb": "ruby", ".sh": "bash"}  # fmt: skip


def is_archive(name: str) -> bool:
    """Says whether a file's name is an archive's."""
    return name.lower().endswith(_TAR)


def read_code(stream: BinaryIO, name: str) -> Iterator[Found]:
    """Yields one row for each documented Python function of a file or archive, numbered by its line."""
    found = False
    for path, source in _sources(stream, name):
        if isinstance(source, RowError):
            yield Found(1, problem=source, file=path)
            continue
        for row in _functions(path, source):
            found = True
            yield row
    if not found:
        raise FileError(FILE_EMPTY, "it holds no documented Python function")


def read_pairs(stream: BinaryIO, name: str) -> Iterator[Found]:
    """Yields files of an archive that lie under the same name in a folder before and one after the fix."""
    with Spool() as spool:
        yield from _pairs(stream, name, spool)


def _pairs(stream: BinaryIO, name: str, spool: Spool) -> Iterator[Found]:
    halves: dict[tuple[str, str], dict[str, Place]] = {}
    number = 0
    for path, source in _sources(stream, name):
        side, key = _side(path)
        if not side:
            continue
        if isinstance(source, RowError):
            yield Found(number + 1, problem=source, file=path)
            continue
        pair = halves.setdefault(key, {})
        pair[side] = spool.write(source)
        if len(pair) == 2:  # noqa: PLR2004 - both sides
            number += 1
            yield _pair(number, path, {each: spool.read(place) for each, place in halves.pop(key).items()})
    if not number:
        raise FileError(FILE_EMPTY, "it holds no file both before and after a fix")


def _pair(number: int, path: str, pair: dict[str, str]) -> Found:
    language = _LANGUAGES.get(PurePosixPath(path).suffix.lower(), "")
    try:
        return Found(number, bug_fix(pair["before"], pair["after"], "", language), file=path)
    except RowError as problem:
        return Found(number, problem=problem, file=path)


def _side(path: str) -> tuple[str, tuple[str, str]]:
    """Returns "before", "after" or nothing, and what both sides of a pair share of their names."""
    parts = PurePosixPath(path).parts
    for index, part in enumerate(parts[:-1]):
        side = "before" if part.lower() in _BEFORE else "after" if part.lower() in _AFTER else ""
        if side:
            return side, ("/".join(parts[:index]), "/".join(parts[index + 1 :]))
    return "", ("", "")


def _sources(stream: BinaryIO, name: str) -> Iterator[tuple[str, str | RowError]]:
    """Yields names and texts; of an archive those of its plain files, never what a link or device stands for."""
    if not is_archive(name):
        yield name, _text(stream)
        return
    try:
        # A stream of an archive that is unpacked already: nothing is ever written to disk.
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member, errors="replace") as archive:
            for count, member in enumerate(iter(archive.next, None)):
                if count >= MAX_MEMBERS:
                    raise FileError(FILE_DAMAGED, f"the archive has more than {MAX_MEMBERS:,} entries")
                # The archive would remember every member: a kilobyte each.
                archive.members.clear()  # type: ignore[attr-defined]  # known to tarfile, not to its stubs
                if not member.isreg() or PurePosixPath(member.name).suffix.lower() not in _LANGUAGES:
                    continue
                opened = archive.extractfile(member)
                if opened is not None:
                    yield _shown(member.name), _text(opened)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise FileError(FILE_DAMAGED, f"the archive cannot be read: {error}") from error


def _shown(name: str) -> str:
    """Returns a member's name, or its end, as it may be told and kept; an archive may hold any bytes as one."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in name[-_MAX_NAME:])


class _Member(tarfile.TarInfo):
    """A member's header: a damaged one ends the reading loudly, and what it says of itself is bounded."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Raises FileError for what tarfile takes for the archive's end, or would read into memory whole."""
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            # Two blocks of zeros are the end; all else is cut or damaged, and rows after it would be missing.
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise
            raise FileError(FILE_DAMAGED, f"the archive is cut or damaged: {error}") from error
        if member.type in _DESCRIBING and member.size > _MAX_DESCRIPTION:
            raise FileError(FILE_DAMAGED, f"the archive describes an entry in {member.size:,} bytes")
        return member


def _text(stream: BinaryIO | IO[bytes]) -> str | RowError:
    data = stream.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        return RowError(TOO_LONG, f"the file has more than {MAX_FILE_BYTES:,} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return RowError(NOT_UTF8, f"byte {error.start + 1} of the file is not UTF-8")
    return text if text.strip() else RowError(EMPTY, "the file is empty")


def _functions(path: str, source: str) -> Iterator[Found]:
    """Yields documented functions: the description asks, the function without it answers."""
    if PurePosixPath(path).suffix.lower() != ".py":
        return
    try:
        with warnings.catch_warnings():
            # What a stranger's code warns about is not ours to tell.
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        yield Found(
            line, problem=RowError(WRONG_VALUE, f"it is no Python of today: {error}"[:160]), file=path
        )
        return
    # As Python counts lines: a form feed or U+2028 ends none.
    lines = _LINE_END.split(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            row = _function(path, lines, node)
            if row is not None:
                yield Found(node.lineno, row, file=path)


def _function(path: str, lines: list[str], node: ast.FunctionDef | ast.AsyncFunctionDef) -> Row | None:
    described = ast.get_docstring(node)
    if described is None or len(described) < _MIN_DOC or len(node.body) == 1:
        return None
    if sum(len(line) + 1 for line in lines[node.lineno - 1 : node.end_lineno]) > _MAX_CODE:
        return None
    body = node.body[1]
    # Decorators of the next statement belong to it; the signature ends where the description begins.
    first = min([body.lineno, *(each.lineno for each in getattr(body, "decorator_list", []))])
    head = lines[node.lineno - 1 : node.body[0].lineno - 1]
    rest = lines[first - 1 : node.end_lineno]
    if not head:
        return None
    indent = len(lines[node.lineno - 1]) - len(lines[node.lineno - 1].lstrip())
    text = "\n".join(line[indent:] if not line[:indent].strip() else line for line in [*head, *rest])
    asked = f"Write the Python function `{node.name}`:\n{described}"
    return answered("code", asked, f"```python\n{text.rstrip()}\n```", {"path": path})
