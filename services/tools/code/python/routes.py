"""Which functions a web framework calls, and what their parameters hold."""

from __future__ import annotations

import ast
import re
from typing import Final

from services.tools.code.python.evaluate import Evaluator
from services.tools.code.python.facts import Scope
from services.tools.code.python.guards import dotted
from services.tools.code.python.names import canonical
from services.tools.code.python.sources import WEB, is_secret_name
from services.tools.code.python.tree import FunctionNode, PythonTree
from services.tools.code.python.values import Kind, Taint, Value

_ROUTE: Final = re.compile(
    r"\.(?:route|get|post|put|delete|patch|api_route|websocket|view|add_url_rule)(?:\(\))?$|(?:^|\.)(?:api_view|view_config|csrf_exempt|require_http_methods|require_POST|require_GET|login_required|expose)(?:\(\))?$"
)
_VIEW_BASES: Final = re.compile(
    r"(?:View|APIView|ViewSet|Resource|MethodView|RequestHandler|HTTPEndpoint|HTTPRequestHandler)$"
)
_VERBS: Final = frozenset(
    [
        "get",
        "post",
        "put",
        "delete",
        "patch",
        "head",
        "options",
        "dispatch",
        "do_GET",
        "do_POST",
        "do_PUT",
        "do_DELETE",
        "handle",
        "form_valid",
    ]
)
_REQUEST: Final = re.compile(r"^(?:request|req|_request)$")
_LAMBDA: Final = re.compile(r"lambda_handler|^handler$")
# Parameters that frameworks or callers fill with objects of their own.
_PLAIN: Final = frozenset(
    {
        "self",
        "cls",
        "db",
        "session",
        "conn",
        "connection",
        "cursor",
        "cur",
        "logger",
        "log",
        "app",
        "context",
        "config",
        "settings",
        "response",
        "ctx",
        "engine",
    }
)


def scope_of(function: FunctionNode, tree: PythonTree, evaluator: Evaluator) -> Scope:
    """Describe a function."""
    holder = tree.parents.get(function)
    bases: tuple[str, ...] = ()
    class_name = ""
    if isinstance(holder, ast.ClassDef):
        class_name = holder.name
        bases = tuple(_full(base, evaluator) for base in holder.bases)
    decorators = tuple(_full(decorator, evaluator) for decorator in function.decorator_list)
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    first = names[1] if class_name and len(names) > 1 else names[0] if names else ""
    is_route = (
        any(_ROUTE.search(name) for name in decorators)
        or (function.name in _VERBS and any(_VIEW_BASES.search(base) for base in bases))
        or bool(
            _REQUEST.match(first)
            and evaluator.facts.imports_any(
                "django", "aiohttp", "pyramid", "sanic", "fastapi", "rest_framework", "werkzeug"
            )
        )
        or bool(_LAMBDA.search(function.name) and names[:1] == ["event"])
    )
    return Scope(function.name, function, class_name, decorators, is_route, bases)


def parameter_values(function: FunctionNode, scope: Scope, evaluator: Evaluator) -> dict[str, Value]:
    """Give what a function's parameters hold when nobody in this file is known to call it."""
    values: dict[str, Value] = {}
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    arguments += [
        argument for argument in (function.args.vararg, function.args.kwarg) if argument is not None
    ]
    for argument in arguments:
        name = argument.arg
        annotation = _full(argument.annotation, evaluator) if argument.annotation is not None else ""
        if name in {"self", "cls"}:
            values[name] = Value(origin=name)
        elif (_REQUEST.match(name) and _serves(evaluator)) or annotation.endswith(
            (".Request", "HttpRequest")
        ):
            values[name] = Value(origin="web.request")
        elif (
            name in _PLAIN
            or annotation in {"int", "float", "bool"}
            or "Depends" in _default_of(function, name)
        ):
            values[name] = Value(origin=annotation or name)
        else:
            values[name] = _tainted(argument, scope, annotation)
    return values


def _serves(evaluator: Evaluator) -> bool:
    """A file that imports a web framework, or too little to tell; clients' requests are their own."""
    imports = evaluator.facts.imports
    return evaluator.facts.imports_any(*WEB) or not any(
        "." in name or name in {"httpx", "requests", "urllib"} for name in imports
    )


def _tainted(argument: ast.arg, scope: Scope, annotation: str) -> Value:
    kind = Kind.HTTP if scope.is_route else Kind.PARAMETER
    if annotation.endswith("UploadFile"):
        kind = Kind.UPLOAD
    taints = [
        Taint(
            kind,
            (argument.lineno, argument.col_offset),
            ((argument, f"{argument.arg} comes from {kind.value}"),),
        )
    ]
    if is_secret_name(argument.arg):
        taints.append(
            Taint(
                Kind.SECRET,
                (argument.lineno, argument.col_offset),
                ((argument, f"{argument.arg} is a secret by its name"),),
            )
        )
    return Value(
        origin=annotation if annotation and annotation not in {"str", "bytes"} else argument.arg,
        taints=tuple(taints),
        node=argument,
    )


def _default_of(function: FunctionNode, name: str) -> str:
    arguments = [*function.args.posonlyargs, *function.args.args]
    defaults = function.args.defaults
    for argument, default in zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True):
        if argument.arg == name:
            return ast.unparse(default)
    return ""


def _full(node: ast.expr, evaluator: Evaluator) -> str:
    """Give the full name of a decorator, base or annotation; a call is named without its arguments."""
    if isinstance(node, ast.Call):
        return _full(node.func, evaluator)
    if isinstance(node, ast.Subscript):
        return _full(node.value, evaluator)
    path = dotted(node)
    head, dot, tail = path.partition(".")
    value = evaluator.globals.get(head)
    full = value.origin if value is not None and value.origin else evaluator.names.get(head, head)
    return canonical(f"{full}{dot}{tail}")
