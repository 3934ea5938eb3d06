"""The documents are true: their links and files exist, and their commands are ones that `kala` and `make` know."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.core
import typer.main

from kala.cli.commands import application

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = sorted(
    path
    for folder in (".", "docs", "gateway", "services")
    for path in (ROOT / folder).glob("*.md" if folder == "." else "**/*.md")
)
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
# A path of the repository, in backticks: from its root or from the document's own folder.
FILE = re.compile(r"`([\w./-]+\.(?:py|md|sh|proto|txt)|[\w.-]+/[\w./-]*)`")
# Commands, in backticks or as a line of a shell block; what is quoted may hold anything.
KALA = re.compile(r"(?:^|`)(kala(?: [^`\n#|>]+)?)", re.MULTILINE)
MAKE = re.compile(r"(?:^|`)make ([a-z-]+)(?:`|$)", re.MULTILINE)
PROSE = re.compile(r"^kala(?: is| has|$)")
# Files of other projects, and names that stand for something.
ELSEWHERE = {"config.py", "__main__.py", "trust/", "trust/audit.vkey", "logs/"}


def words(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def of(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


@cache
def root() -> typer.core.TyperGroup:
    command = typer.main.get_command(application)
    assert isinstance(command, typer.core.TyperGroup)
    return command


def problem_of(line: str) -> str | None:
    """What `kala` would not understand in this command line, apart from its values."""
    command: Any = root()  # Any: Typer gives its groups and commands no common type
    arguments = shlex.split(line)[1:]
    while arguments and isinstance(command, typer.core.TyperGroup):
        names, rest = arguments[0].split("|"), arguments[1:]
        unknown = [name for name in names if name not in command.commands]
        if unknown and not names[0].startswith("-"):
            return f"no command {unknown[0]!r}"
        if names[0].startswith("-"):
            break
        command, arguments = command.commands[names[0]], rest
    known = {"-h", "--help"} | {option for parameter in command.params for option in parameter.opts}
    given = [word.split("=")[0].strip("[]") for word in arguments]
    return next((f"no option {word!r}" for word in given if word.startswith("-") and word not in known), None)


@pytest.mark.parametrize("document", DOCUMENTS, ids=of)
def test_every_link_and_file_exists(document: Path) -> None:
    text = words(document)
    links = [
        link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if not link.startswith("https://")
    ]
    files = [
        name
        for name in FILE.findall(text)
        if name not in ELSEWHERE and ("/" not in name or name.split("/")[0] in FOLDERS)
    ]
    missing = [
        name
        for name in links + files
        if not (document.parent / name).exists() and not (name in files and (ROOT / name).exists())
    ]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=of)
def test_every_command_is_known(document: Path) -> None:
    lines = [line.strip() for line in KALA.findall(words(document))]
    problems = [(line, problem_of(line)) for line in lines if not PROSE.match(line)]
    assert [(line, problem) for line, problem in problems if problem is not None] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=of)
def test_every_task_of_make_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", words(ROOT / "Makefile"), re.MULTILINE))
    assert set(MAKE.findall(words(document))) <= targets


def test_a_wrong_command_is_found() -> None:
    assert problem_of("kala audit verfy") == "no command 'verfy'"
    assert problem_of('kala chat "Hi" --loud') == "no option '--loud'"
    assert problem_of("kala keys create|list|revoke") is None


def test_the_readme_names_every_command() -> None:
    readme = words(ROOT / "README.md")
    assert [name for name in root().commands if f"kala {name}" not in readme] == []
