"""Randomness and hashes."""

from __future__ import annotations

import re
from typing import ClassVar, Final

import libcst as cst

from services.tools.code.repair.model import DeclinedError, Place, Proposal
from services.tools.code.repair.rewrites.base import Named, attribute
from services.tools.code.repair.tree import Tree, is_false, keyword

_RANDOM: Final = tuple(
    f"random.{name}"
    for name in (
        *(
            "random",
            "randint",
            "randrange",
            "getrandbits",
            "choice",
            "choices",
            "sample",
            "shuffle",
            "uniform",
        ),
        "randbytes",
    )
)
_WEAK: Final = ("hashlib.md5", "hashlib.sha1", "hashlib.md4")
# Where somebody else fixed which hash it is.
_PROTOCOL: Final = re.compile(
    r"etag|content_?md5|gravatar|websocket|handshake|git|torrent|digest_?auth|ntlm|oauth|pbkdf|checksum|fingerprint|"
    r"sha_?1|md_?5|legacy|uuid",
    re.IGNORECASE,
)


class RandomFromSystem(Named):
    """`random.choice(x)` becomes `secrets.SystemRandom().choice(x)`."""

    name = "secrets"
    rules: ClassVar[frozenset[str]] = frozenset({"kala.python.insecure_random", "bandit.B311"})
    note = (
        "The same kind of value from the operating system's generator, which nobody can foretell or repeat."
    )

    def propose(self, tree: Tree, place: Place) -> Proposal | None:
        """Find the call at the place."""
        for call, name in tree.calls(place, *_RANDOM):
            if any(True for _ in tree.calls(Place(0, len(tree.text)), "random.seed")):
                raise DeclinedError("the file seeds its randomness, so somebody may rely on the same values")
            module, imports = tree.module_alias("secrets")
            short = name.partition(".")[2]
            if short in {"choice", "randbytes"}:
                new = attribute(module, {"choice": "choice", "randbytes": "token_bytes"}[short])
            else:
                new = attribute(module, f"SystemRandom().{short}")
            return self.proposal(tree.replaced(call.func, new), imports=imports)
        return None


class Sha256(Named):
    """`hashlib.md5(x)` becomes `hashlib.sha256(x)`."""

    name = "sha256"
    rules: ClassVar[frozenset[str]] = frozenset({"kala.python.weak_hash", "bandit.B303"})
    note = (
        "The same interface with a hash that nobody can collide. Digests are other and longer: those kept from before do "
        "not match any more."
    )

    def propose(self, tree: Tree, place: Place) -> Proposal | None:
        """Find the call at the place."""
        for call, _ in tree.calls(place, *_WEAK):
            self._require_free(tree, call)
            module, imports = tree.module_alias("hashlib")
            return self.proposal(tree.replaced(call.func, f"{module}.sha256"), imports=imports)
        for call, _ in tree.calls(place, "hashlib.new"):
            if not call.args or not isinstance(call.args[0].value, cst.SimpleString):
                continue
            named = call.args[0].value
            if str(named.evaluated_value).lower() in {"md4", "md5", "sha1", "sha"}:
                self._require_free(tree, call)
                return self.proposal(tree.replaced(named, f"{named.quote}sha256{named.quote}"))
        return None

    def _require_free(self, tree: Tree, call: cst.Call) -> None:
        purpose = keyword(call, "usedforsecurity")
        if purpose is not None and is_false(purpose.value):
            raise DeclinedError("the code says that the hash is not for security")
        for name in _names_around(tree, call):
            if _PROTOCOL.search(name):
                raise DeclinedError(f"{name[:64]} sounds like a format or protocol that fixes the hash")


def _names_around(tree: Tree, call: cst.Call) -> list[str]:
    """Names of the function and the statement that a call stands in; the hash's own name says nothing."""
    names: list[str] = []
    above: cst.CSTNode | None = tree.parent(call)
    while above is not None:
        if isinstance(above, cst.SimpleStatementLine):
            own = tree.place(call.func)
            names += [
                node.value
                for node in tree.inside(tree.place(above), cst.Name)
                if not own.start <= tree.place(node).start < own.end
            ]
        elif isinstance(above, cst.FunctionDef):
            names.append(above.name.value)
        above = tree.parent(above)
    return names
