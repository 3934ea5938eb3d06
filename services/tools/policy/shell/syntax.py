"""What a command line is made of once it is read."""

from __future__ import annotations

from dataclasses import dataclass

from services.tools.policy.model import RefusedByPolicyError


class ShellSyntaxError(RefusedByPolicyError):
    """The text is no shell, or a part of shell that this policy does not take; the message says where and what to do."""

    default_reason = "SHELL_SYNTAX_REFUSED"


@dataclass(frozen=True, slots=True)
class Literal:
    """Text that means itself."""

    text: str


@dataclass(frozen=True, slots=True)
class Pattern:
    """`*`, `?` or a bracket expression, outside quotes: it becomes the names of files."""

    text: str


@dataclass(frozen=True, slots=True)
class Brace:
    """An unquoted `{`, `,` or `}` while a word is being read; none is left in a word that was read."""

    text: str


@dataclass(frozen=True, slots=True)
class Parameter:
    """`$name` or `${name…}`; `operation` is what stands between the name and the brace, of harmless characters only."""

    name: str
    quoted: bool
    operation: str = ""
    # `${#name}`.
    length: bool = False


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """`$((…))`: numbers, operators and names, no assignment."""

    tokens: tuple[str, ...]
    quoted: bool


@dataclass(frozen=True, slots=True)
class Substitution:
    """`$(…)` or backquotes."""

    script: Script
    quoted: bool


@dataclass(frozen=True, slots=True)
class ProcessFile:
    """`<(…)`."""

    script: Script


Part = Literal | Pattern | Brace | Parameter | Arithmetic | Substitution | ProcessFile


@dataclass(frozen=True, slots=True)
class Word:
    """One word before expansion."""

    parts: tuple[Part, ...]

    @property
    def known(self) -> str | None:
        """Its text when nothing in it is expanded, else None."""
        texts = []
        for part in self.parts:
            if not isinstance(part, Literal):
                return None
            texts.append(part.text)
        return "".join(texts)


@dataclass(slots=True)
class HereDocument:
    """`<<`: its text comes after the line it is named in."""

    delimiter: str
    expands: bool
    strips_tabs: bool
    content: Word | None = None


@dataclass(frozen=True, slots=True)
class Redirection:
    """One of `<`, `>`, `>>`, `>|`, `<>`, `<&`, `>&`, `&>`, `&>>`, `<<<`, or a here-document."""

    operator: str
    target: Word | HereDocument
    descriptor: int | None = None


@dataclass(frozen=True, slots=True)
class Assignment:
    """`name=value`, or `name+=value`."""

    name: str
    value: Word
    appends: bool = False


@dataclass(frozen=True, slots=True)
class Simple:
    """Assignments, a program with its arguments, redirections; each may be missing, not all."""

    assignments: tuple[Assignment, ...]
    words: tuple[Word, ...]
    redirections: tuple[Redirection, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """`( … )` or `{ …; }`."""

    script: Script
    is_subshell: bool
    redirections: tuple[Redirection, ...] = ()


@dataclass(frozen=True, slots=True)
class If:
    """Conditions with what follows them, and what follows when none holds."""

    branches: tuple[tuple[Script, Script], ...]
    otherwise: Script | None
    redirections: tuple[Redirection, ...] = ()


@dataclass(frozen=True, slots=True)
class Loop:
    """`while` or `until`."""

    keyword: str
    condition: Script
    body: Script
    redirections: tuple[Redirection, ...] = ()


@dataclass(frozen=True, slots=True)
class For:
    """`for name in words`."""

    name: str
    words: tuple[Word, ...]
    body: Script
    redirections: tuple[Redirection, ...] = ()


@dataclass(frozen=True, slots=True)
class Case:
    """`case word in pattern) … ;; esac`."""

    word: Word
    arms: tuple[tuple[tuple[Word, ...], Script], ...]
    redirections: tuple[Redirection, ...] = ()


Command = Simple | Block | If | Loop | For | Case


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Commands joined by `|`; `|&` is read as `2>&1 |`."""

    commands: tuple[Command, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class AndOr:
    """Pipelines joined by `&&` and `||`; `operators` has one less."""

    pipelines: tuple[Pipeline, ...]
    operators: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Script:
    """Lists one after the other."""

    lists: tuple[AndOr, ...]
