"""What the interpreter saw, for rules to look at: calls, returns, stores, comparisons, each with the values at that time."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from services.tools.code.python.tree import FunctionNode
from services.tools.code.python.values import UNKNOWN, Value


@dataclass(frozen=True, slots=True)
class Scope:
    """The function, or the module, that code stands in."""

    name: str = ""
    node: FunctionNode | ast.Module | None = None
    class_name: str = ""
    # Full names of the decorators, without their arguments.
    decorators: tuple[str, ...] = ()
    # Whether a web framework calls it with a request.
    is_route: bool = False
    # Full names of the class's bases.
    bases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """A call; `name` is its full name, `method` the last part of it."""

    node: ast.Call
    name: str
    method: str
    receiver: Value
    args: tuple[Value, ...]
    keywords: dict[str, Value]
    scope: Scope
    # In a loop, a try, or under a condition that mentions what is given.
    starred: bool = False

    def arg(self, index: int, keyword: str = "") -> Value:
        """Give an argument by position or name; UNKNOWN when it is not given."""
        if keyword and keyword in self.keywords:
            return self.keywords[keyword]
        return self.args[index] if 0 <= index < len(self.args) else UNKNOWN

    def given(self, index: int, keyword: str = "") -> bool:
        """Tell whether an argument is given, or may be through `*` or `**`."""
        return self.starred or (bool(keyword) and keyword in self.keywords) or 0 <= index < len(self.args)


@dataclass(frozen=True, slots=True)
class Return:
    """A return from a function."""

    node: ast.Return
    value: Value
    scope: Scope


@dataclass(frozen=True, slots=True)
class Store:
    """A value put into a name, an attribute or an item."""

    node: ast.stmt
    target: ast.expr
    # Dotted path of the target, its base, and the constant key of an item.
    name: str
    base: Value
    key: Value
    value: Value
    scope: Scope


@dataclass(frozen=True, slots=True)
class Compare:
    """A comparison with one operator."""

    node: ast.Compare
    left: Value
    operator: ast.cmpop
    right: Value
    scope: Scope


@dataclass(frozen=True, slots=True)
class Raised:
    """What a raise statement raises."""

    node: ast.Raise
    value: Value
    scope: Scope


@dataclass(slots=True)
class Facts:
    """Everything that was seen in one file; the same place may come several times with different values."""

    calls: list[Call] = field(default_factory=list)
    returns: list[Return] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)
    compares: list[Compare] = field(default_factory=list)
    raises: list[Raised] = field(default_factory=list)
    scopes: list[Scope] = field(default_factory=list)
    # Texts that were put together from parts: their node, value and scope.
    texts: list[tuple[ast.expr, Value, Scope]] = field(default_factory=list)
    imports: frozenset[str] = frozenset()
    # Whether the interpreter gave up before the end.
    exhausted: bool = False

    def imports_any(self, *names: str) -> bool:
        """Tell whether any of these modules or members is imported."""
        return not self.imports.isdisjoint(names)
