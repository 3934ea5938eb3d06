"""Where a request may go: the kind of backend, the role, and whether its data may leave.  Pure.

Naming a remote provider, in the request or as `LLM_PROVIDER`, is itself the permission for data to leave; `auto` never
is, but for an operator's own `allow_remote` (decisions: Names and behaviour of the seeds).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from kala.errors import InvalidArgumentError

AUTO: Final = "auto"

PROVIDER_HEADER: Final = "x-kala-provider"
ROLE_HEADER: Final = "x-kala-role"

MAX_ROLE_CHARS: Final = 64
"""The contract's limit."""

Provider = Literal["auto", "mlx", "llamacpp", "lmstudio", "ollama", "pythia", "openai", "anthropic"]

PROVIDERS: Final = frozenset({"mlx", "llamacpp", "lmstudio", "ollama", "pythia", "openai", "anthropic"})

REMOTE_PROVIDERS: Final = frozenset({"openai", "anthropic"})


@dataclass(frozen=True, slots=True)
class Destination:
    """What a request says about where it wants to go; empty texts leave it open."""

    provider: str = ""
    role: str = ""
    allow_remote: bool = False


@dataclass(frozen=True, slots=True)
class Destinations:
    """Reads where requests want to go, under this gateway's settings."""

    provider: str = AUTO
    """Kind that serves requests which name none, as inference is told, too."""
    allow_remote: bool = False
    """Whether a request that names no provider may leave when no local backend answers."""

    def of(self, headers: Mapping[str, str], model: str) -> Destination:
        """Read a request's headers and model; raises InvalidArgumentError that names the header at fault."""
        provider = check_provider(headers.get(PROVIDER_HEADER, ""))
        role = headers.get(ROLE_HEADER, "").strip()
        if len(role) > MAX_ROLE_CHARS:
            raise InvalidArgumentError(ROLE_HEADER, f"must be at most {MAX_ROLE_CHARS} characters")
        return Destination(provider, role, self._may_leave(provider, model))

    def _may_leave(self, provider: str, model: str) -> bool:
        if provider and provider != AUTO:
            return provider in REMOTE_PROVIDERS
        return (
            model.partition("/")[0] in REMOTE_PROVIDERS
            or self.allow_remote
            or (not provider and self.provider in REMOTE_PROVIDERS)
        )


def check_provider(name: str) -> str:
    """Give a provider's name back, or raise InvalidArgumentError that lists the known ones."""
    if name and name != AUTO and name not in PROVIDERS:
        raise InvalidArgumentError(PROVIDER_HEADER, f"must be one of {', '.join(sorted(PROVIDERS))} or auto")
    return name


def refuse_role(headers: Mapping[str, str]) -> None:
    """Raise InvalidArgumentError where a role is named: only chats have one."""
    if headers.get(ROLE_HEADER, "").strip():
        raise InvalidArgumentError(ROLE_HEADER, "is for chats only; name the model instead")
