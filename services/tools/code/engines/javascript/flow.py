"""Follows data through a JavaScript file: what each call gets and what each place is set to.

Functions are judged alone, with parameters that anyone may give, and once more for calls in the file. Work is bounded: at
the limit the rest is left out and a problem says so.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from services.tools.code.engines.javascript import guards, known
from services.tools.code.engines.javascript.values import (
    HOLE,
    OUTSIDE,
    UNKNOWN,
    Kind,
    Taint,
    Value,
    either,
    joined,
    module_name,
    worst,
)
from services.tools.code.grammar import Node, Tree, javascript_tree
from services.tools.code.model import Source, Step

FUNCTIONS: Final = (
    "function_declaration", "function_expression", "arrow_function", "method_definition",
    "generator_function", "generator_function_declaration",
)  # fmt: skip
_MAX_WORK: Final = 150_000
_MAX_CALL_DEPTH: Final = 3
_MAX_LITERAL: Final = 500
_PATTERNS: Final = frozenset(
    {"object_pattern", "array_pattern", "assignment_pattern", "rest_pattern", "object_assignment_pattern"}
)
_CONDITIONAL: Final = frozenset(
    {
        "if_statement",
        "for_statement",
        "for_in_statement",
        "while_statement",
        "do_statement",
        "switch_statement",
        "try_statement",
    }
)


@dataclass(frozen=True, slots=True)
class Call:
    """A call or `new`, with what it got."""

    node: Node
    name: str
    method: str
    receiver: Value
    args: tuple[Value, ...]
    is_new: bool
    function: Node | None

    def arg(self, index: int) -> Value:
        return self.args[index] if -len(self.args) <= index < len(self.args) else UNKNOWN


@dataclass(frozen=True, slots=True)
class Store:
    """A property that is set: `object.name = value` or `object[key] = value`."""

    node: Node
    object: Value
    name: str
    key: Value
    value: Value


class _Enough(Exception):  # noqa: N818 - not an error
    pass


class _Scope:
    __slots__ = ("parent", "values")

    def __init__(self, parent: _Scope | None) -> None:
        self.parent = parent
        self.values: dict[str, Value] = {}

    def find(self, name: str) -> _Scope | None:
        scope: _Scope | None = self
        while scope is not None and name not in scope.values:
            scope = scope.parent
        return scope


class Flow:
    """The calls and stores of one file."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.calls: list[Call] = []
        self.stores: list[Store] = []
        self.truncated = False
        self._work = 0
        self._closures: dict[Node, _Scope] = {}
        self._waiting: list[Node] = []
        self._running: list[Node] = []
        self._returned: list[list[Value]] = []
        self._cleared: dict[str, frozenset[str]] = {}
        self._conditional = 0
        with suppress(RecursionError):
            try:
                self._all()
            except _Enough:
                self.truncated = True

    def _all(self) -> None:
        scope = _Scope(None)
        self._block(self.tree.root.children, scope)
        seen: set[Node] = set()
        while self._waiting:
            node = self._waiting.pop(0)
            if node not in seen:
                seen.add(node)
                self._invoke(node, None)

    # Functions

    def _invoke(self, node: Node, args: tuple[Value, ...] | None) -> Value:
        """Go through a function's body; without arguments its parameters are what their names say."""
        if node in self._running or len(self._running) > _MAX_CALL_DEPTH:
            return UNKNOWN
        scope = _Scope(self._closures.get(node))
        parameters = node.fields.get("parameters")
        single = node.fields.get("parameter")
        names = [single] if single is not None else [] if parameters is None else parameters.children
        for index, name in enumerate(child for child in names if child.kind != "comment"):
            given = args[index] if args is not None and index < len(args) else UNKNOWN
            self._bind(name, self._parameter(node, name, index) if given == UNKNOWN else given, scope)
        body = node.fields.get("body")
        if body is None:
            return UNKNOWN
        cleared, conditional = self._cleared, self._conditional
        self._cleared, self._conditional = dict(cleared), 0
        self._running.append(node)
        self._returned.append([])
        try:
            if body.kind == "statement_block":
                self._block(body.children, scope)
            else:
                self._returned[-1].append(self.value(body, scope))
        finally:
            returned = self._returned.pop()
            self._running.pop()
            self._cleared, self._conditional = cleared, conditional
        result = UNKNOWN
        for each in returned:
            result = either(result, each)
        return result

    def _parameter(self, function: Node, node: Node, index: int) -> Value:
        name = (node.fields.get("left") or node).text if node.kind == "assignment_pattern" else node.text
        if node.kind == "object_pattern" and index == 0 and known.is_handler_pattern(node.text):
            return Value(name="@req")
        special = known.parameter_name(name, index)
        if special == "@error":
            return Value(self._taint(Kind.ERROR, node, name))
        if special:
            return Value(name=special)
        if node.kind == "object_pattern":
            return Value(self._taint(Kind.CALLER, node, f"{function.start}"))
        return Value(self._taint(Kind.CALLER, node, f"{function.start}:{name}"))

    def _taint(self, kind: Kind, node: Node, origin: str) -> Taint:
        what = f"{kind.value} is read"
        return Taint(kind, (Step(self.tree.region(node), what),), origin=origin)

    # Statements

    def _block(self, nodes: list[Node], scope: _Scope) -> None:
        for node in nodes:
            if node.kind in {"function_declaration", "generator_function_declaration"}:
                name = node.fields.get("name")
                made = self._function(node, scope)
                if name is not None:
                    scope.values[name.text] = made
        for node in nodes:
            self._statement(node, scope)

    def _statement(self, node: Node, scope: _Scope) -> None:
        self._count()
        kind = node.kind
        if kind in {"lexical_declaration", "variable_declaration"}:
            for each in node.children:
                self._declare(each, scope)
        elif kind == "import_statement":
            self._import(node, scope)
        elif kind == "if_statement":
            self._if(node, scope)
        elif kind == "return_statement":
            value = self.value(node.children[0], scope) if node.children else UNKNOWN
            if self._returned:
                self._returned[-1].append(value)
        elif kind == "for_in_statement":
            source = self.value(node.fields["right"], scope) if "right" in node.fields else UNKNOWN
            if "left" in node.fields:
                self._bind(node.fields["left"], Value(source.taint), scope)
            self._inside(node.fields.get("body"), scope)
        elif kind == "catch_clause":
            if "parameter" in node.fields:
                name = node.fields["parameter"]
                self._bind(name, Value(self._taint(Kind.ERROR, name, name.text)), scope)
            self._inside(node.fields.get("body"), scope)
        elif kind in {"function_declaration", "generator_function_declaration"}:
            pass
        elif kind in _CONDITIONAL or kind.endswith(("_statement", "_block", "_clause", "_body", "_case", "_default")) or kind in {
            "export_statement", "class_declaration", "program",
        }:  # fmt: skip
            self._conditional += kind in _CONDITIONAL
            self._block(node.children, scope)
            self._conditional -= kind in _CONDITIONAL
        elif kind == "method_definition":
            self._function(node, scope)
        else:
            self.value(node, scope)

    def _inside(self, node: Node | None, scope: _Scope) -> None:
        if node is not None:
            self._conditional += 1
            self._block(node.children if node.kind == "statement_block" else [node], scope)
            self._conditional -= 1

    def _if(self, node: Node, scope: _Scope) -> None:
        condition = node.fields.get("condition")
        proved: dict[str, frozenset[str]] = {}
        if condition is not None:
            self.value(condition, scope)
            proved = guards.proved(condition, lambda each: self._quietly(each, scope))
        before = self._cleared
        consequence = node.fields.get("consequence")
        if consequence is not None and guards.leaves(consequence):
            self._inside(consequence, scope)
            self._inside(node.fields.get("alternative"), scope)
            self._clear(proved)
            return
        self._cleared = dict(before)
        self._clear(proved)
        self._inside(consequence, scope)
        self._cleared = before
        self._inside(node.fields.get("alternative"), scope)

    def _clear(self, proved: dict[str, frozenset[str]]) -> None:
        for origin, rules in proved.items():
            self._cleared[origin] = self._cleared.get(origin, frozenset()) | rules

    def _declare(self, node: Node, scope: _Scope) -> None:
        name, value = node.fields.get("name"), node.fields.get("value")
        if name is not None:
            self._bind(name, UNKNOWN if value is None else self.value(value, scope), scope)

    def _import(self, node: Node, scope: _Scope) -> None:
        source = node.fields.get("source")
        module = module_name(source.text.strip("'\"")) if source is not None else ""
        for each in node.walk():
            if each.kind == "import_specifier" and "name" in each.fields:
                alias = each.fields.get("alias", each.fields["name"])
                scope.values[alias.text] = Value(name=f"{module}.{each.fields['name'].text}")
            elif (
                each.kind == "identifier"
                and each.parent is not None
                and each.parent.kind in {"import_clause", "namespace_import"}
            ):
                scope.values[each.text] = Value(name=module)

    def _bind(self, node: Node, value: Value, scope: _Scope) -> None:
        """Give a name, or the names of a pattern, their values."""
        self._count()
        if node.kind in {"identifier", "shorthand_property_identifier_pattern"}:
            if value.taint is not None:
                value = replace(value, taint=value.taint.then(self.tree.region(node), f"kept as {node.text}"))
            scope.values[node.text] = value
        elif node.kind in {"assignment_pattern", "object_assignment_pattern"} and "left" in node.fields:
            self._bind(node.fields["left"], value, scope)
        elif node.kind == "object_pattern":
            for each in node.children:
                key = each.fields.get("key") or each.fields.get("left") or each
                inner = self._member(value, key.text, each) if each.kind != "rest_pattern" else value
                self._bind(each.fields.get("value") or each, inner, scope)
        elif node.kind in {"array_pattern", "rest_pattern"}:
            for each in node.children:
                self._bind(each, Value(value.taint, value.name), scope)
        elif node.kind in {"lexical_declaration", "variable_declaration"}:
            for each in node.children:
                self._bind(each.fields.get("name", each), value, scope)

    # Expressions

    def value(self, node: Node, scope: _Scope) -> Value:
        """What is known of an expression."""
        self._count()
        evaluate = _EXPRESSIONS.get(node.kind)
        if evaluate is not None:
            return evaluate(self, node, scope)
        if node.kind in FUNCTIONS:
            return self._function(node, scope)
        result = UNKNOWN
        for each in node.children:
            result = either(result, self.value(each, scope))
        return result if node.kind in known.TRANSPARENT else UNKNOWN

    def _quietly(self, node: Node, scope: _Scope) -> Value:
        """A value, without its calls being noted a second time."""
        calls, stores = len(self.calls), len(self.stores)
        found = self.value(node, scope)
        del self.calls[calls:], self.stores[stores:]
        return found

    def _function(self, node: Node, scope: _Scope) -> Value:
        if node not in self._closures:
            self._closures[node] = scope
            self._waiting.append(node)
        return Value(function=node)

    def _identifier(self, node: Node, scope: _Scope) -> Value:
        name = node.text
        found = scope.find(name)
        if found is not None:
            return self._checked(found.values[name])
        return Value(name=known.GLOBALS.get(name, name))

    def _checked(self, value: Value) -> Value:
        """Take what checks proved into account."""
        if value.taint is None or not self._cleared:
            return value
        origin, rules = value.taint.origin, value.taint.cleared
        for place, proved in self._cleared.items():
            if origin == place or origin.startswith(place + "."):
                rules = rules | proved
        return (
            value
            if rules == value.taint.cleared
            else replace(value, taint=replace(value.taint, cleared=rules))
        )

    def _member_expression(self, node: Node, scope: _Scope) -> Value:
        of, name = node.fields.get("object"), node.fields.get("property")
        if of is None or name is None:
            return UNKNOWN
        return self._member(self.value(of, scope), name.text, node)

    def _member(self, of: Value, name: str, node: Node) -> Value:
        if name in of.keys:
            return self._checked(of.keys[name])
        dotted = f"{of.name}.{name}" if of.name else f".{name}"
        kind = known.source_of(dotted)
        if kind is not None:
            return self._checked(Value(self._taint(kind, node, dotted), dotted))
        if of.taint is None:
            return Value(name=known.ALIASES.get(dotted, dotted))
        if name == "length":
            return UNKNOWN
        return self._checked(Value(replace(of.taint, origin=f"{of.taint.origin}.{name}"), dotted))

    def _subscript(self, node: Node, scope: _Scope) -> Value:
        of, index = node.fields.get("object"), node.fields.get("index")
        value = UNKNOWN if of is None else self.value(of, scope)
        key = UNKNOWN if index is None else self.value(index, scope)
        return self._member(value, key.constant or "*", node)

    def _string(self, node: Node, scope: _Scope) -> Value:  # noqa: ARG002 - as the others
        return Value(text=node.text[1:-1])

    def _literal(self, node: Node, scope: _Scope) -> Value:  # noqa: ARG002 - as the others
        return Value(name=node.text[:_MAX_LITERAL])

    def _template(self, node: Node, scope: _Scope) -> Value:
        parts: list[Value] = []
        for each in node.children:
            if each.kind == "template_substitution":
                inner = self.value(each.children[0], scope) if each.children else UNKNOWN
                parts.append(replace(inner, text=HOLE if inner.text is None else inner.text))
            else:
                parts.append(Value(text=each.text))
        return joined(parts, self.tree.region(node))

    def _binary(self, node: Node, scope: _Scope) -> Value:
        left, right = node.fields.get("left"), node.fields.get("right")
        if left is None or right is None:
            return UNKNOWN
        # A sum of many texts leans to the left; it is walked down without recursion.
        chain = [right]
        while (
            left.kind == "binary_expression"
            and "left" in left.fields
            and "right" in left.fields
            and known.operator(left) == "+"
        ):
            chain.append(left.fields["right"])
            left = left.fields["left"]
        values = [self.value(each, scope) for each in (left, *reversed(chain))]
        operator = known.operator(node)
        if operator == "+":
            return joined(values, self.tree.region(node))
        if operator in {"||", "??", "&&"}:
            result = UNKNOWN
            for each in values:
                result = either(result, each)
            return result
        return UNKNOWN

    def _ternary(self, node: Node, scope: _Scope) -> Value:
        condition = node.fields.get("condition")
        before = self._cleared
        if condition is not None:
            self.value(condition, scope)
            self._cleared = dict(before)
            self._clear(guards.proved(condition, lambda each: self._quietly(each, scope)))
        parts = [
            self.value(node.fields[name], scope)
            for name in ("consequence", "alternative")
            if name in node.fields
        ]
        self._cleared = before
        return either(parts[0], parts[1]) if len(parts) > 1 else UNKNOWN

    def _assignment(self, node: Node, scope: _Scope) -> Value:
        left, right = node.fields.get("left"), node.fields.get("right")
        if left is None or right is None:
            return UNKNOWN
        value = self.value(right, scope)
        if node.kind == "augmented_assignment_expression" and known.operator(node) == "+=":
            value = joined([self.value(left, scope), value], self.tree.region(node))
        if left.kind == "identifier":
            target = scope.find(left.text) or scope
            old = target.values.get(left.text, UNKNOWN)
            target.values[left.text] = either(value, old) if self._conditional and old.taint else value
        elif left.kind == "member_expression" and "object" in left.fields and "property" in left.fields:
            name = left.fields["property"].text
            self.stores.append(Store(node, self.value(left.fields["object"], scope), name, UNKNOWN, value))
        elif left.kind == "subscript_expression" and "object" in left.fields and "index" in left.fields:
            of, key = self.value(left.fields["object"], scope), self.value(left.fields["index"], scope)
            self.stores.append(Store(node, of, key.constant, key, value))
        elif left.kind in _PATTERNS:
            self._bind(left, value, scope)
        return value

    def _object(self, node: Node, scope: _Scope) -> Value:
        keys: dict[str, Value] = {}
        spread: list[Value] = []
        for each in node.children:
            if each.kind == "pair" and "key" in each.fields and "value" in each.fields:
                keys[each.fields["key"].text.strip("'\"")] = self.value(each.fields["value"], scope)
            elif each.kind == "shorthand_property_identifier":
                keys[each.text] = self._identifier(each, scope)
            elif each.kind == "method_definition":
                keys[each.fields["name"].text if "name" in each.fields else ""] = self._function(each, scope)
            else:
                spread.append(self.value(each, scope))
        return Value(taint=worst(spread), keys=keys)

    def _array(self, node: Node, scope: _Scope) -> Value:
        items = tuple(self.value(each, scope) for each in node.children)
        return Value(taint=worst(list(items)), items=items)

    def _call(self, node: Node, scope: _Scope) -> Value:
        callee = node.fields.get("function") or node.fields.get("constructor")
        arguments = node.fields.get("arguments")
        if callee is None:
            return UNKNOWN
        receiver, method = UNKNOWN, ""
        if callee.kind == "member_expression" and "object" in callee.fields and "property" in callee.fields:
            receiver = self.value(callee.fields["object"], scope)
            method = callee.fields["property"].text
            # The receiver's calls are noted once.
            called = self._member(replace(receiver, keys=receiver.keys), method, callee)
        else:
            called = self.value(callee, scope)
        given = [] if arguments is None else arguments.children
        if arguments is not None and arguments.kind == "template_string":
            # A tag gets the parts apart, as parameters of a query.
            self.value(arguments, scope)
            given = []
        args = tuple(self.value(each, scope) for each in given if each.kind != "comment")
        call = Call(node, called.name, method or called.name.rpartition(".")[2], receiver, args, node.kind == "new_expression",
                    self._running[-1] if self._running else None)  # fmt: skip
        self.calls.append(call)
        return self._result(call, called)

    def _result(self, call: Call, called: Value) -> Value:
        if call.name == "require" and call.arg(0).constant:
            return Value(name=module_name(call.arg(0).constant))
        if call.name in known.SAME_FUNCTION:
            return replace(call.arg(0), taint=None)
        if called.function is not None and len(self._running) <= _MAX_CALL_DEPTH:
            return self._checked(self._invoke(called.function, call.args))
        self._callbacks(call)
        name = f"{call.name}()"
        kind = known.source_of(name)
        if kind is not None:
            return self._checked(Value(self._taint(kind, call.node, call.node.text[:200]), name))
        taint = known.taint_after(call.name, call.method, call.receiver, call.args)
        if taint is not None:
            taint = taint.then(self.tree.region(call.node), f"passed through {call.method or call.name}")
        if known.is_fixed(call.name, call.args):
            return Value(name="$fixed")
        text = known.text_after(call.name, call.args)
        return self._checked(Value(taint, known.ALIASES.get(name, name), text))

    def _callbacks(self, call: Call) -> None:
        """A function that is handed over gets what it will be called with."""
        for function in (each.function for each in call.args):
            if function is None:
                continue
            kind = known.callback_source(call.name, call.method, call.receiver, call.arg(0).constant)
            if kind is not None:
                self._invoke(function, (Value(self._taint(kind, function, f"{function.start}")),))
            elif call.receiver.of(OUTSIDE):
                self._invoke(function, (Value(call.receiver.taint),))

    def _count(self) -> None:
        self._work += 1
        if self._work > _MAX_WORK:
            raise _Enough


_EXPRESSIONS: Final[dict[str, Callable[[Flow, Node, _Scope], Value]]] = {
    "identifier": Flow._identifier,  # noqa: SLF001 - the table of this class
    "member_expression": Flow._member_expression,  # noqa: SLF001
    "subscript_expression": Flow._subscript,  # noqa: SLF001
    "string": Flow._string,  # noqa: SLF001
    **dict.fromkeys(("number", "true", "false", "null", "undefined", "regex"), Flow._literal),  # noqa: SLF001
    "template_string": Flow._template,  # noqa: SLF001
    "binary_expression": Flow._binary,  # noqa: SLF001
    "ternary_expression": Flow._ternary,  # noqa: SLF001
    "assignment_expression": Flow._assignment,  # noqa: SLF001
    "augmented_assignment_expression": Flow._assignment,  # noqa: SLF001
    "object": Flow._object,  # noqa: SLF001
    "array": Flow._array,  # noqa: SLF001
    "call_expression": Flow._call,  # noqa: SLF001
    "new_expression": Flow._call,  # noqa: SLF001
}


def javascript_flow(source: Source) -> Flow:
    """Follow the data of a file, once for all engines."""
    return Flow(source.once(javascript_tree))
