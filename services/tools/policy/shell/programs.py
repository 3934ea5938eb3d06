"""Programs that need more than a look at each argument: those that start others, and those that write or delete.

Each reads the arguments as the program does where that is sure, and refuses them where it is not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Protocol

from services.tools.policy.model import RefusedByPolicyError, Risk
from services.tools.policy.shell.arguments import ANYTHING, Argument, may_match
from services.tools.policy.shell.awk import starts_programs


class Bench(Protocol):
    """What a program's judge may ask for and say."""

    def judge_inner(self, arguments: Sequence[Argument], first: int) -> None:
        """Judge the command that begins with these; `first` is the place of its name among the words of the whole."""
        ...

    def raise_risk(self, risk: Risk) -> None:
        """Say that the call has at least this risk."""
        ...

    def insert_after(self, place: int, *options: str) -> None:
        """Have these stand after the word at that place."""
        ...

    def require_write(self, argument: Argument) -> None:
        """Raise RefusedByPolicyError when the argument is known and the zones give no right to write there."""
        ...

    def require_delete(self, argument: Argument) -> None:
        """As require_write, for deleting."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where the program's name stands among the words; its own arguments follow."""

    name: str
    at: int


ProgramJudge = Callable[[Place, Sequence[Argument], Bench], None]

# Nobody can say what these run or change in the shell itself, so no policy may list them.
UNJUDGED: Final = frozenset(
    [
        ".",
        "alias",
        "bash",
        "bg",
        "bind",
        "builtin",
        "busybox",
        "caller",
        "compgen",
        "complete",
        "compopt",
        "coproc",
        "csh",
        "dash",
        "declare",
        "dirs",
        "disown",
        "doas",
        "enable",
        "eval",
        "exec",
        "export",
        "fc",
        "fg",
        "fish",
        "function",
        "getopts",
        "hash",
        "history",
        "jobs",
        "ksh",
        "let",
        "local",
        "logout",
        "mapfile",
        "parallel",
        "pkexec",
        "popd",
        "pushd",
        "readarray",
        "readonly",
        "return",
        "rbash",
        "script",
        "set",
        "setsid",
        "sh",
        "shift",
        "shopt",
        "source",
        "ssh",
        "su",
        "sudo",
        "suspend",
        "tcsh",
        "time",
        "times",
        "trap",
        "type",
        "typeset",
        "ulimit",
        "umask",
        "unalias",
        "unset",
        "unshare",
        "wait",
        "watch",
        "xonsh",
        "zsh",
        "chroot",
        "nsenter",
        "strace",
        "gdb",
        "ltrace",
    ]
)

# These run code that an argument or a file holds, so they are never of low risk.
RUN_CODE: Final = re.compile(
    r"""python[0-9.]*|pypy[0-9.]*|node|nodejs|deno|bun|perl[0-9.]*|ruby[0-9.]*|php[0-9.]*|lua[0-9.]*|luajit|tclsh|wish|expect
    |make|gmake|cmake|ninja|gcc[0-9.-]*|g\+\+|cc|clang[0-9.-]*|go|cargo|rustc|javac?|npm|npx|yarn|pnpm|pip[0-9.]*|uv|uvx
    |git|tar|bsdtar|zip|unzip|7z|rsync|scp|vi|vim|nvim|view|emacs|nano|ed|ex|less|more|man|m4|bc|dc|sqlite3|psql|mysql|rg
    |jq|tree|dd|docker|podman|kubectl""".replace("\n", "").replace(" ", "")
)

_DURATION: Final = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6})?[smhd]?")


def refuse(name: str, problem: str) -> RefusedByPolicyError:
    """An error about a program's arguments."""
    return RefusedByPolicyError(f"{name}: {problem}", reason="COMMAND_REFUSED")


def _known(place: Place, arguments: Sequence[Argument], index: int, what: str) -> str:
    if index >= len(arguments):
        raise refuse(place.name, f"{what} is missing")
    if not arguments[index].known:
        raise refuse(place.name, f"{what} must be written out, not made by an expansion")
    return arguments[index].text


def _skip_options(place: Place, arguments: Sequence[Argument], flags: str, with_value: str) -> int:
    """The index of the first argument that is no option; `flags` and `with_value` are patterns of options."""
    index = 0
    while index < len(arguments):
        if not arguments[index].known:
            raise refuse(
                place.name, "what comes before the command must be written out, not made by an expansion"
            )
        text = arguments[index].text
        if text == "--":
            return index + 1
        if not text.startswith("-"):
            return index
        if re.fullmatch(with_value, text):
            _known(place, arguments, index + 1, f"the value of {text}")
            index += 2
        elif re.fullmatch(flags, text):
            index += 1
        else:
            raise refuse(place.name, f"its option {text[:40]!r} is not taken")
    return index


