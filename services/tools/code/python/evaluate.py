"""Expressions: what value each has, as far as constants, origins and taints go."""

from __future__ import annotations

import ast
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from services.tools.code.python import calls as library
from services.tools.code.python.constants import arithmetic, interleave
from services.tools.code.python.facts import Call, Compare, Facts, Scope
from services.tools.code.python.guards import dotted
from services.tools.code.python.marks import secret, sourced
from services.tools.code.python.names import canonical
from services.tools.code.python.sources import kind_of_call
from services.tools.code.python.values import (
    HOLE,
    MAX_TEXT,
    NOTHING,
    UNKNOWN,
    Label,
    Taint,
    Value,
    join,
    merge,
    skeleton,
)

Env = dict[str, Value]

# Expressions evaluated in one file: about half a second. Files of a thousand lines need a tenth of it.
MAX_STEPS: Final = 60_000
_MAX_ORIGIN: Final = 160
_MAX_REPEAT: Final = 4096


class ExhaustedError(Exception):
    """The budget of one file is used up."""


class Evaluator(ABC):
    """Evaluates expressions in an environment and writes down the calls and comparisons that it meets."""

    def __init__(self, names: dict[str, str], facts: Facts) -> None:
        self.names = names
        self.facts = facts
        self.scope = Scope()
        self.globals: Env = {}
        self._steps = 0
        self._handlers: dict[type[ast.AST], Callable[[ast.expr, Env], Value]] = {
            getattr(ast, name.removeprefix("_on_")): getattr(self, name)
            for name in dir(self)
            if name.startswith("_on_")
        }

    def eval(self, node: ast.expr | None, env: Env) -> Value:
        """Give the value of an expression."""
        if node is None:
            return UNKNOWN
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise ExhaustedError
        handler = self._handlers.get(type(node))
        return handler(node, env) if handler else self._children(node, env)

    @abstractmethod
    def call_local(
        self, node: ast.Call, name: str, args: list[Value], keywords: dict[str, Value]
    ) -> Value | None:
        """Follow a call into a function of this file; None when there is none of that name."""

    def _children(self, node: ast.expr, env: Env) -> Value:
        parts = [self.eval(child, env) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
        return Value(taints=merge(*(part.taints for part in parts)), node=node)

    def _on_Constant(self, node: ast.Constant, env: Env) -> Value:  # noqa: ARG002 - as all handlers
        text = node.value if isinstance(node.value, str) else None
        if isinstance(node.value, bytes):
            text = node.value.decode("latin-1")
        return Value(const=node.value, text=text, node=node)

    def _on_Name(self, node: ast.Name, env: Env) -> Value:
        value = env.get(node.id)
        if value is None:
            value = self.globals.get(node.id)
        if value is None:
            origin = self.names.get(node.id, node.id)
            value = sourced(Value(origin=origin, node=node), node, origin, self.scope.bases)
        return secret(value, node, node.id)

    def _on_Attribute(self, node: ast.Attribute, env: Env) -> Value:
        path = dotted(node)
        if path and path in env:
            return secret(env[path], node, node.attr)
        base = self.eval(node.value, env)
        origin = canonical(f"{base.origin}.{node.attr}")[-_MAX_ORIGIN:] if base.origin else ""
        value = Value(origin=origin, taints=base.taints, node=node)
        value = sourced(value, node, origin, self.scope.bases)
        return secret(value, node, node.attr)

    def _on_Subscript(self, node: ast.Subscript, env: Env) -> Value:
        base = self.eval(node.value, env)
        key = self.eval(node.slice, env)
        origin = f"{base.origin}[]" if base.origin else ""
        value = Value(origin=origin, taints=base.taints, node=node)
        if isinstance(node.slice, ast.Slice):
            value = replace(base, const=NOTHING, node=node)
        elif (
            base.items
            and isinstance(key.const, int)
            and not base.keys
            and -len(base.items) <= key.const < len(base.items)
        ):
            value = base.items[key.const]
        elif base.keys and key.const in base.keys:
            value = base.items[base.keys.index(key.const)]
        elif base.items and not base.taints:
            value = Value(node=node)
        return secret(value, node, key.string) if key.string else value

    def _on_Slice(self, node: ast.Slice, env: Env) -> Value:
        for part in (node.lower, node.upper, node.step):
            self.eval(part, env)
        return UNKNOWN

    def _on_JoinedStr(self, node: ast.JoinedStr, env: Env) -> Value:
        parts = []
        for part in node.values:
            inner = part.value if isinstance(part, ast.FormattedValue) else part
            value = self.eval(inner, env)
            if isinstance(part, ast.FormattedValue) and part.format_spec is not None:
                self.eval(part.format_spec, env)
            if isinstance(part, ast.FormattedValue) and part.conversion == ord("r"):
                value = value.cleared_for(library.cleared_by("repr"))
            parts.append(value)
        return self._text(node, parts)

    def _on_BinOp(self, node: ast.BinOp, env: Env) -> Value:
        left, right = self.eval(node.left, env), self.eval(node.right, env)
        if isinstance(node.op, ast.Add):
            if left.text is not None or right.text is not None or left.built or right.built:
                return self._text(node, [left, right])
            return Value(
                taints=merge(left.taints, right.taints),
                items=left.items + right.items,
                node=node,
                built=bool(left.taints or right.taints),
            )
        if isinstance(node.op, ast.Mod) and left.text is not None:
            return self._text(
                node, interleave(left.text, "%", list(right.items) or [right]), taken=[left, right]
            )
        if (
            isinstance(node.op, ast.Mult)
            and isinstance(left.const, str | bytes)
            and isinstance(right.const, int)
        ):
            constant = (
                left.const * min(right.const, _MAX_REPEAT) if len(left.const) <= _MAX_REPEAT else left.const
            )
            return Value(const=constant, text=skeleton(left), node=node)
        if isinstance(node.op, ast.Div) and (
            left.origin.startswith("pathlib.") or left.origin.endswith("Path()")
        ):
            return Value(
                origin=left.origin,
                taints=merge(left.taints, right.taints),
                text=f"{skeleton(left)}/{skeleton(right)}",
                node=node,
                built=True,
            )
        origin = left.origin if isinstance(node.op, ast.BitOr) else ""
        return Value(
            origin=origin,
            const=arithmetic(node.op, left.const, right.const),
            taints=merge(left.taints, right.taints),
            node=node,
        )

    def _on_BoolOp(self, node: ast.BoolOp, env: Env) -> Value:
        values = [self.eval(value, env) for value in node.values]
        result = values[0]
        for value in values[1:]:
            result = join(result, value)
        return result

    def _on_IfExp(self, node: ast.IfExp, env: Env) -> Value:
        self.eval(node.test, env)
        return join(self.eval(node.body, env), self.eval(node.orelse, env))

    def _on_Compare(self, node: ast.Compare, env: Env) -> Value:
        left = self.eval(node.left, env)
        for operator, comparator in zip(node.ops, node.comparators, strict=True):
            right = self.eval(comparator, env)
            self.facts.compares.append(Compare(node, left, operator, right, self.scope))
            left = right
        return Value(node=node)

    def _on_UnaryOp(self, node: ast.UnaryOp, env: Env) -> Value:
        value = self.eval(node.operand, env)
        if isinstance(node.op, ast.Not):
            return Value(const=not value.const if value.known else NOTHING, node=node)
        if isinstance(node.op, ast.USub) and isinstance(value.const, int | float):
            return Value(const=-value.const, node=node)
        return value

    def _display(self, node: ast.List | ast.Tuple | ast.Set, env: Env) -> Value:
        items = tuple(self.eval(item, env) for item in node.elts)
        return Value(taints=merge(*(item.taints for item in items)), items=items, node=node)

    _on_List = _on_Tuple = _on_Set = _display

    def _on_Dict(self, node: ast.Dict, env: Env) -> Value:
        keys = tuple(self.eval(key, env).const if key is not None else NOTHING for key in node.keys)
        items = tuple(self.eval(value, env) for value in node.values)
        return Value(taints=merge(*(item.taints for item in items)), items=items, keys=keys, node=node)

    def _comprehension(
        self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp, env: Env
    ) -> Value:
        inner = dict(env)
        for generator in node.generators:
            self.bind(generator.target, self.element(self.eval(generator.iter, inner)), inner)
            for condition in generator.ifs:
                self.eval(condition, inner)
        if isinstance(node, ast.DictComp):
            self.eval(node.key, inner)
            result = self.eval(node.value, inner)
        else:
            result = self.eval(node.elt, inner)
        return Value(taints=result.taints, node=node, built=result.built)

    _on_ListComp = _on_SetComp = _on_GeneratorExp = _on_DictComp = _comprehension

    def _on_Lambda(self, node: ast.Lambda, env: Env) -> Value:
        inner = dict(env)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            inner[argument.arg] = Value(origin=argument.arg)
        self.eval(node.body, inner)
        return Value(node=node)

    def _on_NamedExpr(self, node: ast.NamedExpr, env: Env) -> Value:
        value = self.eval(node.value, env)
        self.bind(node.target, value, env)
        return value

    def _inner(self, node: ast.Await | ast.Starred | ast.FormattedValue | ast.YieldFrom, env: Env) -> Value:
        return self.eval(node.value, env)

    _on_Await = _on_Starred = _on_FormattedValue = _on_YieldFrom = _inner

    def _on_Call(self, node: ast.Call, env: Env) -> Value:
        function = self.eval(node.func, env)
        receiver = UNKNOWN
        method = node.func.id if isinstance(node.func, ast.Name) else ""
        if isinstance(node.func, ast.Attribute):
            method = node.func.attr
            receiver = env.get(dotted(node.func.value)) or self.eval_quietly(node.func.value, env)
        args = [self.eval(argument, env) for argument in node.args]
        keywords = {keyword.arg: self.eval(keyword.value, env) for keyword in node.keywords if keyword.arg}
        spread = [self.eval(keyword.value, env) for keyword in node.keywords if keyword.arg is None]
        for value in spread:
            keywords.update(
                {k: v for k, v in zip(value.keys, value.items, strict=False) if isinstance(k, str)}
            )
        starred = bool(spread) or any(isinstance(argument, ast.Starred) for argument in node.args)
        name = function.origin
        self.facts.calls.append(
            Call(node, name, method, receiver, tuple(args), keywords, self.scope, starred)
        )
        local = self.call_local(node, name, args, keywords)
        if local is not None:
            return local
        result = self._result(node, name, method, receiver, args, keywords)
        if receiver.taints and method in {"append", "add", "extend", "insert", "update", "write"}:
            return result
        self._mutate(node, method, args, env)
        return result

    def eval_quietly(self, node: ast.expr, env: Env) -> Value:
        """Evaluate again without writing facts down a second time."""
        before = len(self.facts.calls), len(self.facts.compares), len(self.facts.texts)
        value = self.eval(node, env)
        del self.facts.calls[before[0] :]
        del self.facts.compares[before[1] :]
        del self.facts.texts[before[2] :]
        return value

    def bind(self, target: ast.expr, value: Value, env: Env) -> None:
        """Give a name, or each name of a pattern, its value."""
        if isinstance(target, ast.Name):
            env[target.id] = value.then(target, f"is kept as {target.id}")
        elif isinstance(target, ast.Attribute):
            path = dotted(target)
            if path:
                env[path] = value.then(target, f"is kept as {path}")
        elif isinstance(target, ast.Tuple | ast.List):
            exact = len(value.items) == len(target.elts)
            for index, part in enumerate(target.elts):
                self.bind(part, value.items[index] if exact else self.element(value), env)
        elif isinstance(target, ast.Starred):
            self.bind(target.value, value, env)
        elif isinstance(target, ast.Subscript):
            path = dotted(target.value)
            if path and value.taints:
                old = env.get(path, Value(origin=path))
                env[path] = replace(old, taints=merge(old.taints, value.taints))

    def element(self, value: Value) -> Value:
        """Give what iterating over a value, or unpacking it, yields."""
        if value.items and not value.keys:
            result = value.items[0]
            for item in value.items[1:]:
                result = join(result, item)
            return result
        return Value(origin=f"{value.origin}[]" if value.origin else "", taints=value.taints, node=value.node)

    def _mutate(self, node: ast.Call, method: str, args: list[Value], env: Env) -> None:
        """`x.append(tainted)` taints x."""
        if method in {"append", "add", "extend", "insert", "update", "write"} and isinstance(
            node.func, ast.Attribute
        ):
            path = dotted(node.func.value)
            taints = merge(*(argument.taints for argument in args))
            if path in env and taints and "." not in path:
                env[path] = replace(env[path], taints=merge(env[path].taints, taints))

    def _result(
        self,
        node: ast.Call,
        name: str,
        method: str,
        receiver: Value,
        args: list[Value],
        keywords: dict[str, Value],
    ) -> Value:
        origin = f"{name}()"[-_MAX_ORIGIN:] if name else ""
        kind = kind_of_call(name)
        given = [*args, *keywords.values()]
        if kind is not None:
            taint = Taint(
                kind, (node.lineno, node.col_offset), ((node, f"{name or method}() reads {kind.value}"),)
            )
            value = Value(origin=origin, taints=(taint,), node=node)
            return secret(value, node, args[0].string if args else "")
        if method == "format" and receiver.text is not None:
            return self._text(node, interleave(receiver.text, "{", given), taken=[receiver, *given])
        if method == "join" and receiver.text is not None:
            joined = args[0] if args else UNKNOWN
            return self._text(node, list(joined.items) or [joined], taken=[joined])
        taints: tuple[Taint, ...] = ()
        text = built = None
        if library.passes(name):
            taints = merge(*(value.taints for value in given))
            text, built = (args[0].text, args[0].built) if args else (None, None)
            if name == "os.path.join":
                text, built = "/".join(skeleton(argument) for argument in args), True
        elif isinstance(node.func, ast.Attribute) and library.method_passes(method):
            taken = [receiver, *given] if library.method_takes(method) else [receiver]
            taints = merge(*(value.taints for value in taken))
            if method in {"encode", "decode", "strip", "lower", "upper", "replace", "rstrip", "lstrip"}:
                text, built = receiver.text, receiver.built
        first, second = (args[0].const, args[1].const) if len(args) > 1 else (NOTHING, NOTHING)
        cleared = library.cleared_by(name) | library.cleared_by_arguments(name, method, first, second)
        if name in {"re.sub", "re.subn"} and len(args) > 2:
            taints = merge(args[1].taints, args[2].taints)
        constant = args[0].const if name in {"str", "int", "bytes"} and len(args) == 1 else NOTHING
        if method == "encode" and isinstance(receiver.const, str):
            constant = receiver.const
        value = Value(origin=origin, taints=taints, text=text, node=node, built=bool(built), const=constant)
        value = value.cleared_for(cleared) if cleared else value
        return (
            secret(value, node, args[0].string)
            if method in {"get", "getlist", "pop", "get_argument"} and args
            else value
        )

    def _text(self, node: ast.expr, parts: list[Value], taken: list[Value] | None = None) -> Value:
        """Join parts to a text and write it down when not all of it is literal."""
        taints = merge(*(part.taints for part in (taken if taken is not None else parts)))
        taints = tuple(
            replace(taint.then(node, "becomes part of a text"), cleared=taint.cleared | {Label.NOSQL})
            for taint in taints
        )
        text = "".join(skeleton(part) for part in parts)[:MAX_TEXT]
        if HOLE not in text:
            return Value(const=text, text=text, taints=taints, node=node)
        value = Value(taints=taints, text=text, node=node, built=True, items=tuple(parts))
        self.facts.texts.append((node, value, self.scope))
        return replace(value, items=())
