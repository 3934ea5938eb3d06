"""A script as commands with their words, and where the values of its variables come from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from services.tools.code.grammar import Node, Tree, shell_tree
from services.tools.code.model import Source, Step

_EXPANSIONS: Final = frozenset({"simple_expansion", "expansion"})
_CGI: Final = re.compile(r"^(?:QUERY_STRING|REQUEST_URI|PATH_INFO|REQUEST_METHOD|HTTP_[A-Z_]+|REMOTE_USER)$")
_PARAMETER: Final = re.compile(r"^(?:[1-9]\d*|[@*])$")
_CHECKS: Final = re.compile(r"=~\s*\^.*\$|-(?:eq|ne|lt|le|gt|ge)\b")
# Programs that start the program that follows them.
_WRAPPERS: Final = frozenset(
    {
        "sudo",
        "env",
        "nohup",
        "time",
        "exec",
        "command",
        "nice",
        "ionice",
        "timeout",
        "doas",
        "builtin",
        "stdbuf",
    }
)


@dataclass(frozen=True, slots=True)
class Origin:
    """How a variable's value came in; `request`: from whoever asks a web server."""

    request: bool
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Command:
    """One simple command; wrappers such as sudo are left out of `name` and `words`."""

    node: Node
    name: str
    name_node: Node | None
    words: tuple[Node, ...]

    @property
    def texts(self) -> list[str]:
        """The words as they stand, without quotes around them."""
        return [plain(word) for word in self.words]


class Script:
    """The commands of a script, in the order of the text, and its variables."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.nodes = list(tree.root.walk())
        self.commands: list[Command] = []
        self.constants: dict[str, str] = {}
        self.origins: dict[str, Origin] = {}
        self._checked: set[str] = set()
        # Where each origin was known, so that a check clears what comes after it only.
        self.tainted: dict[Node, Origin] = {}
        for node in self.nodes:
            self._read(node)

    def origin(self, *nodes: Node) -> Origin | None:
        """How any value in these words came in from outside."""
        found = [self.tainted[each] for node in nodes for each in node.walk() if each in self.tainted]
        return min(found, key=lambda origin: not origin.request, default=None)

    def _read(self, node: Node) -> None:
        if node.kind in _EXPANSIONS:
            self._expansion(node)
        elif node.kind == "variable_assignment" and "name" in node.fields:
            self._assign(node.fields["name"].text, node.fields.get("value"))
        elif node.kind in {"test_command", "case_statement"}:
            self._check(node)
        elif node.kind == "command":
            command = _command(node)
            self.commands.append(command)
            if command.name == "read":
                for word in command.words:
                    if re.fullmatch(r"[A-Za-z_]\w*", word.text):
                        self.origins[word.text] = Origin(False, (self._step(word, "a line is read"),))
            elif command.name == "grep" and any(re.match(r"-\w*q", text) for text in command.texts):
                self._checked.update(names_in(node.parent or node))

    def _expansion(self, node: Node) -> None:
        name = variable(node)
        if (
            name in self._checked
            or re.match(r"\$\{#|\$\{\w+(?:@Q|//\[\^)", node.text)
            or _inside(node, "arithmetic_expansion")
        ):
            return
        if name in self.origins:
            origin = self.origins[name]
            self.tainted[node] = origin
        elif _PARAMETER.match(name) or _CGI.match(name):
            what = "a request is read" if _CGI.match(name) else "an argument is read"
            self.tainted[node] = Origin(_CGI.match(name) is not None, (self._step(node, what),))

    def _assign(self, name: str, value: Node | None) -> None:
        self.constants.pop(name, None)
        self.origins.pop(name, None)
        if value is None:
            self.constants[name] = ""
            return
        inner = list(value.walk())
        if not any(each.kind in _EXPANSIONS or each.kind.endswith("substitution") for each in inner):
            self.constants[name] = plain(value)
            return
        makers = {each.text for each in inner if each.kind == "command_name"}
        if makers & {"mktemp", "id"}:
            # One word without blanks, whatever it is.
            self.constants[name] = "made"
        if makers & {"basename", "realpath", "printf", "mktemp", "wc", "date", "id"}:
            return
        for each in inner:
            if each.kind in _EXPANSIONS:
                self._expansion(each)
        origin = self.origin(value)
        if origin is not None:
            self.origins[name] = Origin(
                origin.request, (*origin.steps[:8], self._step(value, f"kept as {name}"))
            )

    def _check(self, node: Node) -> None:
        if node.kind == "case_statement" and "value" in node.fields:
            self._checked.update(names_in(node.fields["value"]))
        elif _CHECKS.search(node.text):
            self._checked.update(names_in(node))

    def _step(self, node: Node, what: str) -> Step:
        return Step(self.tree.region(node), what)


def plain(node: Node) -> str:
    """A word without the quotes around it."""
    text = node.text
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def variable(node: Node) -> str:
    """The variable that an expansion names."""
    named = next(
        (each for each in node.children if each.kind in {"variable_name", "special_variable_name"}), None
    )
    return named.text if named is not None else ""


def names_in(node: Node) -> set[str]:
    """Every variable that is expanded in a node."""
    return {variable(each) for each in node.walk() if each.kind in _EXPANSIONS}


def expansions(node: Node) -> list[Node]:
    """Every expansion of a variable in a node."""
    return [each for each in node.walk() if each.kind in _EXPANSIONS]


def _inside(node: Node, kind: str) -> bool:
    return node.around(kind) is not None


def _command(node: Node) -> Command:
    named = node.fields.get("name")
    words = [
        each
        for each in node.children
        if each.kind
        not in {
            "variable_assignment",
            "command_name",
            "file_redirect",
            "herestring_redirect",
            "heredoc_redirect",
        }
    ]
    first = named.children[0] if named is not None and named.children else named
    name = plain(first).rpartition("/")[2] if first is not None else ""
    while name in _WRAPPERS and words and not (name == "command" and re.match(r"-[vV]", words[0].text)):
        following = next(
            (index for index, word in enumerate(words) if not re.match(r"-|\w+=|\d+[smh]?$", word.text)), None
        )
        if following is None:
            break
        first = words[following]
        name = plain(first).rpartition("/")[2]
        words = words[following + 1 :]
    return Command(node, name, first, tuple(words))


def shell_script(source: Source) -> Script:
    """Read a script, once for all engines."""
    return Script(source.once(shell_tree))
