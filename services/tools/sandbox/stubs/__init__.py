"""What waits inside a sandbox for the code: one small program per language, and the bytes that it waits for.

A stub writes one byte to stdout when it is ready, reads its pipe to the end, closes it, and becomes the program. With
nothing in the pipe it ends: a service that died has sent nothing. Python's and node's read

    length of the source NUL number of arguments NUL number of variables NUL arguments and variables, NUL each, source

and refuse a source of another length; bash reads one line of its own language, then sources the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from kala.errors import InvalidArgumentError
from services.tools.sandbox.model import Job, Language

READY: Final = b"+"
# The descriptor of the pipe with the code.
CODE_DESCRIPTOR: Final = 3
# What one pipe holds at most without privileges, so that a program arrives whole or not at all.
MAX_PROGRAM_BYTES: Final = 1024 * 1024
# The system's own, never this service's.
INTERPRETERS: Final = {
    Language.PYTHON: "/usr/bin/python3",
    Language.JAVASCRIPT: "/usr/bin/node",
    Language.SHELL: "/bin/bash",
}
_STUBS: Final = {
    Language.PYTHON: "python.py",
    Language.JAVASCRIPT: "javascript.js",
    Language.SHELL: "shell.sh",
}


@cache
def command(language: Language) -> tuple[str, ...]:
    """Give the command line that starts a waiting interpreter."""
    text = (Path(__file__).parent / _STUBS[language]).read_text(encoding="utf-8")
    interpreter = INTERPRETERS[language]
    if language is Language.PYTHON:
        return (interpreter, "-I", "-S", "-c", text)
    if language is Language.JAVASCRIPT:
        return (interpreter, "-e", text)
    return (interpreter, "--norc", "--noprofile", "-c", text, "main.sh")


def program(job: Job) -> bytes:
    """Write what the stub of the job's language waits for.

    Raises:
        InvalidArgumentError: a NUL where none can be, or more than a pipe holds.
    """
    words = [*job.arguments, *(word for pair in job.environment for word in pair)]
    if any("\0" in word for word in words):
        raise InvalidArgumentError("arguments", "an argument or variable holds a NUL; remove it")
    if any(not name or "=" in name for name, _ in job.environment):
        raise InvalidArgumentError("environment", "a variable's name is empty or holds '='")
    data = _shell_program(job) if job.language is Language.SHELL else _plain_program(job, words)
    if len(data) > MAX_PROGRAM_BYTES:
        raise InvalidArgumentError(
            "source",
            f"is {len(data)} bytes with its arguments, at most {MAX_PROGRAM_BYTES} are allowed; pass data as files",
        )
    return data


def _plain_program(job: Job, words: Sequence[str]) -> bytes:
    numbers = (len(job.source), len(job.arguments), len(job.environment))
    fields = [*(str(number) for number in numbers), *words]
    return b"".join(field.encode("utf-8", "surrogateescape") + b"\0" for field in fields) + job.source


def _shell_program(job: Job) -> bytes:
    if b"\0" in job.source:
        raise InvalidArgumentError("source", "a shell script cannot hold a NUL; remove it")
    exports = "".join(f"export {_variable(name)}={_quoted(value)};" for name, value in job.environment)
    words = " ".join(_quoted(argument) for argument in job.arguments)
    # bash has read all of the script when it closes the pipe; on the script's own first line, to keep line numbers.
    first = f"unset REPLY;{exports}set -- {words}\nexec {CODE_DESCRIPTOR}<&-; "
    return first.encode("utf-8", "surrogateescape") + job.source


def _quoted(text: str) -> str:
    """Quote for bash on one line, whatever the text holds."""
    return "$'" + "".join(_escaped(character) for character in text) + "'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return "\\" + character
    return f"\\x{ord(character):02x}" if ord(character) < ord(" ") else character


def _variable(name: str) -> str:
    if not name.replace("_", "a").isalnum() or name[0].isdigit() or not name.isascii():
        raise InvalidArgumentError("environment", f"{name!r} cannot be a variable of the shell")
    return name
