"""Where arguments, lines and requests do harm in a script."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from services.tools.code.engines.shell.script import Command, Script, expansions, names_in
from services.tools.code.grammar import Node
from services.tools.code.model import Confidence

# Rule, where, the words that count, and how sure where that is not the rule's own.
Flowing = Iterator[tuple[str, Node, tuple[Node, ...], Confidence | None]]
SHELLS: Final = frozenset({"sh", "bash", "dash", "zsh", "ksh", "ash"})
_INTERPRETERS: Final = {
    "python": "-c",
    "python3": "-c",
    "perl": "-e",
    "ruby": "-e",
    "node": "-e",
    "php": "-r",
}
_DATABASES: Final = re.compile(r"^(?:mysql|mariadb|psql|sqlite3|sqlcmd|clickhouse-client|mongo|mongosh)$")
_SQL: Final = re.compile(r"\b(?:select|insert|update|delete|drop|create|alter|grant)\b", re.IGNORECASE)
_READS: Final = frozenset({"cat", "head", "tail", "less", "rm", "cp", "mv", "sed", "grep", "tar"})
_SET_UP: Final = re.compile(
    r"^[\"']?\$\(\s*(?:/\S*/)?(?:ssh-agent|brew|dircolors|direnv|pyenv|rbenv|nodenv|starship|conda|docker-machine|minikube|opam|fnm|zoxide|lesspipe|gpg-agent|resize|SHELL=)"
)


def flowing(script: Script) -> Flowing:
    """Every place where a value becomes code, a program, a query or a path."""
    for command in script.commands:
        yield from _code(script, command)
        yield from _programs(script, command)
        yield from _queries(script, command)


def _code(script: Script, command: Command) -> Flowing:
    words, name = command.words, command.name
    if name == "eval":
        moving = [word for word in words if expansions(word) or "$(" in word.text or "`" in word.text]
        known = all(name in script.constants for word in moving for name in names_in(word))
        fixed = known and not any("$(" in word.text or "`" in word.text for word in moving)
        if moving and not fixed and not _SET_UP.match(words[0].text):
            outside = script.origin(*words) is not None
            yield "code_injection", command.node, words, None if outside else Confidence.MEDIUM
        return
    code: Node | None = None
    if name in SHELLS or name in {"su", "runuser"}:
        code = _after(command, re.compile(r"-\w*c"))
    elif name in _INTERPRETERS:
        code = _after(command, re.compile(re.escape(_INTERPRETERS[name])))
    elif name == "awk" and words and words[0].kind == "string":
        code = words[0]
    elif (
        name == "ssh"
        and words
        and script.origin(words[-1]) is not None
        and len(words) > 1
        and words[-1].kind == "string"
    ):
        code = words[-1] if " " in words[-1].text else None
    elif name in {"find", "xargs"}:
        for index, word in enumerate(words[:-2]):
            if (
                word.text.rpartition("/")[2] in SHELLS
                and re.match(r"-\w*c", words[index + 1].text)
                and "{}" in words[index + 2].text
            ):
                yield "code_injection", command.node, (words[index + 2],), None
    # In single quotes nothing is expanded: values come as parameters.
    if code is not None and code.kind != "raw_string" and expansions(code):
        outside = script.origin(code) is not None
        if outside or name in SHELLS:
            yield "code_injection", command.node, (code,), None if outside else Confidence.MEDIUM


def _after(command: Command, option: re.Pattern[str]) -> Node | None:
    for word, following in zip(command.words, command.words[1:], strict=False):
        if option.fullmatch(word.text):
            return following
    return None


def _programs(script: Script, command: Command) -> Flowing:
    first = command.name_node
    if first is None or not re.fullmatch(r"\"?\$\{?\w+\}?\"?", first.text):
        return
    if script.origin(first) is not None:
        yield "program_from_outside", command.node, (first,), None


def _queries(script: Script, command: Command) -> Flowing:
    if _DATABASES.match(command.name):
        nodes = [*command.words]
        parent = command.node.parent
        if parent is not None and parent.kind == "redirected_statement":
            nodes.extend(each for each in parent.children if each is not command.node)
        for word in nodes:
            if _SQL.search(word.text) and script.origin(word) is not None:
                yield "sql_injection", command.node, (word,), None
                return
    elif command.name in _READS:
        for word in command.words:
            origin = script.origin(word)
            if origin is not None and origin.request and "/" in word.text:
                yield "path_traversal", command.node, (word,), None
                return
