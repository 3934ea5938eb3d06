"""A Python file as libcst sees it: nodes with their bytes, what names mean, and changes that keep layout."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final, Self, TypeVar, cast

import libcst as cst
from libcst import metadata
from libcst._nodes.internal import CodegenState

from services.tools.code.lines import Lines
from services.tools.code.model import Region, Span
from services.tools.code.repair.model import Change, DeclinedError, Place

MAX_BYTES: Final = 256 * 1024
"""Working out what names mean takes seconds beyond this."""

N = TypeVar("N", bound=cst.CSTNode)


class Tree:
    """One parsed file; made by `parse`."""

    def __init__(self, wrapper: metadata.MetadataWrapper, text: bytes) -> None:
        self.module = wrapper.module
        self.text = text
        self._spans = wrapper.resolve(metadata.ByteSpanPositionProvider)
        self._names = wrapper.resolve(metadata.QualifiedNameProvider)
        self._parents = wrapper.resolve(metadata.ParentNodeProvider)
        self._nodes = sorted(
            (node for node in self._spans if isinstance(node, cst.BaseExpression | cst.BaseSmallStatement)),
            key=lambda node: (self.place(node).start, -self.place(node).end),
        )

    @classmethod
    def parse(cls, content: str) -> Self:
        """Raises DeclinedError for a text that libcst cannot give back byte by byte."""
        text = content.encode("utf-8", "surrogatepass")
        if len(text) > MAX_BYTES:
            raise DeclinedError(f"the file has over {MAX_BYTES} bytes; split it")
        try:
            module = cst.parse_module(content)
            if module.code != content:
                raise DeclinedError("the file's layout cannot be kept")
            return cls(metadata.MetadataWrapper(module), text)
        except (cst.ParserSyntaxError, cst.CSTValidationError, UnicodeError, ValueError) as error:
            raise DeclinedError("the file cannot be parsed") from error
        except RecursionError:
            raise DeclinedError("the file is nested too deeply") from None

    def place(self, node: cst.CSTNode) -> Place:
        """Where a node stands."""
        span = self._spans[node]
        return Place(span.start, span.start + span.length)

    def source(self, node: cst.CSTNode) -> str:
        """A node's own text."""
        place = self.place(node)
        return self.text[place.start : place.end].decode("utf-8", "surrogatepass")

    def code(self, node: cst.CSTNode, indents: Sequence[str] = ()) -> str:
        """The text of a node that may be new, as it is written at this depth."""
        if not indents:
            return self.module.code_for_node(node)
        state = CodegenState(self.module.default_indent, self.module.default_newline)
        for indent in indents:
            state.increase_indent(indent)
        node._codegen(state)  # noqa: SLF001 - as Module.code_for_node does, which knows no depth
        return "".join(state.tokens)

    def inside(self, place: Place, kind: type[N]) -> Iterator[N]:
        """Nodes of a kind that lie in a place, the outer ones first."""
        for node in self._nodes:
            where = self.place(node)
            if isinstance(node, kind) and place.start <= where.start and where.end <= place.end:
                yield node

    def between(self, left: cst.CSTNode, right: cst.CSTNode) -> str:
        """The text between two nodes."""
        return self.text[self.place(left).end : self.place(right).start].decode("utf-8", "surrogatepass")

    def calls(self, place: Place, *names: str) -> Iterator[tuple[cst.Call, str]]:
        """Calls in a place of imported or built-in functions, with the full name."""
        for call in self.inside(place, cst.Call):
            name = self.name(call.func)
            if name in names:
                yield call, name

    def name(self, node: cst.CSTNode) -> str:
        """The full name of what was imported or is built in, e.g. `yaml.load`; "" for anything else."""
        found = self._names.get(node, ())
        names = {
            each.name.removeprefix("builtins.")
            for each in cast("set[metadata.QualifiedName]", found() if callable(found) else found)
            if each.source is not metadata.QualifiedNameSource.LOCAL
        }
        return names.pop() if len(names) == 1 else ""

    def parent(self, node: cst.CSTNode) -> cst.CSTNode | None:
        """What a node stands in."""
        return self._parents.get(node)

    def body_of(self, node: cst.CSTNode) -> cst.CSTNode:
        """The function that a node stands in, or the module."""
        above = self.parent(node)
        while above is not None and not isinstance(above, cst.FunctionDef | cst.Module):
            above = self.parent(above)
        return above or self.module

    def names_in(self, body: cst.CSTNode, name: str) -> list[cst.Name]:
        """Every mention of a name in a function or the module, in order."""
        return [
            node
            for node in self._nodes
            if isinstance(node, cst.Name) and node.value == name and self._is_under(node, body)
        ]

    def replaced(self, node: cst.CSTNode, new: cst.CSTNode | str) -> Change:
        """Put something in a node's place; parentheses around the node stay where they are."""
        place = self.place(node)
        if isinstance(new, cst.BaseExpression) and new.lpar:
            new = new.with_changes(lpar=(), rpar=())
        return Change(
            place.start, place.end, new if isinstance(new, str) else self.code(new, self._indents(node))
        )

    def module_alias(self, name: str) -> tuple[str, frozenset[str]]:
        """Under which name a module can be used at any place of the file, and what must be imported for it."""
        for statement in self._top_imports():
            if not isinstance(statement, cst.Import):
                continue
            for each in statement.names:
                if each.evaluated_name == name:
                    return each.evaluated_alias or name, frozenset()
        first = name.partition(".")[0]
        if any(
            isinstance(node, cst.Name) and node.value == first and not self._is_import_of(node, first)
            for node in self._nodes
        ):
            raise DeclinedError(f"the name {first} is in use for something else")
        return name, frozenset({name})

    def imports(self, name: str) -> bool:
        """Tell whether the file imports a module or anything from it."""
        found: list[str] = []
        for node in self._nodes:
            if isinstance(node, cst.Import):
                found += [each.evaluated_name for each in node.names]
            elif isinstance(node, cst.ImportFrom) and node.module is not None:
                found.append(self.code(node.module))
        return any(each.partition(".")[0] == name for each in found)

    def defines(self, names: Collection[str]) -> bool:
        """Tell whether the file has a function of one of these names."""
        return any(isinstance(node, cst.FunctionDef) and node.name.value in names for node in self._spans)

    def import_change(self, names: Sequence[str]) -> Change:
        """Import modules behind the first imports of the file, or in front of its first statement."""
        at = 0
        body = self.module.body
        for index, statement in enumerate(body):
            is_import = isinstance(statement, cst.SimpleStatementLine) and all(
                isinstance(each, cst.Import | cst.ImportFrom) for each in statement.body
            )
            if is_import:
                at = self._after_line(self.place(statement).end)
                continue
            if index == 0 and self.module.get_docstring(clean=False) is not None:
                at = self._after_line(self.place(statement).end)
                continue
            if at == 0:
                at = self._line_start(statement)
            break
        newline = self.module.default_newline
        missing_end = at > 0 and self.text[at - 1 : at] not in {b"\n", b"\r"}
        text = "".join(f"import {name}{newline}" for name in sorted(names))
        return Change(at, at, (newline if missing_end else "") + text)

    def extract(self, changes: Sequence[Change], path: str) -> tuple[Span, str, str]:
        """Give the lines' part that changes touch: where it is, and its text before and after."""
        start, end = min(each.start for each in changes), max(each.end for each in changes)
        after = bytearray()
        at = start
        for change in sorted(changes):
            after += self.text[at : change.start] + change.text.encode("utf-8", "surrogatepass")
            at = change.end
        before = self.text[start:end].decode("utf-8", "surrogatepass")
        first = len(self.text[:start].decode("utf-8", "surrogatepass"))
        lines = Lines(self.text.decode("utf-8", "surrogatepass"))
        region = Region(*lines.place(first), *lines.place(first + len(before)))
        return Span(path, region, start, end), before, after.decode("utf-8", "surrogatepass")

    def around(self, place: Place) -> Place | None:
        """The smallest call that a place lies in."""
        found = [
            where
            for node in self._nodes
            if isinstance(node, cst.Call)
            and (where := self.place(node)).start <= place.start
            and place.end <= where.end
        ]
        return min(found, key=lambda where: where.end - where.start, default=None)

    def _indents(self, node: cst.CSTNode) -> list[str]:
        """What the lines of a node are indented by, the outer first."""
        found: list[str] = []
        above = self.parent(node)
        while above is not None:
            if isinstance(above, cst.IndentedBlock):
                found.append(above.indent if above.indent is not None else self.module.default_indent)
            above = self.parent(above)
        return found[::-1]

    def _top_imports(self) -> Iterator[cst.Import | cst.ImportFrom]:
        for statement in self.module.body:
            if isinstance(statement, cst.SimpleStatementLine):
                for each in statement.body:
                    if isinstance(each, cst.Import | cst.ImportFrom):
                        yield each

    def _after_line(self, offset: int) -> int:
        end = self.text.find(b"\n", offset)
        return len(self.text) if end < 0 else end + 1

    def _line_start(self, statement: cst.CSTNode) -> int:
        start = self.place(statement).start
        for decorator in getattr(statement, "decorators", ()):
            start = min(start, self.place(decorator).start)
        return self.text.rfind(b"\n", 0, start) + 1

    def _is_import_of(self, node: cst.Name, module: str) -> bool:
        """Tell whether a name is a mention of the module itself: imported in some function, or an attribute."""
        above = self.parent(node)
        if isinstance(above, cst.Attribute) and above.attr is node:
            return True
        if isinstance(above, cst.ImportAlias | cst.ImportFrom | cst.Arg):
            is_keyword = isinstance(above, cst.Arg) and above.keyword is node
            return is_keyword or not isinstance(above, cst.Arg)
        return self.name(node) == module

    def _is_under(self, node: cst.CSTNode, body: cst.CSTNode) -> bool:
        above: cst.CSTNode | None = node
        while above is not None and above is not body:
            above = self._parents.get(above)
        return above is body


