"""Judging a command line by the policy, each command apart; what passes is written out anew for bash."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from services.tools.policy.model import CommandRule, RefusedByPolicyError, Risk
from services.tools.policy.shell.arguments import Argument, argument_of, may_match
from services.tools.policy.shell.bench import Place, refuse
from services.tools.policy.shell.programs import PROGRAM_JUDGES
from services.tools.policy.shell.reader import read_script
from services.tools.policy.shell.render import render
from services.tools.policy.shell.syntax import (
    Arithmetic,
    Command,
    For,
    HereDocument,
    Loop,
    ProcessFile,
    Redirection,
    Script,
    ShellSyntaxError,
    Simple,
    Word,
)
from services.tools.policy.shell.variables import (
    bash_name,
    number_variables,
    require_before_command,
    require_settable,
)
from services.tools.policy.shell.walk import scripts_in, scripts_of, words_of
from services.tools.policy.zones import Zones

WORKSPACE: Final = "/workspace"
# What is no file: neither the flag for redirections nor the zones speak of them.
_STREAMS: Final = frozenset({"/dev/null", "/dev/stdin", "/dev/stdout", "/dev/stderr"})
_READS: Final = frozenset({"<"})
_WRITES: Final = frozenset({">", ">>", ">|", "&>", "&>>"})
_STREAM: Final = re.compile(r"[0-9]|-")
# Directories that a command line may be in, as far as it can be said; more are as good as unknown.
_MAX_DIRECTORIES: Final = 16


@dataclass(frozen=True, slots=True)
class JudgedCommand:
    """A command line that the policy lets run."""

    # What bash is to run: the same commands, written out by this service.
    script: str
    risk: Risk
    # Names of the programs that it uses, sorted.
    programs: tuple[str, ...]


class ShellPolicy:
    """The policy's rules for `shell`."""

    def __init__(self, rules: Iterable[CommandRule], zones: Zones) -> None:
        self._rules = {rule.program: rule for rule in rules}
        self._zones = zones

    def judge(self, text: str, *, directory: str = "") -> JudgedCommand:
        """The command line as it may run; `directory` is where it begins, relative to the workspace.

        Raises RefusedByPolicyError that says which part is refused, by which rule, and what to do instead.
        """
        script = read_script(text)
        if not script.lists:
            raise ShellSyntaxError("there is no command in it")
        judge = _Judge(self._rules, self._zones, number_variables(script), directory)
        judge.script(script, to_file=False, in_loop=False)
        rendered = render(script, judge.edits)
        return JudgedCommand(rendered, judge.risk, tuple(sorted(judge.programs)))


