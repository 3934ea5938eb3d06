"""Switches of frameworks: debugging, interfaces, escaping, cookies."""

from __future__ import annotations

from typing import ClassVar, Final

import libcst as cst

from services.tools.code.repair.model import Place, Proposal
from services.tools.code.repair.rewrites.base import Named
from services.tools.code.repair.tree import Tree, is_false, is_true, keyword, with_keyword

_LOCAL: Final = "127.0.0.1"
_EVERYWHERE: Final = frozenset({"0.0.0.0", "", "::"})  # noqa: S104 - what is looked for
_COOKIES: Final = frozenset(
    f"{owner}_COOKIE_{flag}" for owner in ("SESSION", "CSRF", "REMEMBER") for flag in ("SECURE", "HTTPONLY")
)
_DEBUG: Final = frozenset({"debug", "DEBUG", "TEMPLATE_DEBUG"})


def named_setting(assign: cst.Assign) -> str:
    """The name that is given a value: `x`, `a.x` or `a["x"]`; "" for anything else."""
    match assign.targets[0].target:
        case cst.Name(value=name):
            return name
        case cst.Attribute(attr=cst.Name(value=name)):
            return name
        case cst.Subscript(slice=[cst.SubscriptElement(slice=cst.Index(value=cst.SimpleString() as key))]):
            return str(key.evaluated_value)
        case _:
            return ""


class DebugOff(Named):
    """`app.run(debug=True)` becomes `app.run(debug=False)`."""

    name = "debug_off"
    rules: ClassVar[frozenset[str]] = frozenset({"kala.python.debug_mode"})
    note = "Requests are answered as before; errors show no page with a console, and files are not reloaded."

    def propose(self, tree: Tree, place: Place) -> Proposal | None:
        """Find the argument or the setting at the place."""
        for call in tree.inside(place, cst.Call):
            for name in ("debug", "use_debugger", "use_reloader", "use_evalex"):
                given = keyword(call, name)
                if given is not None and is_true(given.value):
                    return self.proposal(tree.replaced(given.value, "False"))
        for assign in tree.inside(place, cst.Assign):
            if named_setting(assign) in _DEBUG and is_true(assign.value):
                return self.proposal(tree.replaced(assign.value, "False"))
        return None


class LocalInterface(Named):
    """`host="0.0.0.0"` becomes `host="127.0.0.1"`."""

    name = "local_interface"
    rules: ClassVar[frozenset[str]] = frozenset({"kala.python.all_interfaces"})
    note = "This machine reaches it as before; others only through what is put in front of it on purpose."

    def propose(self, tree: Tree, place: Place) -> Proposal | None:
        """Find the address at the place."""
        for text in tree.inside(place, cst.SimpleString):
            if text.evaluated_value in _EVERYWHERE and self._is_address(tree, text):
                return self.proposal(tree.replaced(text, f"{text.prefix}{text.quote}{_LOCAL}{text.quote}"))
        return None

    def _is_address(self, tree: Tree, text: cst.SimpleString) -> bool:
        if text.evaluated_value:
            return True
        # An empty host: first of the pair that `bind` takes.
        above = tree.parent(text)
        pair = None if above is None else tree.parent(above)
        return isinstance(pair, cst.Tuple) and pair.elements[0].value is text


class Autoescape(Named):
    """`jinja2.Environment()` becomes `jinja2.Environment(autoescape=True)`."""

    name = "autoescape"
    rules: ClassVar[frozenset[str]] = frozenset({"kala.python.autoescape_off", "bandit.B701"})
    note = "Values without < > & and quotes come out the same; markup in a value is shown as text unless marked safe."

    def propose(self, tree: Tree, place: Place) -> Proposal | None:
        """Find the environment at the place."""
        for call, _ in tree.calls(
            place, "jinja2.Environment", "jinja2.Template", "jinja2.environment.Environment"
        ):
            if any(arg.star == "**" for arg in call.args):
                continue
            given = keyword(call, "autoescape")
            if given is None or is_false(given.value):
                return self.proposal(tree.replaced(call, with_keyword(call, "autoescape", "True")))
        return None


class CookieFlags(Named):
    """Cookies get secure, httponly and samesite."""

    name = "cookie_flags"
    rules: ClassVar[frozenset[str]] = frozenset({"kala.python.cookie_flags"})
    note = (
        "The same cookie over HTTPS; it is not sent in the clear, not shown to scripts of the page, and not sent with "
        "requests that other sites start."
    )

    def propose(self, tree: Tree, place: Place) -> Proposal | None:
        """Find the cookie or the setting at the place."""
        for call in tree.inside(place, cst.Call):
            if not isinstance(call.func, cst.Attribute) or call.func.attr.value != "set_cookie":
                continue
            if any(arg.star for arg in call.args):
                continue
            new = call
            for name, value in (("secure", "True"), ("httponly", "True"), ("samesite", '"Lax"')):
                given = keyword(call, name)
                if given is None or is_false(given.value) or self._is_none(given.value):
                    new = with_keyword(new, name, value)
            if new is not call:
                return self.proposal(tree.replaced(call, new))
        for assign in tree.inside(place, cst.Assign):
            if named_setting(assign) in _COOKIES and is_false(assign.value):
                return self.proposal(tree.replaced(assign.value, "True"))
        return None

    def _is_none(self, value: cst.BaseExpression) -> bool:
        return isinstance(value, cst.Name) and value.value == "None"
