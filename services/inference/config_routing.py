"""The settings of routing: the chain, roles, further hosts, and servers that this service starts itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kala.errors import InvalidArgumentError
from services.common.settings import GrpcServerSettings, aliases, family
from services.inference.backend import Capability, ContextLengths, Kind, Preferences, slug
from services.inference.base_url import BaseUrl, parse_base_url
from services.inference.chat import Sampling
from services.inference.roles import MAX_ROLE_CHARS, Role, Routing

Provider = Literal["auto", "mlx", "llamacpp", "lmstudio", "ollama", "pythia", "openai", "anthropic"]
ChainLink = Literal["mlx", "llamacpp", "lmstudio", "ollama", "pythia", "openai", "anthropic"]

FALLBACK_HOSTS: Final = ("localhost", "127.0.0.1", "host.docker.internal")
"""This machine's names, from itself and from inside a container."""

SERVED_BY_URL: Final = ("lmstudio", "llamacpp", "mlx", "ollama")

MAX_WEIGHT: Final = 100.0

_ROLE_NAME: Final = re.compile(rf"[a-z0-9][a-z0-9_-]{{0,{MAX_ROLE_CHARS - 1}}}")

Temperature = Annotated[float | None, Field(ge=0, le=2)]
TopP = Annotated[float | None, Field(gt=0, le=1)]
Tokens = Annotated[int | None, Field(ge=1)]
MoreHosts = Annotated[tuple[str, ...], Field(description="More hosts, each `URL` or `URL weight=N`.")]


