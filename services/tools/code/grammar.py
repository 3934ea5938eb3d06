"""A file of another language than Python as a tree: bounded in depth and size, without recursion in the making."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import tree_sitter
import tree_sitter_bash
import tree_sitter_javascript

from services.tools.code.model import Region, Source

MAX_DEPTH: Final = 150
MAX_NODES: Final = 60_000
MAX_LINE: Final = 20_000
_MAX_MARKS: Final = 2_500
_JAVASCRIPT: Final = tree_sitter.Language(tree_sitter_javascript.language())
_BASH: Final = tree_sitter.Language(tree_sitter_bash.language())


class Node:
    """A named node; `fields` has those children that the grammar names."""

    __slots__ = ("children", "end", "fields", "kind", "parent", "start", "tree")

    def __init__(self, tree: Tree, kind: str, start: int, end: int, parent: Node | None) -> None:
        self.tree = tree
        self.kind = kind
        self.start = start
        self.end = end
        self.parent = parent
        self.children: list[Node] = []
        self.fields: dict[str, Node] = {}

    @property
    def text(self) -> str:
        return self.tree.data[self.start : self.end].decode("utf-8", "replace")

    def walk(self) -> Iterator[Node]:
        """Give the node and all below it, in the order of the text."""
        stack: list[Node] = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))

    def around(self, *kinds: str) -> Node | None:
        """The nearest node of one of these kinds that this one stands in."""
        node = self.parent
        while node is not None and node.kind not in kinds:
            node = node.parent
        return node


class Tree:
    """The tree of one file, and what could not be read of it."""

    def __init__(self, source: Source, language: tree_sitter.Language) -> None:
        self.source = source
        self.data = source.text.encode("utf-8", "surrogatepass")
        self.problems: list[str] = []
        if source.lines.longest > MAX_LINE:
            self.problems.append(f"has a line of {source.lines.longest} characters; the limit is {MAX_LINE}")
            self.root = Node(self, "program", 0, 0, None)
            return
        parsed = tree_sitter.Parser(language).parse(self.data)
        self.root = self._copied(parsed)

    def region(self, node: Node) -> Region:
        """Where a node stands."""
        start, end = self._place(node.start), self._place(node.end)
        return Region(*start, *end)

    def _place(self, byte: int) -> tuple[int, int]:
        if self.source.text.isascii():
            return self.source.lines.place(byte)
        return self.source.lines.place(len(self.data[:byte].decode("utf-8", "ignore")))

    def _copied(self, parsed: tree_sitter.Tree) -> Node:  # noqa: C901 - one walk, step by step
        cursor = parsed.walk()
        root = Node(self, "program", 0, len(self.data), None)
        parents, count, broken = [root], 1, 0
        moved = cursor.goto_first_child()
        while moved:
            node = cursor.node
            entered = False
            if node is not None and (node.type == "ERROR" or node.is_missing):
                broken = broken or node.start_point.row + 1
            if node is not None and node.is_named and count < MAX_NODES:
                count += 1
                made = Node(self, node.type, node.start_byte, node.end_byte, parents[-1])
                parents[-1].children.append(made)
                if cursor.field_name is not None:
                    parents[-1].fields.setdefault(cursor.field_name, made)
                if len(parents) < MAX_DEPTH and node.child_count:
                    entered = cursor.goto_first_child()
                    if entered:
                        parents.append(made)
                elif node.child_count:
                    self._say("too deeply nested to check completely")
            elif count >= MAX_NODES:
                self._say("too large to be followed completely")
                break
            while not entered:
                entered = cursor.goto_next_sibling()
                if not entered:
                    if len(parents) == 1 or not cursor.goto_parent():
                        moved = False
                        break
                    parents.pop()
        if broken or parsed.root_node.has_error:
            self._say(f"syntax error at line {broken or 1}; the rest was scanned")
        return root

    def _say(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def javascript_tree(source: Source) -> Tree:
    """Parse a file as JavaScript; what cannot be read is among the tree's problems."""
    return Tree(source, _JAVASCRIPT)


def shell_tree(source: Source) -> Tree:
    """Parse a file as bash; what cannot be read is among the tree's problems."""
    # The parser's time and memory grow with the square of these.
    for mark in ("|", "(("):
        if source.text.count(mark) > _MAX_MARKS:
            tree = Tree(Source(source.path, "", source.language), _BASH)
            tree.problems.append(f'has more than {_MAX_MARKS} "{mark}"; split it')
            return tree
    return Tree(source, _BASH)
