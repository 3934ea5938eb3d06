"""Makes backends out of settings: the configured ones now, found ones when they appear."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from services.inference.backend import Backend, Identity, Kind
from services.inference.backends.http import ModelServerClient, TimeLimits
from services.inference.backends.llamacpp import LlamaCppBackend
from services.inference.backends.lmstudio import LMStudioBackend
from services.inference.backends.mlx import MlxBackend
from services.inference.backends.model_server import ModelServerBackend
from services.inference.backends.ollama import OllamaBackend
from services.inference.backends.pythia import PythiaBackend
from services.inference.base_url import BaseUrl, parse_base_url
from services.inference.config import (
    EMBEDDED_MODEL_DIR,
    LLAMACPP_URL,
    LM_STUDIO_URL,
    MLX_URL,
    OLLAMA_URL,
    InferenceSettings,
)
from services.inference.pythia.weights import pythia_name
from services.inference.router import UNNAMED_MODELS

SERVERS: Final[dict[Kind, type[ModelServerBackend]]] = {
    Kind.MLX: MlxBackend,
    Kind.LLAMACPP: LlamaCppBackend,
    Kind.LMSTUDIO: LMStudioBackend,
    Kind.OLLAMA: OllamaBackend,
}

USUAL_URLS: Final = {
    Kind.MLX: MLX_URL,
    Kind.LLAMACPP: LLAMACPP_URL,
    Kind.LMSTUDIO: LM_STUDIO_URL,
    Kind.OLLAMA: OLLAMA_URL,
}


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
        # Half the cores: the rest of the suite needs to breathe while the model computes.
        threads=settings.torch_threads or max(1, (os.cpu_count() or 2) // 2),
        max_waiting=settings.pythia_queue,
        max_output_tokens=settings.max_output_tokens,
    )


class ServerFactory:
    """Makes clients of model servers by kind."""

    def __init__(self, settings: InferenceSettings) -> None:
        self._settings = settings

    def configured(self) -> list[Backend]:
        """Give the servers that the settings name; one that is switched on without a URL is expected where it usually is."""
        return [
            self.make(Identity(kind.value, kind, url=str(base), default_model=self._model(kind)), base)
            for kind in SERVERS
            if (base := self._base(kind)) is not None
        ]

    def open_kinds(self) -> frozenset[Kind]:
        """Give the kinds that may be taken up when found: neither switched off nor configured elsewhere."""
        return frozenset(
            kind for kind in SERVERS if self._base(kind) is None and self._enabled(kind) is not False
        )

    def make(self, identity: Identity, base: BaseUrl) -> Backend:
        """Make the client of one server."""
        settings = self._settings
        if identity.is_discovered:
            identity = Identity(
                identity.name,
                identity.kind,
                url=identity.url,
                default_model=self._model(identity.kind),
                is_discovered=True,
            )
        client = ModelServerClient(
            base,
            limits=self._limits(identity.kind),
            api_key=self._api_key(identity.kind),
            max_connections=settings.max_in_flight,
        )
        return SERVERS[identity.kind](identity, client, max_output_tokens=settings.max_output_tokens)

    def _base(self, kind: Kind) -> BaseUrl | None:
        if self._enabled(kind) is False:
            return None
        url: str | None = getattr(self._settings, f"{kind.value}_url")
        if url is None and not self._enabled(kind):
            return None
        usual = parse_base_url(USUAL_URLS[kind])
        return parse_base_url(url, field=f"{kind.value}_url", default_port=usual.port) if url else usual

    def _limits(self, kind: Kind) -> TimeLimits:
        settings = self._settings
        own = settings.lmstudio_timeout_seconds if kind is Kind.LMSTUDIO else None
        return TimeLimits(
            connect=settings.connect_seconds,
            first_byte=own or settings.first_byte_seconds,
            idle=settings.idle_seconds,
            total=own or settings.max_act_seconds,
        )

    def _enabled(self, kind: Kind) -> bool | None:
        enabled: bool | None = getattr(self._settings, f"{kind.value}_enabled")
        return enabled

    def _model(self, kind: Kind) -> str:
        model: str | None = getattr(self._settings, f"{kind.value}_model")
        return "" if model is None or model in UNNAMED_MODELS else model

    def _api_key(self, kind: Kind) -> str | None:
        key: SecretStr | None = getattr(self._settings, f"{kind.value}_api_key", None)
        return None if key is None else key.get_secret_value()