class _Judge:
    def __init__(
        self, rules: Mapping[str, CommandRule], zones: Zones, numbers: frozenset[str], directory: str
    ) -> None:
        self._rules = rules
        self._zones = zones
        self._numbers = numbers
        # Where the next command may be; None is somewhere outside of the workspace, or nobody knows where.
        self._directories: set[str | None] = {directory}
        self.risk = Risk.LOW
        self.programs: set[str] = set()
        self.edits: dict[tuple[int, int], tuple[str, ...]] = {}

    def script(self, script: Script, *, to_file: bool, in_loop: bool) -> None:
        for each in script.lists:
            for pipeline in each.pipelines:
                for command in pipeline.commands:
                    self._command(command, to_file=to_file, in_loop=in_loop)

    def raise_risk(self, risk: Risk) -> None:
        self.risk = max(self.risk, risk)

    def _command(self, command: Command, *, to_file: bool, in_loop: bool) -> None:
        for word in words_of(command):
            self._word(word)
        for script in scripts_in(words_of(command)):
            self.script(script, to_file=False, in_loop=in_loop)
        for redirection in command.redirections:
            to_file = self._redirection(redirection) or to_file
        if isinstance(command, For):
            require_settable(command.name)
        if isinstance(command, Simple):
            _SimpleJudge(self, command, to_file=to_file, in_loop=in_loop).judge()
            return
        in_loop = in_loop or isinstance(command, Loop | For)
        for script in scripts_of(command):
            self.script(script, to_file=to_file, in_loop=in_loop)

    def _word(self, word: Word) -> None:
        for part in word.parts:
            if isinstance(part, Arithmetic):
                for name in part.tokens:
                    if name.isidentifier() and name not in self._numbers:
                        raise ShellSyntaxError(
                            f"$((…)) takes {name} only when everything the command sets it to is a whole number"
                        )

    def _redirection(self, redirection: Redirection) -> bool:
        """Judge where it leads; tell whether that is a file."""
        target = redirection.target
        if isinstance(target, HereDocument) or redirection.operator == "<<<":
            return False
        operator, text = redirection.operator, target.known
        if operator in {">&", "<&"}:
            if text is not None and _STREAM.fullmatch(text):
                return False
            if operator == "<&" or redirection.descriptor is not None or (text or "0").isdecimal():
                raise ShellSyntaxError(f"{operator} takes a number from 0 to 9, or -, here")
            operator = "&>"
        if operator in _READS:
            return self._reads(target)
        if operator not in _WRITES:
            raise ShellSyntaxError(f"{operator} is not taken; use < or >")
        if text is None:
            raise refuse(operator, "the file must be written out, not made by an expansion")
        if text in _STREAMS:
            return False
        for path in self._paths(text):
            self._zones.require_write(path)
        self.raise_risk(Risk.MEDIUM)
        return True

    def _reads(self, target: Word) -> bool:
        argument = argument_of(target)
        if any(isinstance(part, ProcessFile) for part in target.parts) or argument.text in _STREAMS:
            return False
        if argument.known:
            for path in self._paths(argument.text):
                self._zones.require_read(path)
        elif not argument.single or not argument.text or argument.text.startswith("/"):
            raise refuse("<", 'the file must be written out; of an expansion only "./$name" is taken')
        return True

    def _paths(self, text: str) -> list[str]:
        """The path inside the workspace, from every directory that the command may be in."""
        return [self._path(text, directory) for directory in self._directories]

    def _path(self, text: str, directory: str | None) -> str:
        if directory is None and not text.startswith("/"):
            raise refuse(
                text[:80], "after this cd a relative path may lead anywhere; write it from /workspace/ on"
            )
        inside = relative_path(text, directory or "")
        if inside is None:
            raise refuse(text[:80], "is outside of the workspace")
        return inside

    def change_directory(self, text: str, *, in_loop: bool) -> None:
        """Note where `cd` may lead; it may also fail and leave things as they are."""
        found = {relative_path(text, each) if each is not None else None for each in self._directories}
        if text.startswith("/"):
            found = {relative_path(text, "")}
        elif in_loop:
            found = {None}
        self._directories |= found
        if len(self._directories) > _MAX_DIRECTORIES:
            self._directories = {None}

    def rule_for(self, name: str) -> CommandRule:
        rule = self._rules.get(name)
        if rule is None:
            raise refuse(_shown(name), f"is not on the policy's list of programs{_advice(name)}")
        return rule

    def require_right(self, argument: Argument, *, delete: bool) -> None:
        if not argument.known or (None in self._directories and not argument.text.startswith("/")):
            return
        for directory in self._directories:
            path = relative_path(argument.text, directory or "")
            # What is outside of the workspace is the run's own and goes with it.
            if path is None:
                continue
            (self._zones.require_delete if delete else self._zones.require_write)(path)


