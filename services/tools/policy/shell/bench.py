"""What the judge of one program gets and may say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.tools.policy.model import RefusedByPolicyError, Risk
from services.tools.policy.shell.arguments import Argument


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


def refuse(name: str, problem: str) -> RefusedByPolicyError:
    """An error about a program's arguments."""
    return RefusedByPolicyError(f"{name}: {problem}", reason="COMMAND_REFUSED")


def known(place: Place, arguments: Sequence[Argument], index: int, what: str) -> str:
    """The text of an argument that must be there and be written out; `what` names it."""
    if index >= len(arguments):
        raise refuse(place.name, f"{what} is missing")
    if not arguments[index].known:
        raise refuse(place.name, f"{what} must be written out, not made by an expansion")
    return arguments[index].text
