"""Python source to syntax tree, forgiving: fragments, Python 2 and a broken line do not hide the rest of a file."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final, TypeVar

from services.tools.code.model import Region, Source

# Each repair costs one more parse of the text; a file with more broken lines than this is not Python.
_MAX_REPAIRS: Final = 12
# Patterns are searched in texts of nodes and in lines; what is longer is a table or hostile.
_MAX_TEXT: Final = 20_000
MAX_LINE: Final = 20_000
_MAX_REWRITTEN: Final = 500
_PRINT: Final = re.compile(r"^(\s*(?:[^#'\"\n]*:\s*)?)print(?![\w.]|\s*[(=,)\]])[ \t]*(.*)$")
_EXCEPT: Final = re.compile(r"^(\s*except\s+[^:\n]+?)\s*,\s*(\w+)\s*:")
_EXEC: Final = re.compile(r"^(\s*)exec\s+(?![(=.,])(.+)$")
_RAISE: Final = re.compile(r"^(\s*raise\s+[\w.]+)\s*,\s*(.+)$")
_OCTAL: Final = re.compile(r"(?<![\w.])0([0-7]{2,})(?![\w.])")

N = TypeVar("N", bound=ast.AST)
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(slots=True)
class PythonTree:
    """The tree of one file, with every node by its type and its parent; `problem` tells what had to be left out."""

    module: ast.Module
    problem: str = ""
    parents: dict[ast.AST, ast.AST] = field(default_factory=dict)
    _by_type: dict[type[ast.AST], list[ast.AST]] = field(default_factory=lambda: defaultdict(list))

    _texts: dict[ast.AST, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        waiting: list[ast.AST] = [self.module]
        while waiting:
            node = waiting.pop()
            self._by_type[type(node)].append(node)
            for child in ast.iter_child_nodes(node):
                self.parents[child] = node
                waiting.append(child)

    def all(self, kind: type[N]) -> list[N]:
        """Give all nodes of a type, in no particular order."""
        return [node for node in self._by_type.get(kind, ()) if isinstance(node, kind)]

    def imports(self) -> list[ast.Import | ast.ImportFrom]:
        """Give all import statements, in any scope."""
        return [*self.all(ast.Import), *self.all(ast.ImportFrom)]

    def functions(self) -> list[FunctionNode]:
        """Give all functions and methods, in the order of the file."""
        found: list[FunctionNode] = [*self.all(ast.FunctionDef), *self.all(ast.AsyncFunctionDef)]
        return sorted(found, key=lambda node: node.lineno)

    def text(self, node: ast.AST) -> str:
        """Give a node as source text in normal form."""
        text = self._texts.get(node)
        if text is None:
            text = self._texts[node] = ast.unparse(node)[:_MAX_TEXT]
        return text

    def enclosing(self, node: ast.AST, kind: type[N]) -> N | None:
        """Give the nearest node of a type around a node."""
        current = self.parents.get(node)
        while current is not None and not isinstance(current, kind):
            current = self.parents.get(current)
        return current

    def function_around(self, node: ast.AST) -> FunctionNode | None:
        """Give the nearest function around a node."""
        current = self.parents.get(node)
        while current is not None and not isinstance(current, FunctionNode):
            current = self.parents.get(current)
        return current


def python_tree(source: Source) -> PythonTree | None:
    """Parse a file; None when nothing of it can be read. Used through `Source.once`."""
    text = source.text
    module, error = _parse(text)
    problem = ""
    if module is None:
        problem = f"syntax error at line {_line(error)}: {_words(error)}"
        text = _modern(text) if text.isascii() or "print" in text else text
        if text[:1] in {" ", "\t"} or re.match(r"\s*\n[ \t]", text):
            text = textwrap.dedent(text)
        module = _repaired(text)
    if module is None:
        return None
    try:
        return PythonTree(module, problem)
    except RecursionError:
        return None


def parse_problem(source: Source) -> str:
    """Say why a file could not be parsed."""
    return (
        f"syntax error at line {_line(error)}: {_words(error)}" if (error := _parse(source.text)[1]) else ""
    )


def line_problem(source: Source) -> str:
    """Say that a line is too long to be searched."""
    return f"has a line of {source.lines.longest} characters; the limit is {MAX_LINE}; break it"


def region_of(source: Source, node: ast.AST) -> Region:
    """Place a node; a node without a place is at the file's first character."""
    if not isinstance(node, ast.expr | ast.stmt | ast.excepthandler | ast.arg | ast.keyword | ast.alias):
        return Region(1, 1, 1, 1)
    lines = source.lines
    end_line = node.end_lineno if node.end_lineno is not None else node.lineno
    end_byte = node.end_col_offset if node.end_col_offset is not None else node.col_offset
    return Region(
        node.lineno,
        lines.column_of_byte(node.lineno, node.col_offset),
        end_line,
        lines.column_of_byte(end_line, end_byte),
    )


