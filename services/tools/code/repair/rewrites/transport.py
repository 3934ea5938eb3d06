"""Certificates, host names, host keys and signatures are looked at."""

from __future__ import annotations

from typing import ClassVar, Final

import libcst as cst

from services.tools.code.repair.model import DeclinedError, Place, Proposal
from services.tools.code.repair.rewrites.base import Named, attribute
from services.tools.code.repair.tree import Tree, is_false, keyword, positional, without

_DECODE: Final = ("jwt", "key", "algorithms")
_VERIFY: Final = frozenset({"kala.python.certificate_unchecked", "bandit.B501"})


class TlsVerify(Named):
    """`requests.get(url, verify=False)` becomes `requests.get(url)`."""

    name = "tls_verify"
    rules: ClassVar[frozenset[str]] = _VERIFY
    note = "Servers with a certificate that holds answer as before; others are now an error."

    def propose(self, tree: Tree, place: Place) -> Proposal | None:
        """Find the argument or the session's setting at the place."""
        for call in tree.inside(place, cst.Call):
            for name in ("verify", "verify_ssl"):
                given = keyword(call, name)
                if given is not None and is_false(given.value) and "jwt" not in tree.name(call.func):
                    return self.proposal(tree.replaced(call, without(call, name)))
        for assign in tree.inside(place, cst.Assign):
            target = assign.targets[0].target
            is_setting = isinstance(target, cst.Attribute) and target.attr.value == "verify"
            if is_setting and is_false(assign.value):
                return self.proposal(tree.replaced(assign.value, "True"))
        return None


class TlsContext(Named):
    """A context that verifies nothing becomes one that does."""

    name = "tls_context"
    rules: ClassVar[frozenset[str]] = _VERIFY | {
        "kala.python.hostname_unchecked",
        "bandit.B323",
        "bandit.B502",
        "bandit.B503",
    }
    note = "Servers with a certificate that holds for their name answer as before; others are now an error."

    def propose(self, tree: Tree, place: Place) -> Proposal | None:
        """Find the context's making or its setting at the place."""
        for node in tree.inside(place, cst.Attribute):
            if tree.name(node) == "ssl._create_unverified_context":
                return self.proposal(tree.replaced(node.attr, "create_default_context"))
        for bare in tree.inside(place, cst.Name):
            if tree.name(bare) == "ssl._create_unverified_context":
                module, imports = tree.module_alias("ssl")
                return self.proposal(tree.replaced(bare, f"{module}.create_default_context"), imports=imports)
        for assign in tree.inside(place, cst.Assign):
            target = assign.targets[0].target
            if isinstance(target, cst.Attribute) and self._is_loose(tree, target, assign.value):
                return self._settings(tree, target)
        return None

    def _is_loose(self, tree: Tree, target: cst.Attribute, value: cst.BaseExpression) -> bool:
        if target.attr.value == "check_hostname":
            return is_false(value)
        return target.attr.value == "verify_mode" and tree.name(value) in {
            "ssl.CERT_NONE",
            "ssl.CERT_OPTIONAL",
        }

    def _settings(self, tree: Tree, found: cst.Attribute) -> Proposal:
        """Both settings of one context together: either alone is refused by ssl."""
        owner, body = tree.code(found.value), tree.body_of(found)
        changes = []
        for assign in tree.inside(Place(0, len(tree.text)), cst.Assign):
            target = assign.targets[0].target
            if not isinstance(target, cst.Attribute) or tree.code(target.value) != owner:
                continue
            if tree.body_of(target) is not body or not self._is_loose(tree, target, assign.value):
                continue
            if target.attr.value == "check_hostname":
                changes.append(tree.replaced(assign.value, "True"))
            else:
                module, _ = tree.module_alias("ssl")
                changes.append(tree.replaced(assign.value, f"{module}.CERT_REQUIRED"))
        return self.proposal(*changes)


class HostKey(Named):
    """paramiko's AutoAddPolicy becomes RejectPolicy."""

    name = "ssh_host_key"
    rules: ClassVar[frozenset[str]] = frozenset({"kala.python.host_key_unchecked", "bandit.B507"})
    note = "Hosts that are known answer as before; unknown ones are refused, so load_system_host_keys() must know them."

    def propose(self, tree: Tree, place: Place) -> Proposal | None:
        """Find the policy at the place."""
        for kind in (cst.Attribute, cst.Name):
            for node in tree.inside(place, kind):
                name = tree.name(node)
                if name.startswith("paramiko.") and name.endswith((".AutoAddPolicy", ".WarningPolicy")):
                    module, imports = tree.module_alias("paramiko")
                    return self.proposal(
                        tree.replaced(node, attribute(module, "RejectPolicy")), imports=imports
                    )
        return None


class JwtVerify(Named):
    """`jwt.decode(…, options={"verify_signature": False})` verifies."""

    name = "jwt_verify"
    rules: ClassVar[frozenset[str]] = frozenset({"kala.python.signature_unchecked"})
    note = "Tokens that were signed with the key read as before; others are now an error."

    def propose(self, tree: Tree, place: Place) -> Proposal | None:
        """Find the call at the place."""
        for call, _ in tree.calls(place, "jwt.decode"):
            given = positional(call)
            has_key = given is not None and (len(given) > 1 or keyword(call, "key") is not None)
            if not has_key or (keyword(call, "algorithms") is None and len(given or ()) < len(_DECODE)):
                raise DeclinedError("the call names no key or no algorithms to verify with")
            verify = keyword(call, "verify")
            if verify is not None and is_false(verify.value):
                return self.proposal(tree.replaced(call, without(call, "verify")))
            options = keyword(call, "options")
            if options is None or not isinstance(options.value, cst.Dict):
                continue
            for element in options.value.elements:
                if (
                    isinstance(element, cst.DictElement)
                    and isinstance(element.key, cst.SimpleString)
                    and element.key.evaluated_value == "verify_signature"
                    and is_false(element.value)
                ):
                    return self.proposal(tree.replaced(element.value, "True"))
        return None
