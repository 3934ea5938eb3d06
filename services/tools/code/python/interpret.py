"""Statements: one pass over a file that follows every function with what its callers, or nobody, gave it."""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import Final

from services.tools.code.model import Source
from services.tools.code.python.evaluate import Env, Evaluator, ExhaustedError
from services.tools.code.python.facts import Facts, Raised, Return, Scope, Store
from services.tools.code.python.guards import Proof, dotted, proofs, terminates
from services.tools.code.python.names import imported, modules
from services.tools.code.python.routes import parameter_values, scope_of
from services.tools.code.python.tree import FunctionNode, PythonTree, python_tree
from services.tools.code.python.values import UNKNOWN, Kind, Label, Taint, Value, join

# A call chain deeper than this is followed no further.
_MAX_DEPTH: Final = 4
_RESOLVING: Final = (
    "os.path.realpath()",
    "os.path.abspath()",
    ".resolve()",
    "os.path.normpath()",
    "werkzeug.security.safe_join()",
)


def python_facts(source: Source) -> Facts:
    """Interpret a file; empty facts when it cannot be parsed. Used through `Source.once`."""
    tree = source.once(python_tree)
    if tree is None:
        return Facts()
    facts = Facts(imports=modules(tree.imports()))
    try:
        Interpreter(tree, facts).run()
    except (ExhaustedError, RecursionError):
        facts.exhausted = True
    return facts


