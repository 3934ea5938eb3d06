"""Makes backends out of settings: the configured ones now, found ones when they appear."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from services.inference.backend import Backend, Identity, Kind
from services.inference.backends.elsewhere import Elsewhere
from services.inference.backends.http import ModelServerClient, TimeLimits
from services.inference.backends.llamacpp import LlamaCppBackend
from services.inference.backends.lmstudio import LMStudioBackend
from services.inference.backends.mlx import MlxBackend
from services.inference.backends.model_server import ModelServerBackend
from services.inference.backends.ollama import OllamaBackend
from services.inference.backends.pythia import PythiaBackend, PythiaLimits
from services.inference.base_url import BaseUrl, parse_base_url
from services.inference.config import EMBEDDED_MODEL_DIR, InferenceSettings
from services.inference.hosts import (
    MODEL_PATHS,
    configured_model,
    hosts_of,
    is_enabled,
    other_places,
    preferences,
)
from services.inference.pythia.holding import Holding, Quantization
from services.inference.pythia.weights import pythia_name
from services.inference.registry.discovery import recogniser
from services.inference.started.command import Command, LlamaCppCommand, MlxCommand, environment
from services.inference.started.server import StartedServer

SERVERS: Final[dict[Kind, type[ModelServerBackend]]] = {
    Kind.MLX: MlxBackend,
    Kind.LLAMACPP: LlamaCppBackend,
    Kind.LMSTUDIO: LMStudioBackend,
    Kind.OLLAMA: OllamaBackend,
}

KEY_BYTES: Final = 32

UNKNOWN_PORT: Final = BaseUrl("http", "127.0.0.1", 9)
"""The address of a server that was not started yet: the discard port, where nobody listens."""

DEMO: Final = "demo"
DEMO_MODEL: Final = "kala-demo"


def pythia_backends(settings: InferenceSettings) -> list[PythiaBackend]:
    """Give the configured model in process and the embedded demo, as far as the settings want them."""
    made: list[PythiaBackend] = []
    if settings.model_dir is not None or settings.model_size is not None:
        name = (
            pythia_name(settings.model_size)
            if settings.model_size
            else str(settings.model_dir and settings.model_dir.name)
        )
        directory = settings.model_dir or settings.models_dir.expanduser() / name
        made.append(
            _pythia(Identity(Kind.PYTHIA.value, Kind.PYTHIA, default_model=name), directory, name, settings)
        )
    if settings.embedded:
        identity = Identity(DEMO, Kind.PYTHIA, default_model=DEMO_MODEL, is_demo=True)
        made.append(_pythia(identity, settings.embedded_dir or EMBEDDED_MODEL_DIR, DEMO_MODEL, settings))
    return made


def _pythia(identity: Identity, directory: Path, model_id: str, settings: InferenceSettings) -> PythiaBackend:
    return PythiaBackend(
        identity,
        directory,
        model_id,
        holding=Holding(
            settings.pythia_device,
            settings.pythia_dtype,
            Quantization(settings.pythia_quantization),
            # Half the cores: the rest of the suite needs to breathe while the model computes.
            threads=settings.torch_threads or max(1, (os.cpu_count() or 2) // 2),
        ),
        limits=PythiaLimits(settings.pythia_batch, settings.pythia_queue, settings.max_output_tokens),
    )


def start_command(settings: InferenceSettings, identity: Identity) -> Command:
    """Say how a server is started; its model is called as configured, else by its file's name."""
    if identity.kind is Kind.MLX:
        path = _absolute(settings.mlx_model_path)
        return MlxCommand(path, identity.default_model or path.name)
    path = _absolute(settings.llamacpp_model_path)
    return LlamaCppCommand(
        path,
        identity.default_model or path.stem,
        program=settings.llamacpp_program,
        gpu_layers=settings.llamacpp_gpu_layers,
        context_tokens=settings.llamacpp_context_tokens,
    )


def _absolute(path: Path | None) -> Path:
    return (path or Path()).expanduser().absolute()


class ServerFactory:
    """Makes clients of model servers by kind."""

    def __init__(self, settings: InferenceSettings) -> None:
        self._settings = settings

    def configured(self) -> list[Backend]:
        """Give the servers that the settings name, but for those that are started here."""
        return [
            self.make(identity, parse_base_url(identity.url))
            for kind in SERVERS
            for identity in hosts_of(self._settings, kind)
            if identity.url
        ]

    def started(self, environ: Mapping[str, str]) -> list[StartedServer]:
        """Give the servers that are to be started here; `environ` is this process's environment."""
        return [
            self._started(identity, environ)
            for kind in MODEL_PATHS
            for identity in hosts_of(self._settings, kind)
            if not identity.url
        ]

    def open_kinds(self) -> frozenset[Kind]:
        """Give the kinds that may be taken up when found: neither switched off nor configured elsewhere."""
        return frozenset(
            kind
            for kind in SERVERS
            if is_enabled(self._settings, kind) is not False
            and not any(not host.preferences.only_for for host in hosts_of(self._settings, kind))
        )

    def make(self, identity: Identity, base: BaseUrl) -> Backend:
        """Make the client of one server."""
        is_named = not identity.is_discovered or self._names(identity.kind, base)
        return self._client(identity, base, key=self._api_key(identity.kind) if is_named else None)

    def _started(self, identity: Identity, environ: Mapping[str, str]) -> StartedServer:
        key = secrets.token_urlsafe(KEY_BYTES)
        command = start_command(self._settings, identity)
        identity = replace(identity, default_model=command.model_name)
        backend = self._client(identity, UNKNOWN_PORT, key=key)
        server = StartedServer(identity.name, command, backend, environment(environ, key))
        backend.elsewhere, backend.launch = None, server.status
        return server

    def _client(self, identity: Identity, base: BaseUrl, *, key: str | None) -> ModelServerBackend:
        settings, kind = self._settings, identity.kind
        if identity.is_discovered:
            identity = replace(
                identity,
                default_model=configured_model(settings, kind),
                preferences=preferences(settings, kind),
            )
        client = ModelServerClient(
            base, limits=self._limits(kind), api_key=key, max_connections=settings.max_in_flight
        )
        backend = SERVERS[kind](identity, client, max_output_tokens=settings.max_output_tokens)
        others = other_places(settings, base, has_key=key is not None)
        if others and not identity.is_discovered:
            backend.elsewhere = Elsewhere(base, others, recogniser(kind))
        return backend

    def _limits(self, kind: Kind) -> TimeLimits:
        settings = self._settings
        own = settings.lmstudio_timeout_seconds if kind is Kind.LMSTUDIO else None
        return TimeLimits(
            connect=settings.connect_seconds,
            first_byte=own or settings.first_byte_seconds,
            idle=settings.idle_seconds,
            total=own or settings.max_act_seconds,
        )

    def _names(self, kind: Kind, base: BaseUrl) -> bool:
        """Tell whether the settings name this address: whoever listens on a usual port gets no key for that alone."""
        named = (parse_base_url(host.url) for host in hosts_of(self._settings, kind) if host.url)
        return any((one.scheme, one.endpoint) == (base.scheme, base.endpoint) for one in named)

    def _api_key(self, kind: Kind) -> str | None:
        key: SecretStr | None = getattr(self._settings, f"{kind.value}_api_key", None)
        return None if key is None else key.get_secret_value()
