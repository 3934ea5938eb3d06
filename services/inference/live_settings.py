"""Settings that change while the process runs: backends' addresses and models, the chain, the roles.

The gateway keeps them and tells every replica; they stand over file and environment and under flags.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from kala.errors import FailedPreconditionError, InvalidArgumentError
from services.common.settings import Source
from services.inference.config import InferenceSettings

MUTABLE: Final = (
    "chain",
    "llamacpp_model",
    "llamacpp_url",
    "llamacpp_urls",
    "lmstudio_model",
    "lmstudio_role_models",
    "lmstudio_url",
    "lmstudio_urls",
    "mlx_model",
    "mlx_url",
    "mlx_urls",
    "ollama_model",
    "ollama_url",
    "ollama_urls",
    "roles",
)

MAX_VALUE_CHARS: Final = 65_536

DATABASE: Final = "database"

Follow = Callable[[InferenceSettings], None]
"""Puts new settings into force."""


@dataclass(frozen=True, slots=True)
class Effective:
    """One setting as it is in force."""

    name: str
    value_json: str
    source: str


class LiveSettings:
    """The settings in force; one per process."""

    def __init__(self, settings: InferenceSettings, sources: Mapping[str, Source], follow: Follow) -> None:
        self._below = settings
        self._sources = sources
        self._follow = follow
        self._changed: frozenset[str] = frozenset()
        self.revision = 0
        self.settings = settings

    def apply(self, revision: int, values: Mapping[str, str]) -> None:
        """Put all changes into force, or raise InvalidArgumentError and change nothing; an older revision is passed over."""
        if revision <= self.revision:
            return
        settings = self._settings_with(values)
        self._follow(settings)
        self.settings, self._changed, self.revision = settings, frozenset(values), revision

    def would_be(self, values: Mapping[str, str]) -> list[Effective]:
        """Give what would be in force."""
        return self._effective(self._settings_with(values), frozenset(values))

    def effective(self) -> list[Effective]:
        """Give what is in force."""
        return self._effective(self.settings, self._changed)

    def _effective(self, settings: InferenceSettings, changed: frozenset[str]) -> list[Effective]:
        values = settings.model_dump(mode="json", include=set(MUTABLE))
        return [
            Effective(
                name,
                json.dumps(values[name], sort_keys=True),
                DATABASE if name in changed else self._sources.get(name, "default"),
            )
            for name in MUTABLE
        ]

    def _settings_with(self, values: Mapping[str, str]) -> InferenceSettings:
        given = {name: _parsed(name, text) for name, text in values.items()}
        pinned = next((name for name in given if self._sources.get(name) == "flag"), None)
        if pinned is not None:
            raise FailedPreconditionError(
                f"{pinned} is set by the flag --{pinned.replace('_', '-')} of inference, which stands over it; start it without"
            )
        try:
            return InferenceSettings(**{**dict(self._below), **given})
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "value_json"
            raise InvalidArgumentError(field, first["msg"].removeprefix("Value error, ")) from error


def _parsed(name: str, text: str) -> object:
    if name not in MUTABLE:
        raise InvalidArgumentError("name", f"{name[:64]!r} cannot change; there are: {', '.join(MUTABLE)}")
    if len(text) > MAX_VALUE_CHARS:
        raise InvalidArgumentError(name, f"has more than {MAX_VALUE_CHARS} characters")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(name, "is not valid JSON; a text needs its quotes") from error
