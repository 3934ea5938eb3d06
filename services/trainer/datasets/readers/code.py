"""Source files with their documentation, and pairs of files before and after a fix, from single files and archives."""

from __future__ import annotations

import ast
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, BinaryIO, Final

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
from services.trainer.datasets.rows import Row

MAX_FILE_BYTES: Final = 1024 * 1024
MAX_MEMBERS: Final = 1_000_000
_MIN_DOC: Final = 20
"""Shorter descriptions ("Run it.") do not say what code they belong to."""
_MAX_CODE: Final = 20_000
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
    halves: dict[tuple[str, str], dict[str, str]] = {}
    number = 0
    for path, source in _sources(stream, name):
        side, key = _side(path)
        if not side:
            continue
        if isinstance(source, RowError):
            yield Found(number + 1, problem=source, file=path)
            continue
        pair = halves.setdefault(key, {})
        pair[side] = source
        if len(pair) == 2:  # noqa: PLR2004 - both sides
            number += 1
            yield _pair(number, path, halves.pop(key))
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
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for count, member in enumerate(archive):
                if count >= MAX_MEMBERS:
                    raise FileError(FILE_DAMAGED, f"the archive has more than {MAX_MEMBERS:,} entries")
                if not member.isreg() or PurePosixPath(member.name).suffix.lower() not in _LANGUAGES:
                    continue
                opened = archive.extractfile(member)
                if opened is not None:
                    yield member.name, _text(opened)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise FileError(FILE_DAMAGED, f"the archive cannot be read: {error}") from error


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
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            row = _function(path, source, node)
            if row is not None:
                yield Found(node.lineno, row, file=path)


def _function(path: str, source: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Row | None:
    described = ast.get_docstring(node)
    code = ast.get_source_segment(source, node) or ""
    if described is None or len(described) < _MIN_DOC or len(node.body) == 1 or len(code) > _MAX_CODE:
        return None
    body = node.body[1]
    lines = source.splitlines()
    # Decorators of the next statement belong to it; the signature ends where the description begins.
    first = min([body.lineno, *(each.lineno for each in getattr(body, "decorator_list", []))])
    head = lines[node.lineno - 1 : node.body[0].lineno - 1]
    rest = lines[first - 1 : node.end_lineno]
    if not head or "\0" in code:
        return None
    indent = len(lines[node.lineno - 1]) - len(lines[node.lineno - 1].lstrip())
    text = "\n".join(line[indent:] if not line[:indent].strip() else line for line in [*head, *rest])
    asked = f"Write the Python function `{node.name}`:\n{described}"
    return answered("code", asked, f"```python\n{text.rstrip()}\n```", {"path": path})