def _runs_inner(flags: str, with_value: str, *, skips: int = 0, needs_one: bool = True) -> ProgramJudge:
    """A program that takes options, then `skips` values, then a command."""

    def judge(place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
        index = _skip_options(place, arguments, flags, with_value)
        for _ in range(skips):
            if not _DURATION.fullmatch(_known(place, arguments, index, "the duration")):
                raise refuse(place.name, "the duration must be a number with s, m, h or d")
            index += 1
        if index < len(arguments):
            bench.judge_inner(arguments[index:], place.at + 1 + index)
        elif needs_one:
            raise refuse(place.name, "a command is missing")

    return judge


def _env(place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
    index = 1 if arguments and arguments[0] in {Argument("-i"), Argument("-")} else 0
    while index < len(arguments) and re.fullmatch(
        r"(?:LANG|LC_[A-Z]+)=[A-Za-z0-9_.@-]*", _known(place, arguments, index, "each variable")
    ):
        index += 1
    if index == len(arguments):
        return
    text = arguments[index].text
    if text.startswith("-") or "=" in text:
        raise refuse(
            place.name, f"{text[:40]!r} is not taken; only -i, LANG=… and LC_…=… come before the command"
        )
    bench.judge_inner(arguments[index:], place.at + 1 + index)


_XARGS_FLAGS: Final = r"-[0rtx]+|--null|--no-run-if-empty|--verbose|--exit|-[nLPs][0-9]+|-d.+|-I.+|--(?:max-args|max-lines|max-procs|max-chars|delimiter|replace)=.+"
_XARGS_VALUED: Final = r"-[nLPsdI]"


def _xargs(place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
    index = _skip_options(place, arguments, _XARGS_FLAGS, _XARGS_VALUED)
    if index == len(arguments):
        return
    options = [argument.text for argument in arguments[:index]]
    inner = list(arguments[index:])
    marks = [mark for mark in _replaced_marks(options) if mark]
    for mark in marks:
        inner = [_opened(argument, mark) for argument in inner]
    # With a mark nothing is added at the end, unless a later -n or -L takes the mark back.
    if not marks or any(option.startswith(("-n", "-L", "--max-a", "--max-l")) for option in options):
        inner.append(ANYTHING)
    bench.judge_inner(inner, place.at + 1 + index)


def _replaced_marks(options: Sequence[str]) -> list[str]:
    marks = [after for option, after in pairwise(options) if option == "-I"]
    marks += [option[2:] for option in options if option.startswith("-I")]
    return marks + [option.partition("=")[2] for option in options if option.startswith("--replace=")]


def _opened(argument: Argument, mark: str) -> Argument:
    """The argument once something unknown stands where the mark is."""
    before, found, _ = argument.text.partition(mark)
    return Argument(before, known=False, single=argument.single) if found else argument


_FIND_REFUSED: Final = frozenset(
    {"-delete", "-fprint", "-fprint0", "-fprintf", "-fls", "-files0-from", "-ok", "-okdir"}
)
_FIND_VALUED: Final = re.compile(
    r"-(?:i?name|i?path|i?wholename|i?regex|regextype|newer\w*|[acm]time|[acm]min|size|maxdepth|mindepth|x?type|perm|printf"
    r"|user|group|uid|gid|links|inum|samefile|i?lname)"
)


def _find(place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
    start = _find_start(arguments)
    index = 0
    while index < len(arguments):
        argument = arguments[index]
        if not argument.known:
            _require_no_find_expression(place, arguments, index)
        elif argument.text in _FIND_REFUSED:
            raise refuse(
                place.name, f"{argument.text} is not taken; print the names and use another command on them"
            )
        elif argument.text in {"-exec", "-execdir"}:
            end = _find_end(place, arguments, index)
            begins = "./" if argument.text == "-execdir" else start
            inner = [_found_name(each, begins) for each in arguments[index + 1 : end]]
            bench.judge_inner(inner, place.at + 2 + index)
            index = end
        index += 1


def _find_start(arguments: Sequence[Argument]) -> str:
    """What every name that find prints begins with, as far as it is sure."""
    if any(argument.text[:2] in {"-D", "-O"} for argument in arguments):
        return ""
    starts: list[str] = []
    for argument in arguments:
        if argument.known and argument.text in {"-H", "-L", "-P"} and not starts:
            continue
        if argument.known and argument.text[:1] in {"-", "(", "!", ","}:
            break
        starts.append(argument.text if argument.known else "")
    if not starts:
        return "."
    return starts[0] if len(set(starts)) == 1 else ""


def _find_end(place: Place, arguments: Sequence[Argument], begin: int) -> int:
    for index in range(begin + 1, len(arguments)):
        text = _known(place, arguments, index, "everything of -exec")
        if text == ";" or (text == "+" and arguments[index - 1].text == "{}"):
            return index
    raise refuse(place.name, r"the end of -exec is missing: \; or {} +")


def _found_name(argument: Argument, begins: str) -> Argument:
    before, found, _ = argument.text.partition("{}")
    if not found:
        return argument
    return Argument(before or begins, known=False, single=argument.text != "{}")


def _require_no_find_expression(place: Place, arguments: Sequence[Argument], index: int) -> None:
    argument = arguments[index]
    if argument.single and index > 0 and _FIND_VALUED.fullmatch(arguments[index - 1].text):
        is_value = index == 1 or not _FIND_VALUED.fullmatch(arguments[index - 2].text)
        if arguments[index - 1].known and is_value:
            return
    if not argument.single and not argument.text:
        raise refuse(place.name, "an argument may expand to an expression; quote it and write ./ before it")
    if may_match(r"(?s)[-(),!].*", argument):
        raise refuse(place.name, "an argument may expand to an expression; write ./ before it")


_SED_VALUED: Final = r"-[nErsz]*[el]|--expression|--line-length"
_SED_IN_PLACE: Final = re.compile(r"-[nErsz]*i.*|--in-.*")
_SED_REFUSED: Final = r"(?s)--f.*|-[nErsz]*f.*"


def _sed(place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
    # GNU sed then runs no program, and reads and writes no file that a script names.
    bench.insert_after(place.at, "--sandbox")
    for argument in arguments:
        if argument.known and may_match(_SED_REFUSED, argument):
            raise refuse(place.name, "a script from a file is not taken; write it with -e")
        if _SED_IN_PLACE.fullmatch(argument.text) or (not argument.known and may_match("-.*", argument)):
            bench.raise_risk(Risk.MEDIUM)


_AWK_WRITES: Final = re.compile(r"print[^;}\n]*>")


def _awk(place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
    index = 0
    while index < len(arguments) and arguments[index].text.startswith("-"):
        argument = arguments[index]
        takes = 2 if argument in {Argument("-v"), Argument("-F")} else 1
        if not all(each.single for each in arguments[index : index + takes]):
            raise refuse(place.name, "the value of an option must be quoted")
        if argument != Argument("--") and not argument.text.startswith(("-v", "-F")):
            raise refuse(place.name, f"its option {argument.text[:40]!r} is not taken; use -F and -v")
        index += takes
        if argument == Argument("--"):
            break
    program = _known(place, arguments, index, "the program")
    if starts_programs(program):
        raise refuse(
            place.name, "system(), pipes and @ are not taken in its program, as they start other programs"
        )
    if _AWK_WRITES.search(program):
        bench.raise_risk(Risk.MEDIUM)


_TEST_BINARY: Final = frozenset(
    {"=", "==", "!=", "-eq", "-ne", "-lt", "-le", "-gt", "-ge", "-nt", "-ot", "-ef", "<", ">"}
)
_TEST_UNARY: Final = frozenset(
    {"-z", "-n", "-e", "-f", "-d", "-s", "-r", "-w", "-x", "-L", "-h", "-S", "-p", "-b", "-c"}
)


def _test(place: Place, arguments: Sequence[Argument], _bench: Bench) -> None:
    """`-v` and `-R` evaluate a name, commands in its index included."""
    inner = list(arguments)
    if place.name == "[" and (not inner or inner.pop() != Argument("]")):
        raise refuse(place.name, "its last argument must be ]")
    if all(argument.known for argument in inner):
        if any(argument.text in {"-v", "-R"} for argument in inner):
            raise refuse(place.name, "-v and -R are not taken; test for empty text with -z")
        return
    if not all(argument.single for argument in inner):
        raise refuse(place.name, 'a variable must be quoted here: [ "$x" = y ]')
    texts = [argument.text if argument.known else None for argument in inner]
    if texts[:1] == ["!"]:
        texts = texts[1:]
    is_plain = (
        len(texts) == 1
        or (len(texts) == 2 and texts[0] in _TEST_UNARY)  # noqa: PLR2004 - an operator and its operand
        or (len(texts) == 3 and texts[1] in _TEST_BINARY)  # noqa: PLR2004 - an operator between its operands
    )
    if not is_plain:
        raise refuse(
            place.name, "with a variable only one test is taken at a time; join tests with && and ||"
        )


_PRINTF_SETS: Final = re.compile(r"%[^%A-Za-z]*[hjlLqtz]*n")


def _printf(place: Place, arguments: Sequence[Argument], _bench: Bench) -> None:
    """`-v` sets a variable and evaluates its name, `%n` sets one; after the format nothing is an option."""
    text = _known(place, arguments, 0, "the format")
    if text.startswith("-"):
        raise refuse(place.name, "its format may not begin with -; write '%s' first")
    if _PRINTF_SETS.search(text):
        raise refuse(place.name, "%n is not taken in its format")


def _read(place: Place, arguments: Sequence[Argument], _bench: Bench) -> None:
    names = 0
    for index in range(len(arguments)):
        text = _known(place, arguments, index, "each name")
        names += text.isascii() and text.isidentifier()
        if text != "-r" and not (text.isascii() and text.isidentifier()):
            raise refuse(place.name, f"{text[:40]!r} is not taken; only -r and plain names")
    if not names:
        raise refuse(place.name, "a name is missing")


def _numbers_only(place: Place, arguments: Sequence[Argument], _bench: Bench) -> None:
    if len(arguments) > 1 or any(
        not re.fullmatch(r"[0-9]{1,3}", each.text) for each in arguments if each.known
    ):
        raise refuse(place.name, "takes one number")
    if any(not each.single for each in arguments):
        raise refuse(place.name, "takes one number; quote it")


def _command(place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
    first = _known(place, arguments, 0, "a command")
    if first in {"-v", "-V"}:
        for index in range(1, len(arguments)):
            _known(place, arguments, index, "each name")
    elif first.startswith("-"):
        raise refuse(place.name, f"its option {first[:40]!r} is not taken")
    else:
        bench.judge_inner(arguments, place.at + 1)


def _operands(arguments: Sequence[Argument]) -> list[Argument]:
    return [each for each in arguments if not (each.known and each.text.startswith("-"))]


def _writes_all(_place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
    bench.raise_risk(Risk.MEDIUM)
    for argument in _operands(arguments):
        bench.require_write(argument)


def _writes_last(_place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
    bench.raise_risk(Risk.MEDIUM)
    for argument in _operands(arguments)[-1:]:
        bench.require_write(argument)


def _moves(_place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
    bench.raise_risk(Risk.MEDIUM)
    *sources, target = _operands(arguments) or [ANYTHING]
    bench.require_write(target)
    for source in sources:
        bench.require_delete(source)


def _deletes(_place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
    bench.raise_risk(Risk.HIGH)
    for argument in _operands(arguments):
        bench.require_delete(argument)


def _uniq(_place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
    operands = _operands(arguments)
    if len(operands) > 1 or any(not each.single for each in operands):
        bench.raise_risk(Risk.MEDIUM)
        for argument in operands[1:2]:
            bench.require_write(argument)


PROGRAM_JUDGES: Final[dict[str, ProgramJudge]] = {
    "[": _test,
    "awk": _awk,
    "break": _numbers_only,
    "command": _command,
    "continue": _numbers_only,
    "cp": _writes_last,
    "env": _env,
    "exit": _numbers_only,
    "find": _find,
    "gawk": _awk,
    "ln": _writes_last,
    "mawk": _awk,
    "mkdir": _writes_all,
    "mv": _moves,
    "nice": _runs_inner(r"-n-?[0-9]+|--adjustment=-?[0-9]+", "-n", needs_one=False),
    "nohup": _runs_inner("(?!)", "(?!)"),
    "printf": _printf,
    "read": _read,
    "rm": _deletes,
    "rmdir": _deletes,
    "sed": _sed,
    "stdbuf": _runs_inner(r"-[ioe][0L]|-[ioe][0-9]+[KM]?|--(?:input|output|error)=\w+", "-[ioe]"),
    "tee": _writes_all,
    "test": _test,
    "timeout": _runs_inner(
        r"--preserve-status|--foreground|-v|--verbose|-[sk]\w+|--signal=\w+|--kill-after=[\w.]+",
        "-[sk]",
        skips=1,
    ),
    "touch": _writes_all,
    "uniq": _uniq,
    "unlink": _deletes,
    "xargs": _xargs,
}
