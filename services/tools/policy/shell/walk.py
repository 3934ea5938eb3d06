"""Every command of a script, those inside others and inside words included.  Pure."""

from __future__ import annotations

from collections.abc import Iterator

from services.tools.policy.shell.syntax import (
    Block,
    Case,
    Command,
    For,
    HereDocument,
    If,
    Loop,
    ProcessFile,
    Redirection,
    Script,
    Simple,
    Substitution,
    Word,
)


def commands_of(script: Script) -> Iterator[Command]:
    """Each command once, before what is inside it."""
    for each in script.lists:
        for pipeline in each.pipelines:
            for command in pipeline.commands:
                yield from _all_of(command)


def scripts_in(words: tuple[Word, ...]) -> Iterator[Script]:
    """The scripts that the words hold."""
    for word in words:
        for part in word.parts:
            if isinstance(part, Substitution | ProcessFile):
                yield part.script


def words_of(command: Command) -> tuple[Word, ...]:
    """All the words that are the command's own, those of its redirections included."""
    return (*_own_words(command), *_targets(command.redirections))


def scripts_of(command: Command) -> tuple[Script, ...]:
    """The scripts that a compound command is made of."""
    match command:
        case Block(script):
            return (script,)
        case If(branches, otherwise):
            inner = tuple(script for branch in branches for script in branch)
            return (*inner, otherwise) if otherwise else inner
        case Loop(_, condition, body):
            return (condition, body)
        case For(body=body):
            return (body,)
        case Case(arms=arms):
            return tuple(body for _, body in arms)
        case Simple():
            return ()


def _all_of(command: Command) -> Iterator[Command]:
    yield command
    for script in (*scripts_of(command), *scripts_in(words_of(command))):
        yield from commands_of(script)


def _own_words(command: Command) -> tuple[Word, ...]:
    match command:
        case Simple(assignments, words):
            return (*(each.value for each in assignments), *words)
        case For(words=words):
            return words
        case Case(word, arms):
            return (word, *(pattern for patterns, _ in arms for pattern in patterns))
        case _:
            return ()


def _targets(redirections: tuple[Redirection, ...]) -> tuple[Word, ...]:
    targets = (
        each.target.content if isinstance(each.target, HereDocument) else each.target for each in redirections
    )
    return tuple(target for target in targets if target is not None)
