"""Programs that start others: what they start is judged like any other command, or refused where it is not sure.

Each reads the arguments as the program does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from services.tools.policy.model import Risk
from services.tools.policy.shell.arguments import ANYTHING, Argument, may_match
from services.tools.policy.shell.awk import starts_programs
from services.tools.policy.shell.bench import Bench, Place, ProgramJudge, known, refuse

_DURATION: Final = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6})?[smhd]?")


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
            known(place, arguments, index + 1, f"the value of {text}")
            index += 2
        elif re.fullmatch(flags, text):
            index += 1
        else:
            raise refuse(place.name, f"its option {text[:40]!r} is not taken")
    return index


def runs_inner(flags: str, with_value: str, *, skips: int = 0, needs_one: bool = True) -> ProgramJudge:
    """A program that takes options, then `skips` values, then a command."""

    def judge(place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
        index = _skip_options(place, arguments, flags, with_value)
        for _ in range(skips):
            if not _DURATION.fullmatch(known(place, arguments, index, "the duration")):
                raise refuse(place.name, "the duration must be a number with s, m, h or d")
            index += 1
        if index < len(arguments):
            bench.judge_inner(arguments[index:], place.at + 1 + index)
        elif needs_one:
            raise refuse(place.name, "a command is missing")

    return judge


def judge_env(place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
    """A command after locale variables; any other variable could change what the command is."""
    index = 1 if arguments and arguments[0] in {Argument("-i"), Argument("-")} else 0
    while index < len(arguments) and re.fullmatch(
        r"(?:LANG|LC_[A-Z]+)=[A-Za-z0-9_.@-]*", known(place, arguments, index, "each variable")
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


def judge_xargs(place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
    """A command with what is read behind it, or in place of a mark."""
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


def judge_find(place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
    """Commands behind -exec and -execdir; nothing that deletes, writes or asks."""
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
        text = known(place, arguments, index, "everything of -exec")
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


_SED_IN_PLACE: Final = re.compile(r"-[A-Za-z]*i.*|--i.*")
_SED_REFUSED: Final = r"(?s)--f.*|-[bnErsuz]*f.*"


def judge_sed(place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
    """Its scripts can start programs and name files, so it runs with those taken away."""
    # GNU sed then runs no program, and reads and writes no file that a script names.
    bench.insert_after(place.at, "--sandbox")
    for argument in arguments:
        if argument.known and may_match(_SED_REFUSED, argument):
            raise refuse(place.name, "a script from a file is not taken; write it with -e")
        if _SED_IN_PLACE.fullmatch(argument.text) or (not argument.known and may_match("-.*", argument)):
            bench.raise_risk(Risk.MEDIUM)


_AWK_WRITES: Final = re.compile(r"print[^;}\n]*>")


def judge_awk(place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
    """Its program must be written out, and start nothing."""
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
    program = known(place, arguments, index, "the program")
    if starts_programs(program):
        raise refuse(
            place.name, "system(), pipes and @ are not taken in its program, as they start other programs"
        )
    if _AWK_WRITES.search(program):
        bench.raise_risk(Risk.MEDIUM)


def judge_command(place: Place, arguments: Sequence[Argument], bench: Bench) -> None:
    """A command, or names to look up."""
    first = known(place, arguments, 0, "a command")
    if first in {"-v", "-V"}:
        for index in range(1, len(arguments)):
            known(place, arguments, index, "each name")
    elif first.startswith("-"):
        raise refuse(place.name, f"its option {first[:40]!r} is not taken")
    else:
        bench.judge_inner(arguments, place.at + 1)
