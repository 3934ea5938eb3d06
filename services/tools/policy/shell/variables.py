"""Variables of a command line: what may be set, what may be read, and which ones hold nothing but whole numbers.  Pure.

Bash evaluates what a variable holds once more wherever a number is expected, commands in it included.  So only a variable
that every assignment gives a number is taken in arithmetic.
"""

from __future__ import annotations

import re
from typing import Final

from services.tools.policy.shell.syntax import (
    Arithmetic,
    Assignment,
    For,
    Parameter,
    Script,
    ShellSyntaxError,
    Simple,
    Word,
)
from services.tools.policy.shell.walk import commands_of

# What bash and the sandbox set, as far as a command line may read it; everything else has a name of our own.
READABLE: Final = frozenset(
    {
        "EUID",
        "HOME",
        "HOSTNAME",
        "LANG",
        "OLDPWD",
        "PATH",
        "PWD",
        "RANDOM",
        "SECONDS",
        "TMPDIR",
        "UID",
        "USER",
    }
)
# Of these, the ones that are numbers.
_NUMBERS: Final = frozenset({"EUID", "RANDOM", "SECONDS", "UID"})
# Names that mean something to bash, to the loader or to a program: under our own name an assignment would do nothing.
_MEANT: Final = re.compile(
    r"IFS|ENV|PS[0-9]|SHELL|TERM|TZ|CDPATH|FIGNORE|GLOBIGNORE|EXECIGNORE|HIST[A-Z]*|PROMPT_[A-Z]+|SHELLOPTS|OPT[A-Z]+"
    r"|REPLY|TMOUT|LC_[A-Z]+|LD_[A-Z_]+|BASH.*|PYTHON[A-Z]*|NODE_[A-Z_]+|PERL[A-Z0-9]*|RUBY[A-Z]*|GIT_[A-Z_]+|GCONV_PATH"
    r"|LOCPATH|NLSPATH|GLIBC_TUNABLES|MALLOC_[A-Z_]+|EDITOR|VISUAL|PAGER|LESS[A-Z]*|AWK[A-Z]*|TAR_OPTIONS|POSIXLY_CORRECT"
)
# What may stand before a command: how it sorts, prints and tells the time.
_LOCALE: Final = re.compile(r"[A-Za-z0-9_.@-]*")
_ZONE: Final = re.compile(r"[A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2}")
_LOCALE_NAME: Final = re.compile(r"LANG|LC_[A-Z]+")
_NUMBER: Final = re.compile(r"-?[0-9]{1,18}")
_PREFIX: Final = "kala_"


def bash_name(name: str) -> str:
    """The name that a variable has in what bash gets."""
    return name if name in READABLE else _PREFIX + name


def number_variables(script: Script) -> frozenset[str]:
    """The variables that hold whole numbers whatever the script does; those it never sets are none of its own."""
    numbers: dict[str, bool] = {}
    for command in commands_of(script):
        if isinstance(command, For):
            known = all(word.known is not None and _NUMBER.fullmatch(word.known) for word in command.words)
            _note(numbers, command.name, is_number=known)
        elif isinstance(command, Simple):
            for assignment in command.assignments:
                _note(numbers, assignment.name, is_number=_is_number(assignment.value))
            for name in read_names(command):
                _note(numbers, name, is_number=False)
    return frozenset(name for name, is_number in numbers.items() if is_number) | _NUMBERS


def read_names(command: Simple) -> list[str]:
    """The variables that `read` sets; empty for any other program."""
    texts = [word.known for word in command.words]
    if not texts or texts[0] != "read":
        return []
    return [text for text in texts[1:] if text and not text.startswith("-")]


def require_settable(name: str) -> None:
    """Raises ShellSyntaxError for a variable that means something to somebody else."""
    if name in READABLE or _MEANT.fullmatch(name):
        raise ShellSyntaxError(
            f"{name} may not be set; only variables of your own, and LANG, LC_… and TZ before a command"
        )


def require_before_command(assignment: Assignment, program: str | None) -> None:
    """Raises ShellSyntaxError for an assignment that may not stand before this command."""
    value = assignment.value.known
    if assignment.name == "IFS" and program == "read" and value is not None and not assignment.appends:
        return
    values = _ZONE if assignment.name == "TZ" else _LOCALE
    if not (assignment.name == "TZ" or _LOCALE_NAME.fullmatch(assignment.name)) or assignment.appends:
        raise ShellSyntaxError(
            f"{assignment.name}=… before a command is not taken; only LANG, LC_… and TZ may be set for one command"
        )
    if value is None or not values.fullmatch(value):
        raise ShellSyntaxError(f"{assignment.name}=… before a command takes a plain locale or time zone only")


def _note(numbers: dict[str, bool], name: str, *, is_number: bool) -> None:
    numbers[name] = is_number and numbers.get(name, True)


def _is_number(value: Word) -> bool:
    if value.known is not None:
        return bool(_NUMBER.fullmatch(value.known))
    match value.parts:
        case (Arithmetic(),):
            return True
        case (Parameter(length=True),):
            return True
        case (Parameter(name=name, operation=""),):
            return name in {"?", "#", "$"}
    return False
