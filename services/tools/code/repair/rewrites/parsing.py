"""What reads data without running it: YAML, literals, XML."""

from __future__ import annotations

from typing import ClassVar, Final

import libcst as cst

from services.tools.code.repair.model import DeclinedError, Place, Proposal
from services.tools.code.repair.rewrites.base import Named, attribute
from services.tools.code.repair.tree import Tree, positional, without

_YAML: Final = {
    "yaml.load": "safe_load",
    "yaml.full_load": "safe_load",
    "yaml.unsafe_load": "safe_load",
    "yaml.load_all": "safe_load_all",
    "yaml.full_load_all": "safe_load_all",
    "yaml.unsafe_load_all": "safe_load_all",
}
_SAFE_LOADERS: Final = frozenset({"yaml.SafeLoader", "yaml.CSafeLoader"})
_XML: Final = {
    **{
        f"xml.etree.{module}.{name}": f"ElementTree.{name}"
        for module in ("ElementTree", "cElementTree")
        for name in ("parse", "fromstring", "iterparse", "XML")
    },
    **{f"xml.dom.minidom.{name}": f"minidom.{name}" for name in ("parse", "parseString")},
    **{f"xml.sax.{name}": f"sax.{name}" for name in ("parse", "parseString")},
}


class SafeYaml(Named):
    """`yaml.load(x)` becomes `yaml.safe_load(x)`."""

    name = "yaml_safe_load"
    rules: ClassVar[frozenset[str]] = frozenset({"kala.python.unsafe_deserialisation", "bandit.B506"})
    note = "Plain YAML reads the same; tags that make Python objects are now an error."

    def propose(self, tree: Tree, place: Place) -> Proposal | None:
        """Find the call at the place."""
        for call, name in tree.calls(place, *_YAML):
            given = positional(call)
            if given is None:
                raise DeclinedError("the call's arguments are unpacked")
            loader = next(
                (arg.value for arg in call.args if arg.keyword and arg.keyword.value == "Loader"), None
            )
            if loader is None and len(given) > 1:
                loader = given[1]
            if loader is not None and tree.name(loader) in _SAFE_LOADERS:
                return None
            if loader is not None and not tree.name(loader).startswith("yaml."):
                raise DeclinedError("the loader is one of the program's own, whose tags may be wanted")
            module, imports = tree.module_alias("yaml")
            new = without(call, "Loader").with_changes(func=attribute(module, _YAML[name]))
            if len(given) > 1:
                only = new.args[0].with_changes(comma=cst.MaybeSentinel.DEFAULT)
                new = new.with_changes(args=[only])
            return self.proposal(tree.replaced(call, new), imports=imports)
        return None


class LiteralEval(Named):
    """`eval(x)` becomes `ast.literal_eval(x)`."""

    name = "literal_eval"
    rules: ClassVar[frozenset[str]] = frozenset({"kala.python.code_injection", "bandit.B307"})
    note = "Literals (numbers, texts, lists, dictionaries and so on) read the same; any other expression is now ValueError."

    def propose(self, tree: Tree, place: Place) -> Proposal | None:
        """Find the call at the place."""
        for call, _ in tree.calls(place, "eval"):
            given = positional(call)
            if given is None or len(call.args) != 1 or len(given) != 1:
                raise DeclinedError("eval gets names to look up, so it is more than literals that it reads")
            if not isinstance(given[0], cst.Name | cst.Attribute | cst.Subscript | cst.Call):
                raise DeclinedError("the code puts an expression together; call what it means instead")
            module, imports = tree.module_alias("ast")
            new = call.with_changes(func=attribute(module, "literal_eval"))
            return self.proposal(tree.replaced(call, new), imports=imports)
        return None


class DefusedXml(Named):
    """`ElementTree.parse(x)` becomes `defusedxml.ElementTree.parse(x)`, where the file uses defusedxml already."""

    name = "defusedxml"
    rules: ClassVar[frozenset[str]] = frozenset(
        {"kala.python.xml_external_entity", "kala.python.entity_parser"}
    )
    note = "Documents without entities and external references read the same; those are now an error."

    def propose(self, tree: Tree, place: Place) -> Proposal | None:
        """Find the call at the place."""
        for call, name in tree.calls(place, *_XML):
            if not tree.imports("defusedxml"):
                raise DeclinedError(
                    "the file does not use defusedxml, and a new dependency is not this service's to choose"
                )
            if any(arg.keyword is not None and arg.keyword.value == "parser" for arg in call.args):
                raise DeclinedError("the call names a parser of its own")
            target = _XML[name]
            module, imports = tree.module_alias(f"defusedxml.{target.partition('.')[0]}")
            new = call.with_changes(func=attribute(module, target.partition(".")[2]))
            return self.proposal(tree.replaced(call, new), imports=imports)
        return None