def head_region(source: Source, node: ast.stmt) -> Region:
    """Place the first line of a compound statement, so that a finding does not span a whole function."""
    region = region_of(source, node)
    line = source.lines.line(region.start_line)
    return Region(region.start_line, region.start_column, region.start_line, len(line) + 1)


def _parse(text: str) -> tuple[ast.Module | None, Exception | None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text), None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return None, error


def _line(error: Exception | None) -> int:
    return (error.lineno or 1) if isinstance(error, SyntaxError) else 1


def _words(error: Exception | None) -> str:
    if isinstance(error, MemoryError):
        return "too deeply nested, or needs more memory than a scan may have; split it"
    return error.msg if isinstance(error, SyntaxError) else type(error).__name__


def _modern(text: str) -> str:
    """Rewrite what Python 2 wrote otherwise, line for line, so that places stay."""
    lines = []
    for line in text.split("\n"):
        if len(line) > _MAX_REWRITTEN:
            lines.append(line)
            continue
        new = _EXCEPT.sub(r"\1 as \2:", line)
        new = _EXEC.sub(r"\1exec(\2)", new)
        new = _RAISE.sub(r"\1(\2)", new)
        new = _PRINT.sub(r"\1print(\2)", new)
        lines.append(_OCTAL.sub(r"0o\1", new) if "0" in new else new)
    return "\n".join(lines)


def _repaired(text: str) -> ast.Module | None:
    """Parse with the broken lines left out; a block that is empty at the end gets a `pass`."""
    lines = text.split("\n")
    for _ in range(_MAX_REPAIRS):
        module, error = _parse("\n".join(lines))
        if module is not None:
            return module if module.body else None
        if not isinstance(error, SyntaxError):
            return None
        _repair(lines, error)
    return None


def _repair(lines: list[str], error: SyntaxError) -> None:
    index = min(max((error.lineno or 1) - 1, 0), len(lines) - 1)
    if "expected an indented block" in error.msg:
        opener: int = index
        match = re.search(r"on line (\d+)", error.msg)
        if match:
            opener = int(match[1]) - 1
        indent = len(lines[opener]) - len(lines[opener].lstrip())
        lines[opener] = (
            lines[opener].rstrip() + " pass"
            if lines[opener].rstrip().endswith(":")
            else " " * indent + "pass"
        )
        return
    if "unexpected indent" in error.msg or "unindent" in error.msg:
        previous = next((line for line in reversed(lines[:index]) if line.strip()), "")
        width = len(previous) - len(previous.lstrip()) + (4 if previous.rstrip().endswith(":") else 0)
        fixed = " " * width + lines[index].lstrip()
        lines[index] = fixed if fixed != lines[index] else ""
        return
    if "expected 'except' or 'finally' block" in error.msg:
        lines.insert(index, " " * _try_indent(lines, index) + "finally: pass")
        return
    indent = len(lines[index]) - len(lines[index].lstrip())
    colon = ":" if lines[index].rstrip().endswith(":") else ""
    lines[index] = " " * indent + ("if True:" if colon else "pass" if lines[index].strip() != "pass" else "")


def _try_indent(lines: list[str], before: int) -> int:
    for line in reversed(lines[:before]):
        if line.lstrip().startswith("try:"):
            return len(line) - len(line.lstrip())
    return 0