class _SimpleJudge:
    """Judges one simple command and those that it starts; fulfils `bench.Bench`."""

    def __init__(self, judge: _Judge, command: Simple, *, to_file: bool, in_loop: bool) -> None:
        self._judge = judge
        self._command = command
        self._to_file = to_file
        self._in_loop = in_loop
        self._texts = [word.known or "" for word in command.words]

    def judge(self) -> None:
        command = self._command
        if not command.words:
            for assignment in command.assignments:
                require_settable(assignment.name)
            return
        for assignment in command.assignments:
            require_before_command(assignment, command.words[0].known)
        self.judge_inner([argument_of(word) for word in command.words], 0)

    def judge_inner(self, arguments: Sequence[Argument], first: int) -> None:
        name, given = arguments[0], arguments[1:]
        if not name.known:
            raise RefusedByPolicyError(
                "a program's name must be written out, not made by an expansion", reason="COMMAND_REFUSED"
            )
        rule = self._judge.rule_for(name.text)
        self._judge.programs.add(rule.program)
        self._judge.raise_risk(rule.risk)
        _require_allowed(rule, given)
        if self._to_file and not rule.redirections:
            raise refuse(rule.program, "the policy lets no file be its input or output")
        if name.text == "cd":
            self._change_directory(given)
        elif name.text in PROGRAM_JUDGES:
            PROGRAM_JUDGES[name.text](Place(name.text, first), given, self)
        if name.text == "read":
            self._rename_read(given, first)

    def raise_risk(self, risk: Risk) -> None:
        self._judge.raise_risk(risk)

    def insert_after(self, place: int, *options: str) -> None:
        self._judge.edits[id(self._command), place] = (self._texts[place], *options)

    def require_write(self, argument: Argument) -> None:
        self._judge.require_right(argument, delete=False)

    def require_delete(self, argument: Argument) -> None:
        self._judge.require_right(argument, delete=True)

    def _change_directory(self, given: Sequence[Argument]) -> None:
        if len(given) > 1 or any(not each.known for each in given):
            raise refuse("cd", "takes one directory, written out")
        text = given[0].text if given else WORKSPACE
        if text.startswith("-"):
            raise refuse("cd", "takes no options and no -; write the directory out")
        self._judge.change_directory(text or ".", in_loop=self._in_loop)

    def _rename_read(self, given: Sequence[Argument], first: int) -> None:
        if first:
            raise refuse("read", "is taken only as a command of its own")
        for index, argument in enumerate(given, start=1):
            if argument.text != "-r":
                require_settable(argument.text)
                self._judge.edits[id(self._command), index] = (bash_name(argument.text),)


def relative_path(text: str, directory: str) -> str | None:
    """The path from the workspace's top, "" for itself; None when it leads out of the workspace."""
    absolute = posixpath.normpath(posixpath.join(WORKSPACE, directory, text))
    if absolute == WORKSPACE:
        return ""
    return absolute.removeprefix(WORKSPACE + "/") if absolute.startswith(WORKSPACE + "/") else None


def _require_allowed(rule: CommandRule, given: Sequence[Argument]) -> None:
    if rule.max_arguments is not None and (
        len(given) > rule.max_arguments or any(not each.single for each in given)
    ):
        raise refuse(rule.program, f"takes at most {rule.max_arguments} arguments, each of them one word")
    for argument in given:
        for pattern in rule.refused_arguments:
            if not may_match(pattern, argument):
                continue
            if argument.known:
                raise refuse(rule.program, f"the policy refuses its argument {argument.text[:80]!r}")
            raise refuse(
                rule.program,
                "an argument is made by an expansion and could become one that the policy refuses; "
                "write it out, or begin it with ./ when it is a file",
            )


def _shown(name: str) -> str:
    odd = [f"U+{ord(char):04X} {unicodedata.name(char, '?')}" for char in name if not char.isascii()]
    return f"{name[:80]!r}" + (f" (which contains {odd[0]})" if odd else "")


def _advice(name: str) -> str:
    if "/" in name:
        return "; write the name without a directory"
    if name.startswith(("python", "node", "perl", "ruby", "bash", "sh")):
        return "; use the tool code_execution to run code"
    return ""