class Interpreter(Evaluator):
    """Runs statements abstractly: both branches of a condition, loops twice, functions once alone and once per call."""

    def __init__(self, tree: PythonTree, facts: Facts) -> None:
        super().__init__(imported(tree.imports()), facts)
        self._tree = tree
        self._functions: dict[str, FunctionNode] = {}
        self._classes: dict[str, ast.ClassDef] = {}
        self._attributes: dict[str, Env] = {}
        self._active: list[FunctionNode] = []
        self._returned: list[list[Value]] = []
        for node in tree.functions():
            self._functions.setdefault(node.name, node)
        for holder in tree.all(ast.ClassDef):
            self._classes.setdefault(holder.name, holder)

    def run(self) -> None:
        """Interpret the module, then each function by itself."""
        module = self._tree.module
        self.scope = Scope(node=module)
        self.facts.scopes.append(self.scope)
        self._block(module.body, self.globals)
        for node in sorted(self._tree.functions(), key=_init_first):
            self._alone(node)

    def call_local(
        self, node: ast.Call, name: str, args: list[Value], keywords: dict[str, Value]
    ) -> Value | None:
        short = name.removeprefix("self.").removeprefix("cls.")
        short = short.rpartition(".")[2] if short.partition(".")[0] in self._classes else short
        function = self._functions.get(short)
        if function is None or "." in short or len(self._active) >= _MAX_DEPTH or function in self._active:
            return None
        parameters = [*function.args.posonlyargs, *function.args.args]
        if parameters and parameters[0].arg in {"self", "cls"}:
            parameters = parameters[1:]
        env: Env = {}
        for parameter, value in zip(parameters, args, strict=False):
            env[parameter.arg] = value.then(node, f"is given to {short}()")
        for key, value in keywords.items():
            env[key] = value.then(node, f"is given to {short}()")
        for argument in (*parameters, *function.args.kwonlyargs):
            env.setdefault(argument.arg, UNKNOWN)
        return self._body(function, env)

    def _alone(self, function: FunctionNode) -> None:
        scope = scope_of(function, self._tree, self)
        self.facts.scopes.append(scope)
        env = dict(self._attributes.get(scope.class_name, {}))
        env.update(parameter_values(function, scope, self))
        before = self.scope
        self.scope = scope
        try:
            self._body(function, env)
        finally:
            self.scope = before

    def _body(self, function: FunctionNode, env: Env) -> Value:
        self._active.append(function)
        self._returned.append([])
        before = self.scope
        if len(self._active) > 1 or before.node is not function:
            self.scope = scope_of(function, self._tree, self)
        try:
            self._block(function.body, env)
        finally:
            self._active.pop()
            values = self._returned.pop()
            scope = self.scope
            self.scope = before
        if scope.class_name:
            kept = self._attributes.setdefault(scope.class_name, {})
            kept.update(
                {key: value for key, value in env.items() if key.startswith("self.") and not value.taints}
            )
        result = UNKNOWN
        for index, value in enumerate(values):
            result = value if index == 0 else join(result, value)
        return result

    def _block(self, body: list[ast.stmt], env: Env) -> None:
        for statement in body:
            self._statement(statement, env)

    def _statement(self, node: ast.stmt, env: Env) -> None:
        match node:
            case ast.Assign():
                value = self.eval(node.value, env)
                for target in node.targets:
                    self._store(node, target, value, env)
            case ast.AnnAssign():
                if node.value is not None:
                    self._store(node, node.target, self.eval(node.value, env), env)
            case ast.AugAssign():
                load = _as_load(node.target)
                combined = ast.copy_location(ast.BinOp(load, node.op, node.value), node)
                self._store(node, node.target, self.eval(combined, env), env)
            case ast.Expr():
                self.eval(node.value, env)
            case ast.Return():
                value = self.eval(node.value, env)
                self.facts.returns.append(Return(node, value, self.scope))
                if self._returned:
                    self._returned[-1].append(value)
            case ast.If():
                self._if(node, env)
            case ast.For() | ast.AsyncFor() | ast.While():
                self._loop(node, env)
            case ast.With() | ast.AsyncWith():
                self._with(node, env)
            case ast.Try() | ast.TryStar():
                self._try(node, env)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self._defaults(node, env)
            case ast.ClassDef():
                self._class(node, env)
            case ast.Raise():
                self.facts.raises.append(Raised(node, self.eval(node.exc, env), self.scope))
            case ast.Assert():
                self.eval(node.test, env)
                self._apply(proofs(node.test, _resolved(env))[0], env)
            case ast.Match():
                self._match(node, env)
            case ast.Delete():
                for target in node.targets:
                    env.pop(dotted(target), None)
            case _:
                pass

    def _store(self, node: ast.stmt, target: ast.expr, value: Value, env: Env) -> None:
        base, key = UNKNOWN, UNKNOWN
        if isinstance(target, ast.Attribute | ast.Subscript):
            base = self.eval(target.value, env)
        if isinstance(target, ast.Subscript):
            key = self.eval(target.slice, env)
        if isinstance(target, ast.Tuple | ast.List) and len(value.items) == len(target.elts):
            for part, item in zip(target.elts, value.items, strict=True):
                self._store(node, part, item, env)
            return
        self.facts.stores.append(Store(node, target, dotted(target), base, key, value, self.scope))
        self.bind(target, value, env)

    def _if(self, node: ast.If, env: Env) -> None:
        self.eval(node.test, env)
        yes, no = proofs(node.test, _resolved(env))
        body, other = dict(env), dict(env)
        self._apply(yes, body)
        self._apply(no, other)
        self._block(node.body, body)
        self._block(node.orelse, other)
        if terminates(node.body):
            _replace(env, other)
        elif node.orelse and terminates(node.orelse):
            _replace(env, body)
        else:
            _replace(env, _joined(body, other))

    def _loop(self, node: ast.For | ast.AsyncFor | ast.While, env: Env) -> None:
        inner = dict(env)
        for _ in range(2):
            before = dict(inner)
            if isinstance(node, ast.While):
                self.eval(node.test, inner)
            else:
                self.bind(node.target, self.element(self.eval(node.iter, inner)), inner)
            self._block(node.body, inner)
            if inner == before:
                break
        _replace(env, _joined(inner, env))
        self._block(node.orelse, env)

    def _with(self, node: ast.With | ast.AsyncWith, env: Env) -> None:
        for item in node.items:
            value = self.eval(item.context_expr, env)
            if item.optional_vars is not None:
                self.bind(item.optional_vars, value, env)
        self._block(node.body, env)

    def _try(self, node: ast.Try | ast.TryStar, env: Env) -> None:
        before = dict(env)
        self._block(node.body, env)
        for handler in node.handlers:
            self.eval(handler.type, env)
            inner = _joined(before, env)
            if handler.name:
                step = (handler, f"{handler.name} is an exception")
                taint = Taint(Kind.EXCEPTION, (handler.lineno, handler.col_offset), (step,))
                inner[handler.name] = Value(origin=handler.name, taints=(taint,), node=handler)
            self._block(handler.body, inner)
            if not terminates(handler.body):
                _replace(env, _joined(env, inner))
        self._block(node.orelse, env)
        self._block(node.finalbody, env)

    def _defaults(self, node: FunctionNode, env: Env) -> None:
        for decorator in node.decorator_list:
            self.eval(decorator, env)
        for default in (*node.args.defaults, *node.args.kw_defaults):
            self.eval(default, env)
        if self._active:
            # A nested function sees what its maker knows.
            self.globals = {**self.globals, **{key: value for key, value in env.items() if not value.taints}}

    def _class(self, node: ast.ClassDef, env: Env) -> None:
        for part in (*node.bases, *(keyword.value for keyword in node.keywords), *node.decorator_list):
            self.eval(part, env)
        inner = dict(env)
        before = self.scope
        self.scope = replace(
            before,
            class_name=node.name,
            bases=tuple(self.eval_quietly(base, env).origin for base in node.bases),
        )
        self._block(node.body, inner)
        self.scope = before
        fresh = {f"self.{key}": value for key, value in inner.items() if key not in env and "." not in key}
        self._attributes.setdefault(node.name, {}).update(fresh)

    def _match(self, node: ast.Match, env: Env) -> None:
        subject = self.eval(node.subject, env)
        result = dict(env)
        for case in node.cases:
            inner = dict(env)
            if isinstance(node.subject, ast.Name) and not isinstance(case.pattern, ast.MatchAs):
                inner[node.subject.id] = replace(subject, taints=())
            for part in ast.walk(case.pattern):
                if isinstance(part, ast.MatchAs | ast.MatchStar) and part.name:
                    inner[part.name] = self.element(subject)
            self.eval(case.guard, inner)
            self._block(case.body, inner)
            result = _joined(result, inner)
        _replace(env, result)

    def _apply(self, found: list[Proof], env: Env) -> None:
        for proof in found:
            value = env.get(proof.name)
            if value is None and proof.name in self.globals and "." not in proof.name:
                value = self.globals[proof.name]
                env[proof.name] = value
            if value is None or not value.taints:
                continue
            places = {(taint.kind, taint.place) for taint in value.taints}
            _clear(env, places, proof.labels)


def _clear(env: Env, places: set[tuple[Kind, tuple[int, int]]], labels: frozenset[Label]) -> None:
    """Clear everything that came from the same sources: a check of a part or a result is a check of what it came from."""
    for key, value in env.items():
        if any((taint.kind, taint.place) in places for taint in value.taints):
            taints = tuple(
                replace(taint, cleared=taint.cleared | labels)
                if (taint.kind, taint.place) in places
                else taint
                for taint in value.taints
            )
            env[key] = replace(value, taints=taints)


def _resolved(env: Env) -> frozenset[str]:
    return frozenset(key for key, value in env.items() if value.origin.endswith(_RESOLVING))


def _joined(left: Env, right: Env) -> Env:
    result = dict(left)
    for key, value in right.items():
        old = result.get(key)
        result[key] = value if old is None else join(old, value)
    return result


def _replace(env: Env, new: Env) -> None:
    env.clear()
    env.update(new)


def _as_load(target: ast.expr) -> ast.expr:
    if isinstance(target, ast.Name):
        return ast.copy_location(ast.Name(target.id, ast.Load()), target)
    return target


def _init_first(node: FunctionNode) -> tuple[bool, int]:
    return node.name not in {"__init__", "setUp", "connect", "setup"}, node.lineno
