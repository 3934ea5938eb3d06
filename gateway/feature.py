"""What one feature of the gateway brings: routes, RPCs, its part of the OpenAPI document, and who erases its stores."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gateway.routing import ApiRoute

if TYPE_CHECKING:
    from gateway.bridge import LocalHandler
    from gateway.core import Core
    from gateway.edge import Handler
    from gateway.erasure import Eraser


@dataclass(frozen=True, slots=True)
class Feature:
    """What one feature brings."""

    routes: Sequence[ApiRoute] = ()
    handlers: Mapping[str, LocalHandler] = field(default_factory=dict)
    """RPCs that this process answers itself, by their full names."""
    erasers: Mapping[str, Eraser] = field(default_factory=dict)
    """By the names under which an erasure reports on them."""
    begin: Callable[[Mapping[str, Handler]], None] | None = None
    """Called once, when every feature is open, with the endpoints that take POST by their paths, and the bridge by its prefix."""
    paths: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # Any: JSON
    """OpenAPI 3.1 path items by path, each operation with a schema and an example (`openapi_parts.operation` writes them)."""
    schemas: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # Any: JSON
    """What those paths refer to as `#/components/schemas/<name>`."""


Opener = Callable[["Core"], Awaitable[Feature]]