class RoleSettings(BaseModel):
    """One role: what its requests get where they say nothing themselves."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: Annotated[str, Field(max_length=256)] = ""
    provider: Provider = "auto"
    temperature: Temperature = None
    top_p: TopP = None
    seed: int | None = None
    max_tokens: Tokens = None
    context_tokens: Tokens = None

    @property
    def role(self) -> Role:
        return Role(
            model=self.model,
            provider="" if self.provider == "auto" else self.provider,
            sampling=Sampling(
                temperature=self.temperature,
                top_p=self.top_p,
                seed=self.seed,
                max_output_tokens=self.max_tokens,
            ),
            context_tokens=self.context_tokens,
        )


class RoutingSettings(GrpcServerSettings):
    """What decides where a request goes."""

    provider: Annotated[
        Provider, Field(description="Kind that serves requests which name none."), aliases("LLM_PROVIDER")
    ] = "auto"
    chain: Annotated[
        tuple[ChainLink, ...],
        Field(description="Order in which `auto` tries the kinds; one that is left out serves by name."),
    ] = ("mlx", "llamacpp", "lmstudio", "ollama", "pythia", "openai", "anthropic")
    roles: Annotated[
        dict[str, RoleSettings],
        Field(
            description="Per role `model`, `provider`, `temperature`, `top_p`, `seed`, `max_tokens`, `context_tokens`."
        ),
    ] = Field(default_factory=dict)
    lmstudio_role_models: Annotated[
        dict[str, str],
        Field(description="LM Studio's model for a role."),
        family("LMSTUDIO_MODEL_"),
    ] = Field(default_factory=dict)
    fallback_hosts: Annotated[
        tuple[str, ...],
        Field(
            description="Hosts to try, at the same port, when an http server of this machine does not answer."
        ),
    ] = FALLBACK_HOSTS

    mlx_urls: MoreHosts = ()
    llamacpp_urls: MoreHosts = ()
    lmstudio_urls: MoreHosts = ()
    ollama_urls: MoreHosts = ()

    lmstudio_embedding_url: Annotated[
        str | None,
        Field(description="LM Studio that embeds, where it is another one."),
        aliases("LMSTUDIO_EMBEDDING_URL"),
    ] = None
    lmstudio_embedding_model: Annotated[
        str | None,
        Field(description="Model to embed with; unset means the one loaded."),
        aliases("LMSTUDIO_EMBEDDING_MODEL"),
    ] = None
    lmstudio_vision_model: Annotated[
        str | None,
        Field(description="Model for chats with images that name none."),
        aliases("LMSTUDIO_VISION_MODEL"),
    ] = None
    lmstudio_temperature: Annotated[
        float | None,
        Field(ge=0, le=2, description="Temperature where a request and its role name none."),
        aliases("LMSTUDIO_TEMPERATURE"),
    ] = None
    lmstudio_top_p: Annotated[
        float | None,
        Field(gt=0, le=1, description="Top-p where a request and its role name none."),
        aliases("LMSTUDIO_TOP_P"),
    ] = None
    lmstudio_seed: Annotated[
        int | None,
        Field(description="Seed where a request and its role name none."),
        aliases("LMSTUDIO_SEED"),
    ] = None
    lmstudio_max_tokens: Annotated[
        int | None,
        Field(ge=1, description="Most tokens of an answer where a request and its role name no limit."),
        aliases("LMSTUDIO_MAX_TOKENS"),
    ] = None
    lmstudio_max_context: Annotated[
        int | None,
        Field(ge=1, description="Context to load models with, and to count on at most, in tokens."),
        aliases("LMSTUDIO_MAX_CONTEXT", "LMSTUDIO_CONTEXT_LENGTH"),
    ] = None
    lmstudio_context_lengths: Annotated[
        dict[str, Annotated[int, Field(ge=1)]],
        Field(description="The same for one model, by its name in lower case with `_` for other signs."),
        family("LMSTUDIO_CONTEXT_LENGTH_"),
    ] = Field(default_factory=dict)

    mlx_model_path: Annotated[
        Path | None,
        Field(description="Model directory; set, mlx_lm.server is started with it and watched."),
        aliases("MLX_MODEL_PATH"),
    ] = None
    mlx_context_tokens: Annotated[
        int | None,
        Field(
            ge=1,
            description="Context of its model, which mlx_lm.server neither tells nor keeps to; unset means unknown.",
        ),
    ] = None
    llamacpp_model_path: Annotated[
        Path | None,
        Field(description="GGUF file; set, llama-server is started with it and watched."),
        aliases("LLAMACPP_MODEL_PATH"),
    ] = None
    llamacpp_program: Annotated[
        str | None,
        Field(description="The llama-server to start; unset means the one on PATH, else llama_cpp.server."),
    ] = None
    llamacpp_gpu_layers: Annotated[
        int,
        Field(ge=-1, description="Layers on the GPU of the server that is started; -1 means all."),
        aliases("LLAMACPP_N_GPU_LAYERS"),
    ] = -1
    llamacpp_context_tokens: Annotated[
        int | None,
        Field(ge=1, description="Context of the server that is started; unset means the model's own."),
        aliases("LLAMACPP_N_CTX"),
    ] = None

    @property
    def routing(self) -> Routing:
        """How requests are routed."""
        roles = {name.lower(): settings.role for name, settings in self.roles.items()}
        for name, model in self.lmstudio_role_models.items():
            roles[name] = Role(model=model, provider=Kind.LMSTUDIO.value)
        return Routing(tuple(Kind(link) for link in self.chain), self.provider, roles)

    @property
    def lmstudio_preferences(self) -> Preferences:
        """What is said about the use of LM Studio."""
        models = {
            Capability.EMBED: self.lmstudio_embedding_model,
            Capability.VISION: self.lmstudio_vision_model,
        }
        return Preferences(
            sampling=Sampling(
                temperature=self.lmstudio_temperature,
                top_p=self.lmstudio_top_p,
                seed=self.lmstudio_seed,
                max_output_tokens=self.lmstudio_max_tokens,
            ),
            models=tuple((capability, model) for capability, model in models.items() if model),
            contexts=ContextLengths(
                self.lmstudio_max_context,
                tuple((slug(name), tokens) for name, tokens in self.lmstudio_context_lengths.items()),
            ),
        )

    @model_validator(mode="after")
    def _check_roles(self) -> Self:
        names = [*self.roles, *self.lmstudio_role_models]
        for name in names:
            if not _ROLE_NAME.fullmatch(name.lower()):
                raise ValueError(f"roles: {name[:MAX_ROLE_CHARS]!r} must be 1 to 64 of a-z 0-9 _ -")
        folded = [name.lower() for name in names]
        twice = next((name for name in folded if folded.count(name) > 1), None)
        if twice is not None:
            raise ValueError(
                f"role {twice!r} is set by roles and by LMSTUDIO_MODEL_{twice.upper()}; keep one"
            )
        for name, role in self.routing.roles.items():
            most = self.lmstudio_preferences.contexts.of(role.model)
            if role.provider == Kind.LMSTUDIO.value and most and (role.context_tokens or 0) > most:
                raise ValueError(
                    f"role {name!r} asks for {role.context_tokens} tokens of context, and LM Studio's is set to {most}"
                )
        return self

    @model_validator(mode="after")
    def _check_hosts(self) -> Self:
        if len(set(self.chain)) != len(self.chain):
            raise ValueError("chain must name each kind once")
        for kind in SERVED_BY_URL:
            for text in getattr(self, f"{kind}_urls"):
                _checked(text, f"{kind}_urls")
        if self.lmstudio_embedding_url is not None:
            _checked(self.lmstudio_embedding_url, "lmstudio_embedding_url")
        for host in self.fallback_hosts:
            _checked(host, "fallback_hosts")
        return self


def parse_host(text: str, *, field: str, default_port: int | None = None) -> tuple[BaseUrl, float]:
    """Read `URL` or `URL weight=N`; raises InvalidArgumentError that names `field`."""
    url, *rest = text.split()
    if not rest:
        return parse_base_url(url, field=field, default_port=default_port), 1.0
    key, _, number = rest[0].partition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    if len(rest) > 1 or key != "weight" or not 0 < weight <= MAX_WEIGHT:
        raise InvalidArgumentError(
            field, f"must be URL or URL weight=N with N above 0, at most {MAX_WEIGHT:g}"
        )
    return parse_base_url(url, field=field, default_port=default_port), weight


def _checked(text: str, field: str) -> None:
    if not text.strip():
        raise ValueError(f"{field} holds an empty URL")
    try:
        parse_host(text, field=field)
    except InvalidArgumentError as error:
        raise ValueError(error.message) from error
