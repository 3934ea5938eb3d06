"""The settings of services outside this machine, which only requests that allow data to leave ever reach."""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import Field, SecretStr, model_validator

from kala.errors import InvalidArgumentError
from services.common.settings import aliases
from services.inference.base_url import BaseUrl, parse_base_url
from services.inference.config_routing import RoutingSettings

OPENAI_URL: Final = "https://api.openai.com"
ANTHROPIC_URL: Final = "https://api.anthropic.com"

OPENAI_MODEL: Final = "gpt-4o-mini"
ANTHROPIC_MODEL: Final = "claude-haiku-4-5"
"""The small ones, as seed 001 has them."""

KALA_KEY_PREFIX: Final = "kala_"
"""How this suite's own API keys begin; who has one in OPENAI_API_KEY is a client of KALA, not of OpenAI."""

_THIS_MACHINE: Final = frozenset({"localhost", "127.0.0.1", "::1"})

Switch = Annotated[bool | None, Field(description="`false` never uses it, not even by name.")]
Key = Annotated[SecretStr | None, Field(description="Its API key; without one it is not used.")]
Models = Annotated[
    tuple[str, ...], Field(description="Further models that may be asked for as `<backend>/<model>`.")
]


class RemoteSettings(RoutingSettings):
    """OpenAI and Anthropic."""

    openai_api_key: Annotated[Key, aliases("OPENAI_API_KEY")] = None
    openai_url: Annotated[
        str,
        Field(description="OpenAI, or another service of its protocol."),
        aliases("OPENAI_API_BASE"),
    ] = OPENAI_URL
    openai_model: Annotated[str, Field(description="Model to ask for."), aliases("OPENAI_MODEL")] = (
        OPENAI_MODEL
    )
    openai_models: Models = ()
    openai_enabled: Switch = None

    anthropic_api_key: Annotated[Key, aliases("ANTHROPIC_API_KEY")] = None
    anthropic_url: Annotated[str, Field(description="Anthropic.")] = ANTHROPIC_URL
    anthropic_model: Annotated[str, Field(description="Model to ask for.")] = ANTHROPIC_MODEL
    anthropic_models: Models = ()
    anthropic_enabled: Switch = None

    def remote_key(self, kind: str) -> str | None:
        """Give a kind's API key; None where it is not to be used."""
        key: SecretStr | None = getattr(self, f"{kind}_api_key")
        secret = "" if key is None or getattr(self, f"{kind}_enabled") is False else key.get_secret_value()
        return None if not secret or secret.startswith(KALA_KEY_PREFIX) else secret

    def remote_base(self, kind: str) -> BaseUrl:
        """Give a kind's address."""
        return parse_base_url(getattr(self, f"{kind}_url"), field=f"{kind}_url")

    @model_validator(mode="after")
    def _check_remotes(self) -> Self:
        for kind in ("openai", "anthropic"):
            try:
                base = self.remote_base(kind)
            except InvalidArgumentError as error:
                raise ValueError(error.message) from error
            is_used = self.remote_key(kind) is not None
            if is_used and not base.is_tls and base.host not in _THIS_MACHINE:
                raise ValueError(f"{kind}_url must be https: a key and what people say travel there")
        if self.provider in {"openai", "anthropic"} and self.remote_key(self.provider) is None:
            raise ValueError(f"provider {self.provider} needs {self.provider.upper()}_API_KEY")
        return self
