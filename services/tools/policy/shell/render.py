"""Writing a judged command line out for bash: every text quoted, every variable under a name of our own.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from services.tools.policy.shell.syntax import (
    AndOr,
    Arithmetic,
    Assignment,
    Block,
    Case,
    Command,
    For,
    HereDocument,
    If,
    Literal,
    Loop,
    Parameter,
    Part,
    Pattern,
    Pipeline,
    ProcessFile,
    Redirection,
    Script,
    Simple,
    Substitution,
    Word,
)
from services.tools.policy.shell.variables import bash_name

# The known words that take the place of a simple command's word: by the command's identity and the word's position.
Edits = Mapping[tuple[int, int], tuple[str, ...]]

# Nothing below uses these; were one reached all the same, it would be a program that is not there.
_FIRST: Final = (
    "readonly PATH\n"
    "enable -n . alias bg bind builtin caller compgen complete compopt declare dirs disown eval exec export fc fg getopts "
    "hash help history jobs kill let local logout mapfile popd pushd readarray readonly return set shift shopt source "
    "suspend times trap type typeset ulimit umask unalias unset wait enable 2>/dev/null\n"
)
_OPENING: Final = {True: "(", False: "{"}
_CLOSING: Final = {True: ")", False: "}"}


def render(script: Script, edits: Edits) -> str:
    """The whole script; it has the meaning that `script` has, and bash cannot find another one in it."""
    return f"{_FIRST}{_Renderer(edits).script(script)}\n"


def quote(text: str) -> str:
    """The text as one word that means itself."""
    return "'" + text.replace("'", "'\\''") + "'"


class _Renderer:
    def __init__(self, edits: Edits) -> None:
        self._edits = edits

    def script(self, script: Script) -> str:
        return "\n".join(self._and_or(each) for each in script.lists)

    def _and_or(self, each: AndOr) -> str:
        text = self._pipeline(each.pipelines[0])
        for operator, pipeline in zip(each.operators, each.pipelines[1:], strict=True):
            text += f" {operator} {self._pipeline(pipeline)}"
        return text

    def _pipeline(self, pipeline: Pipeline) -> str:
        text = " | ".join(self._command(command) for command in pipeline.commands)
        return f"! {text}" if pipeline.negated else text

    def _command(self, command: Command) -> str:
        if isinstance(command, Simple):
            return self._simple(command)
        return " ".join([self._compound(command), *map(self._redirection, command.redirections)])

    def _compound(self, command: Block | If | Loop | For | Case) -> str:
        match command:
            case Block(script, is_subshell):
                return f"{_OPENING[is_subshell]}\n{self.script(script)}\n{_CLOSING[is_subshell]}"
            case If(branches, otherwise):
                text = "\nel".join(
                    f"if {self._group(condition)}\nthen\n{self.script(body)}" for condition, body in branches
                )
                return text + (f"\nelse\n{self.script(otherwise)}" if otherwise else "") + "\nfi"
            case Loop(keyword, condition, body):
                return f"{keyword} {self._group(condition)}\ndo\n{self.script(body)}\ndone"
            case For(name, words, body):
                listed = " ".join(map(self._word, words))
                return f"for {bash_name(name)} in {listed}\ndo\n{self.script(body)}\ndone"
            case Case(word, arms):
                lines = [self._arm(patterns, body) for patterns, body in arms]
                return "\n".join([f"case {self._word(word)} in", *lines, "esac"])

    def _arm(self, patterns: tuple[Word, ...], body: Script) -> str:
        return f"({' | '.join(map(self._word, patterns))})\n{self.script(body)}\n;;"

    def _group(self, script: Script) -> str:
        return f"{{\n{self.script(script)}\n}}" if len(script.lists) > 1 else self.script(script)

    def _simple(self, command: Simple) -> str:
        pieces = [self._assignment(each, is_prefix=bool(command.words)) for each in command.assignments]
        for index, word in enumerate(command.words):
            edit = self._edits.get((id(command), index))
            pieces += [self._word(word)] if edit is None else map(quote, edit)
        pieces += map(self._redirection, command.redirections)
        return " ".join(pieces)

    def _assignment(self, assignment: Assignment, *, is_prefix: bool) -> str:
        name = assignment.name if is_prefix else bash_name(assignment.name)
        return f"{name}{'+' * assignment.appends}={self._word(assignment.value)}"

    def _redirection(self, redirection: Redirection) -> str:
        descriptor = "" if redirection.descriptor is None else str(redirection.descriptor)
        target = redirection.target
        if isinstance(target, Word):
            return f"{descriptor}{redirection.operator} {self._word(target)}"
        return f"{descriptor}{self._here_document(target)}"

    def _here_document(self, document: HereDocument) -> str:
        """As a here-string, which has no end word that its content could contain."""
        parts = document.content.parts if document.content else ()
        last = parts[-1] if parts else None
        if not isinstance(last, Literal) or not last.text:
            return "< /dev/null"
        # A here-string ends with a line end of its own.
        return "<<< " + self._word(Word((*parts[:-1], Literal(last.text.removesuffix("\n")))))

    def _word(self, word: Word) -> str:
        return "".join(map(self._part, word.parts))

    def _part(self, part: Part) -> str:
        match part:
            case Pattern(text):
                return text
            case ProcessFile(script):
                return f"<(\n{self.script(script)}\n)"
            case Parameter(quoted=quoted):
                text = _parameter(part)
            case Arithmetic(tokens, quoted):
                names = (bash_name(token) if token.isidentifier() else token for token in tokens)
                text = f"$(( {' '.join(names)} ))"
            case Substitution(script, quoted):
                text = f"$(\n{self.script(script)}\n)"
            case _:
                return quote(part.text)
        return f'"{text}"' if quoted else text


def _parameter(part: Parameter) -> str:
    name = bash_name(part.name) if part.name.isidentifier() else part.name
    return f"${{{'#' * part.length}{name}{part.operation}}}"