def keyword(call: cst.Call, name: str) -> cst.Arg | None:
    """A call's argument by its name."""
    return next((arg for arg in call.args if arg.keyword is not None and arg.keyword.value == name), None)


def positional(call: cst.Call) -> list[cst.BaseExpression] | None:
    """A call's arguments without a name; None when one is unpacked, so that nobody knows which is which."""
    if any(arg.star for arg in call.args):
        return None
    return [arg.value for arg in call.args if arg.keyword is None]


def is_true(node: cst.CSTNode | None) -> bool:
    """Tell whether an expression is the word True."""
    return isinstance(node, cst.Name) and node.value == "True"


def is_false(node: cst.CSTNode | None) -> bool:
    """Tell whether an expression is the word False."""
    return isinstance(node, cst.Name) and node.value == "False"


def without(call: cst.Call, *names: str) -> cst.Call:
    """Leave arguments out by their names."""
    kept = [arg for arg in call.args if arg.keyword is None or arg.keyword.value not in names]
    if kept and call.args and kept[-1] is not call.args[-1]:
        # The last one's comma, or its being without one, ends the list.
        kept[-1] = kept[-1].with_changes(comma=call.args[-1].comma)
    return call.with_changes(args=kept)


def with_keyword(call: cst.Call, name: str, value: str) -> cst.Call:
    """Give an argument by its name a value, in its place or at the end."""
    expression = cst.parse_expression(value)
    old = keyword(call, name)
    if old is not None:
        new = old.with_changes(value=expression)
        return call.with_changes(args=[new if arg is old else arg for arg in call.args])
    plain = cst.AssignEqual(cst.SimpleWhitespace(""), cst.SimpleWhitespace(""))
    added = cst.Arg(expression, keyword=cst.Name(name), equal=plain)
    if not call.args:
        return call.with_changes(args=[added])
    *others, last = call.args
    between: cst.Comma | cst.MaybeSentinel
    if isinstance(last.comma, cst.Comma):
        between, end = _parted(last.comma, call.whitespace_before_args)
        added = added.with_changes(comma=end)
    else:
        between = others[-1].comma if others else cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
        added = added.with_changes(whitespace_after_arg=last.whitespace_after_arg)
        last = last.with_changes(whitespace_after_arg=cst.SimpleWhitespace(""))
    return call.with_changes(args=[*others, last.with_changes(comma=between), added])


def _parted(
    comma: cst.Comma, before_arguments: cst.BaseParenthesizableWhitespace
) -> tuple[cst.Comma, cst.Comma]:
    """Make two of the comma that ends a list: one that goes on to a next argument, with its comment, and one that ends."""
    after = comma.whitespace_after
    if isinstance(after, cst.ParenthesizedWhitespace) and isinstance(
        before_arguments, cst.ParenthesizedWhitespace
    ):
        on = after.with_changes(indent=before_arguments.indent, last_line=before_arguments.last_line)
        plain = after.first_line.with_changes(whitespace=cst.SimpleWhitespace(""), comment=None)
        return comma.with_changes(whitespace_after=on), comma.with_changes(
            whitespace_after=after.with_changes(first_line=plain, empty_lines=())
        )
    return comma.with_changes(whitespace_after=cst.SimpleWhitespace(" ")), comma
