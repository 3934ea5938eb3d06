"""What the configuration adds to a request: the role's model and settings, and the provider where it names none.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from kala.errors import InvalidArgumentError
from services.inference.backend import AUTO_MODEL, Kind
from services.inference.chat import Sampling
from services.inference.router import DEFAULT_CHAIN, Wanted

MAX_ROLE_CHARS: Final = 64

_BACKEND_NAME: Final = re.compile(rf"demo|(?:{'|'.join(kind.value for kind in Kind)})(?:-[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Role:
    """What requests of one role get where they say nothing themselves."""

    model: str = ""
    provider: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    context_tokens: int | None = None
    """Context that its model must be loaded with at least."""


NO_ROLE: Final = Role()


@dataclass(frozen=True, slots=True)
class Routing:
    """How requests are routed in this process."""

    chain: tuple[Kind, ...] = DEFAULT_CHAIN
    provider: str = AUTO_MODEL
    """Kind that serves requests which name none, or `auto`."""
    roles: Mapping[str, Role] = field(default_factory=dict)
    """By name, in lower case."""

    def role(self, name: str) -> Role:
        """Give a role by the name that a request carries, empty for none; raises InvalidArgumentError for an unknown one."""
        if not name:
            return NO_ROLE
        found = self.roles.get(name.lower()) if len(name) <= MAX_ROLE_CHARS else None
        if found is None:
            known = ", ".join(sorted(self.roles)) or "none"
            raise InvalidArgumentError(
                "role",
                f"{name[:MAX_ROLE_CHARS]!r} is not configured; there are: {known} (`roles` of inference in kala.yaml)",
            )
        return found

    def settle(self, wanted: Wanted, role: Role) -> Wanted:
        """Fill what a request leaves open; what it says itself stands.

        The role's model is meant for the role's provider, so a request that names another provider does not get it.
        """
        takes_model = wanted.is_unnamed and wanted.provider in {"", AUTO_MODEL, role.provider}
        model = role.model if takes_model and role.model else wanted.model
        provider = wanted.provider
        if not provider and wanted.is_unnamed:
            provider = role.provider
        if not provider and not _names_a_backend(model):
            provider = self.provider
        return replace(wanted, model=model, provider=provider, context_tokens=role.context_tokens)


def _names_a_backend(model: str) -> bool:
    prefix, slash, _ = model.partition("/")
    return bool(slash) and _BACKEND_NAME.fullmatch(prefix) is not None
