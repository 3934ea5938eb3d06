"""Makes the backends outside this machine out of settings; without a key there is none."""

from __future__ import annotations

from services.inference.backend import Backend, Identity, Kind
from services.inference.backends.anthropic import KEY_HEADER, VERSION_HEADERS, AnthropicBackend
from services.inference.backends.http import ModelServerClient, TimeLimits
from services.inference.backends.openai import OpenAIBackend
from services.inference.config import InferenceSettings


def remote_backends(settings: InferenceSettings) -> list[Backend]:
    """Give the services that the settings hold a key for."""
    found: list[Backend] = []
    openai_key = settings.remote_key(Kind.OPENAI.value)
    if openai_key is not None:
        found.append(
            OpenAIBackend(
                _identity(settings, Kind.OPENAI, settings.openai_model),
                _client(settings, Kind.OPENAI, api_key=openai_key),
                max_output_tokens=settings.max_output_tokens,
                models=settings.openai_models,
            )
        )
    anthropic_key = settings.remote_key(Kind.ANTHROPIC.value)
    if anthropic_key is not None:
        found.append(
            AnthropicBackend(
                _identity(settings, Kind.ANTHROPIC, settings.anthropic_model),
                _client(settings, Kind.ANTHROPIC, headers={**VERSION_HEADERS, KEY_HEADER: anthropic_key}),
                max_output_tokens=settings.max_output_tokens,
                models=settings.anthropic_models,
            )
        )
    return found


def _identity(settings: InferenceSettings, kind: Kind, model: str) -> Identity:
    return Identity(kind.value, kind, url=str(settings.remote_base(kind.value)), default_model=model)


def _client(
    settings: InferenceSettings,
    kind: Kind,
    *,
    api_key: str | None = None,
    headers: dict[str, str] | None = None,
) -> ModelServerClient:
    limits = TimeLimits(
        connect=settings.connect_seconds,
        first_byte=settings.first_byte_seconds,
        idle=settings.idle_seconds,
        total=settings.max_act_seconds,
    )
    return ModelServerClient(
        settings.remote_base(kind.value),
        limits=limits,
        api_key=api_key,
        max_connections=settings.max_in_flight,
        extra_headers=headers,
    )
