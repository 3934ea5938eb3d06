"""Which hosts the settings name, per kind and in their order.  Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from services.inference.backend import Capability, ContextLengths, Identity, Kind, Preferences
from services.inference.base_url import BaseUrl, parse_base_url
from services.inference.config import (
    LLAMACPP_URL,
    LM_STUDIO_URL,
    MLX_URL,
    OLLAMA_URL,
    InferenceSettings,
)
from services.inference.config_routing import parse_host
from services.inference.router import UNNAMED_MODELS

USUAL_URLS: Final = {
    Kind.MLX: MLX_URL,
    Kind.LLAMACPP: LLAMACPP_URL,
    Kind.LMSTUDIO: LM_STUDIO_URL,
    Kind.OLLAMA: OLLAMA_URL,
}

MODEL_PATHS: Final = {Kind.MLX: "mlx_model_path", Kind.LLAMACPP: "llamacpp_model_path"}
"""Kinds whose server is started here when a model is given for it, and the setting that gives it."""

EMBEDDINGS_NAME: Final = "lmstudio-embeddings"

LOCAL_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1", "host.docker.internal"})
"""This machine's own names."""


def hosts_of(settings: InferenceSettings, kind: Kind) -> list[Identity]:
    """Give the hosts of a kind: `<kind>`, `<kind>-2`, …; one that is switched on without a URL is expected where it usually is.

    A server that is started here comes first and has no URL yet.
    """
    if is_enabled(settings, kind) is False:
        return []
    places = _places(settings, kind)
    starts_one = starts_server(settings, kind)
    if not places and not starts_one and is_enabled(settings, kind):
        places = [(parse_base_url(USUAL_URLS[kind]), 1.0)]
    urls = [("", 1.0)] if starts_one else []
    urls += [(str(base), weight) for base, weight in places]
    found = [
        Identity(
            kind.value if number == 1 else f"{kind.value}-{number}",
            kind,
            url=url,
            default_model=configured_model(settings, kind),
            number=number,
            weight=weight,
            preferences=preferences(settings, kind),
        )
        for number, (url, weight) in enumerate(urls, start=1)
    ]
    return [*_embedding_host(settings, kind, found), *found]


def starts_server(settings: InferenceSettings, kind: Kind) -> bool:
    """Tell whether a server of this kind is to be started here."""
    field = MODEL_PATHS.get(kind)
    has_model = field is not None and getattr(settings, field) is not None
    return has_model and is_enabled(settings, kind) is not False


def is_enabled(settings: InferenceSettings, kind: Kind) -> bool | None:
    """Give the kind's switch; None where the settings leave it open."""
    enabled: bool | None = getattr(settings, f"{kind.value}_enabled")
    return enabled


def configured_model(settings: InferenceSettings, kind: Kind) -> str:
    """Give the configured model of a kind, empty where the loaded one is meant."""
    model: str | None = getattr(settings, f"{kind.value}_model")
    return "" if model is None or model in UNNAMED_MODELS else model


def preferences(settings: InferenceSettings, kind: Kind) -> Preferences:
    """Give what the settings say about the use of a kind."""
    if kind is Kind.MLX:
        return Preferences(contexts=ContextLengths(settings.mlx_context_tokens))
    return settings.lmstudio_preferences if kind is Kind.LMSTUDIO else Preferences()


def other_places(settings: InferenceSettings, base: BaseUrl, *, has_key: bool) -> list[BaseUrl]:
    """Give where else a server of this machine may be when its own address does not answer: the same port of other names.

    Never for another machine's server, for its prompts would go to whoever holds such a name; never for TLS, whose
    certificate names the host.  A key goes to this machine's own names only.
    """
    if base.is_tls or base.host not in LOCAL_HOSTS:
        return []
    hosts = [parse_base_url(host, field="fallback_hosts").host for host in settings.fallback_hosts]
    return [
        replace(base, host=host)
        for host in dict.fromkeys(hosts)
        if host != base.host and (host in LOCAL_HOSTS or not has_key)
    ]


def _places(settings: InferenceSettings, kind: Kind) -> list[tuple[BaseUrl, float]]:
    usual = parse_base_url(USUAL_URLS[kind])
    url: str | None = getattr(settings, f"{kind.value}_url")
    texts = [(url, f"{kind.value}_url")] if url else []
    texts += [(text, f"{kind.value}_urls") for text in getattr(settings, f"{kind.value}_urls")]
    places = [parse_host(text, field=field, default_port=usual.port) for text, field in texts]
    unique: dict[object, tuple[BaseUrl, float]] = {}
    for base, weight in places:
        # The same server twice would be no second chance and get twice its share.
        unique.setdefault((base.endpoint, base.prefix), (base, weight))
    return list(unique.values())


def _embedding_host(settings: InferenceSettings, kind: Kind, others: list[Identity]) -> list[Identity]:
    url = settings.lmstudio_embedding_url
    if kind is not Kind.LMSTUDIO or url is None:
        return []
    base = parse_base_url(url, field="lmstudio_embedding_url", default_port=1234)
    if base.endpoint in {parse_base_url(other.url).endpoint for other in others}:
        return []
    only_embeds = replace(preferences(settings, kind), only_for=frozenset({Capability.EMBED}))
    return [Identity(EMBEDDINGS_NAME, kind, url=str(base), number=0, preferences=only_embeds)]
