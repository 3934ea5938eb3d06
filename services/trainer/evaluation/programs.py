"""The program that says with its exit status whether an answer passes its tests. Pure.

Answer and tests run in one process, so an answer that could end that process, or make the tests see something else than its
result, is not run with them: it has not passed. What such tasks need beyond the language itself is in `MODULES`.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from services.trainer.evaluation.answers import code_in

FAILS: Final = "raise SystemExit(1)\n"
"""In place of an answer that is not run with its tests."""

MODULES: Final = frozenset(
    {
        "__future__",
        "bisect",
        "cmath",
        "collections",
        "copy",
        "datetime",
        "decimal",
        "fractions",
        "functools",
        "hashlib",
        "heapq",
        "itertools",
        "math",
        "numbers",
        "operator",
        "random",
        "re",
        "statistics",
        "string",
        "time",
        "typing",
    }
)
"""Modules that compute and end nothing. `sys` is for its largest integer alone."""

POWERS: Final = frozenset(
    {
        "BaseException",
        "ForwardRef",
        "SystemExit",
        "attrgetter",
        "breakpoint",
        "builtins",
        "compile",
        "delattr",
        "enum",
        "eval",
        "exec",
        "exit",
        "get_type_hints",
        "getattr",
        "globals",
        "importlib",
        "locals",
        "methodcaller",
        "modules",
        "new_class",
        "os",
        "quit",
        "setattr",
        "sys",
        "threading",
        "types",
        "vars",
    }
)
"""Names that reach the interpreter, the tests or whatever else they name by a text, or make a type of their own."""


def humaneval_program(answer: str, code: Mapping[str, str]) -> str:
    """A program that ends with status 0 when the answer's function passes its tests."""
    body = code_in(answer)
    # An answer that only goes on where the prompt ends is right too.
    if f"def {code['entry_point']}" not in body:
        body = code["prompt"] + body
    else:
        body = _imports_of(code["prompt"]) + body
    if not is_plain(body):
        return FAILS
    lines = body.splitlines()
    future = [line for line in lines if line.startswith("from __future__ ")]
    body = "\n".join([*future, *(line for line in lines if line not in future)])
    return f"{body}\n\n{code['test']}\n\ncheck({code['entry_point']})\n"


def is_plain(source: str) -> bool:
    """Whether code computes and no more: it parses, and can neither end its tests nor change what they see."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    nodes = list(ast.walk(tree))
    bare = dict.fromkeys(("sys", "type"), 0)
    for node in nodes:
        if isinstance(node, ast.Name) and node.id in bare:
            bare[node.id] += 1
        elif isinstance(node, ast.Attribute) and _is_largest(node):
            bare["sys"] -= 1
        elif isinstance(node, ast.Call) and _asks_for_type(node):
            bare["type"] -= 1
    bound = {name for statement in tree.body for name in _bound_by(statement)}
    return (
        not any(bare.values())
        and bound.isdisjoint(vars(builtins))
        and all(_is_plain_node(node) for node in nodes)
    )


def _is_largest(node: ast.Attribute) -> bool:
    return node.attr == "maxsize" and isinstance(node.value, ast.Name) and node.value.id == "sys"


def _asks_for_type(node: ast.Call) -> bool:
    """With more than one value `type` makes a type."""
    is_type = isinstance(node.func, ast.Name) and node.func.id == "type"
    return is_type and len(node.args) == 1 and not node.keywords and not isinstance(node.args[0], ast.Starred)


def _is_plain_node(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return all(each.name.partition(".")[0] in {*MODULES, "sys"} for each in node.names) and not any(
            each.name == "sys" and each.asname for each in node.names
        )
    if isinstance(node, ast.ImportFrom):
        names = {each.name for each in node.names}
        if node.module == "sys":
            return names == {"maxsize"}
        allowed = not node.level and (node.module or "").partition(".")[0] in MODULES
        return allowed and not any(name in POWERS or name.startswith("_") or name == "*" for name in names)
    if isinstance(node, ast.Attribute):
        is_read = isinstance(node.ctx, ast.Load)
        return is_read and node.attr not in POWERS and not node.attr.startswith("_")
    if isinstance(node, ast.Name):
        return node.id not in POWERS - {"sys"} and (node.id == "__name__" or not node.id.startswith("__"))
    # A class of its own may compare as it likes.
    return not isinstance(node, ast.ClassDef | ast.Global)


def _bound_by(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement of the module gives a meaning, functions' own left out."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _imports_of(prompt: str) -> str:
    lines: Sequence[str] = [line for line in prompt.splitlines() if line.startswith(("import ", "from "))]
    return "".join(f"{line}\n" for line in lines)
