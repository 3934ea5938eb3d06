"""Settings of a process: one frozen model, filled from five layers, strict about every name.

Defaults < `kala.yaml` (section of the service; path from KALA_CONFIG or ./kala.yaml) < `.env` in the working directory
< environment `KALA_<SECTION>_<FIELD>` < flags `--field-name value`.  Messages name the variable, key or flag at fault
and never its value, which may be a secret.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Final, Literal, Self, TypeVar, get_args, get_origin

from dotenv import dotenv_values
from pydantic import BaseModel, Field, SecretBytes, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from kala.errors import InvalidArgumentError
from services.common.addresses import parse_address
from services.common.peers import PART_NAMES, WITNESS
from services.common.settings_sources import Known, Layer, Sourced, from_environment, from_flags, from_yaml
from services.common.tls import TlsFiles

CONFIG_VARIABLE: Final = "KALA_CONFIG"
CONFIG_FILE: Final = "kala.yaml"
ENV_FILE: Final = ".env"

DEFAULT_DRAIN_SECONDS: Final = 10.0
"""A judged chat turn rarely takes longer, and Kubernetes' default grace period is 30 s."""

DEFAULT_BALANCER_WAIT_SECONDS: Final = 0.1
"""Clients with an open health Watch hear of a stop in a few milliseconds; give a slow one some room."""

DEFAULT_MAX_MESSAGE_BYTES: Final = 36 * 1024 * 1024
"""A request body of 32 MiB with images, and room for what the gateway wraps around it."""

DEFAULT_CONNECTION_AGE_SECONDS: Final = 300.0
"""A TCP client looks for new replicas only when a connection ends, so connections must end."""

DEFAULT_CONNECTION_AGE_GRACE_SECONDS: Final = 930.0
"""No act lasts longer than 900 s (`max_act_seconds`), so no stream is cut by the age of its connection."""

_OFF: Final = frozenset({"", "off", "none"})
"""What unsets an optional setting in a layer that holds only text."""


@dataclass(frozen=True, slots=True)
class Aliases:
    """Further environment variables that set a field, as the seeds named them."""

    names: tuple[str, ...]


def aliases(*names: str) -> Aliases:
    """Name further variables that set a field.

    In use: `url: Annotated[str, aliases("LM_STUDIO_BASE_URL")] = "…"`.
    """
    return Aliases(names)


@dataclass(frozen=True, slots=True)
class Family:
    """A prefix of environment variables that set one key each of a mapping."""

    prefix: str


def family(prefix: str) -> Family:
    """Let `<prefix><KEY>=value` set `key` of a mapping, as the seeds named `LMSTUDIO_MODEL_RANK`; keys are lower case."""
    return Family(prefix)


# What many processes have, with a default of their own.
ListenAddress = Annotated[str, Field(description="Where to listen: unix:/path or host:port.")]
AllowedPeers = Annotated[
    tuple[str, ...], Field(description="Parts that may call, by bare name; empty means nobody.")
]
MetricsPort = Annotated[
    int | None,
    Field(ge=0, le=65535, description="Port of /metrics; 0 takes a free one, `off` serves none."),
]


class ServiceSettings(BaseSettings):
    """The base of every process's settings: frozen, and filled only by its arguments; `load` reads the layers."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read nothing but the arguments: pydantic-settings would pass over unknown variables in silence."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


class ProcessSettings(ServiceSettings):
    """What every process has: logs, metrics and traces."""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Least severe line that is written.")
    ] = "info"
    log_format: Annotated[
        Literal["auto", "json", "console"], Field(description="`auto` is JSON unless stderr is a terminal.")
    ] = "auto"
    metrics_host: Annotated[str, Field(description="Address that serves /metrics.")] = "127.0.0.1"
    metrics_port: MetricsPort = None
    otlp_endpoint: Annotated[
        str | None,
        Field(description="OTLP gRPC collector for traces, `http://host:4317`; unset means no tracing."),
    ] = None


class GrpcServerSettings(ProcessSettings):
    """What every gRPC service has besides; a subclass gives `address` and `allowed_peers` their defaults."""

    address: ListenAddress = "127.0.0.1:0"
    allowed_peers: AllowedPeers = ()
    drain_seconds: Annotated[
        float, Field(ge=0, description="How long running calls may go on after a stop.")
    ] = DEFAULT_DRAIN_SECONDS
    balancer_wait_seconds: Annotated[
        float, Field(ge=0, description="How long to serve on after health says NOT_SERVING.")
    ] = DEFAULT_BALANCER_WAIT_SECONDS
    max_message_bytes: Annotated[int, Field(ge=1024, description="Largest message, both ways.")] = (
        DEFAULT_MAX_MESSAGE_BYTES
    )
    max_connection_age_seconds: Annotated[
        float, Field(gt=0, description="After this a TCP client must reconnect, and finds new replicas.")
    ] = DEFAULT_CONNECTION_AGE_SECONDS
    max_connection_age_grace_seconds: Annotated[
        float, Field(ge=0, description="How long calls on such a connection may go on.")
    ] = DEFAULT_CONNECTION_AGE_GRACE_SECONDS
    tls_cert_file: Annotated[Path | None, Field(description="PEM chain of this part.")] = None
    tls_key_file: Annotated[Path | None, Field(description="PEM key of this part.")] = None
    tls_ca_file: Annotated[Path | None, Field(description="PEM of the authority that signs every part.")] = (
        None
    )
    audit_address: Annotated[
        str | None, Field(description="The audit service, for denials and administration.")
    ] = None

    @property
    def tls(self) -> TlsFiles | None:
        """The TLS files, or None where connections stay on this machine."""
        return TlsFiles.if_complete(self.tls_cert_file, self.tls_key_file, self.tls_ca_file)

    @model_validator(mode="after")
    def _check_transport(self) -> Self:
        given = [name for name in _TLS_FIELDS if getattr(self, name) is not None]
        if given and len(given) < len(_TLS_FIELDS):
            missing = ", ".join(name for name in _TLS_FIELDS if name not in given)
            raise ValueError(f"TLS needs all three files; {missing} is not set")
        try:
            address = parse_address(self.address)
            if self.audit_address is not None:
                parse_address(self.audit_address, field="audit_address")
        except InvalidArgumentError as error:
            raise ValueError(error.message) from error
        if not given and not address.is_local:
            raise ValueError(
                f"address {self.address} can be reached from other machines, so tls_cert_file, tls_key_file and "
                "tls_ca_file must be set"
            )
        return self


_TLS_FIELDS: Final = ("tls_cert_file", "tls_key_file", "tls_ca_file")

_Model = TypeVar("_Model", bound=ServiceSettings)

Source = Literal["default", "file", "environment", "flag"]
"""The kinds of layers a setting can come from."""


def load(
    model: type[_Model],
    *,
    section: str,
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> _Model:
    """Fill the settings of one process from its five layers; None takes the process's own argv, environment and cwd.

    Raises InvalidArgumentError whose `field` is the variable, key or flag at fault. `--help` alone prints them all and
    ends the process.
    """
    return load_with_sources(model, section=section, argv=argv, environ=environ, cwd=cwd)[0]


def load_with_sources(
    model: type[_Model],
    *,
    section: str,
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> tuple[_Model, dict[str, Source]]:
    """Do what `load` does, and tell besides which layer each field came from that is not its default."""
    argv = sys.argv[1:] if argv is None else argv
    if list(argv) in (["--help"], ["-h"]):
        sys.stdout.write(help_text(model, section=section))
        raise SystemExit(0)
    environ = os.environ if environ is None else environ
    cwd = Path.cwd() if cwd is None else cwd
    known = known_names(model, section)
    prefix = variable_prefix(section)
    layers: list[tuple[Source, Layer]] = [
        ("file", _yaml_layer(known, section, environ, cwd)),
        (
            "environment",
            from_environment(_env_file(cwd), known, prefix=prefix, section=section, where=f" in {ENV_FILE}"),
        ),
        ("environment", from_environment(environ, known, prefix=prefix, section=section)),
        ("flag", from_flags(argv, known, section=section)),
    ]
    merged = _merged(*(layer for _, layer in layers))
    sources: dict[str, Source] = {name: source for source, layer in layers for name in layer}
    values = {name: _parsed(sourced, model.model_fields[name]) for name, sourced in merged.items()}
    try:
        return model(**values), sources
    except ValidationError as error:
        raise _in_one_line(error, merged, section) from None


def variable_prefix(section: str) -> str:
    """Give what every environment variable of a section starts with."""
    return f"KALA_{section.upper().replace('-', '_')}_"


def known_names(model: type[ServiceSettings], section: str) -> list[Known]:
    """List every field with the names that set it; for `load`, the tables in the READMEs and their tests."""
    prefix = variable_prefix(section)
    return [
        Known(
            field=name,
            variables=(prefix + name.upper(), *_aliases_of(field)),
            is_secret=not {SecretStr, SecretBytes}.isdisjoint(_alternatives(field)),
            is_boolean=bool in _alternatives(field),
            family=_family_of(field),
        )
        for name, field in model.model_fields.items()
    ]


def settings_table(model: type[ServiceSettings], *, section: str) -> str:
    """Write the settings as the Markdown table that a service's README carries."""
    lines = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for known in known_names(model, section):
        field = model.model_fields[known.field]
        members = [f"{known.family}<NAME>"] if known.family else []
        names = ", ".join(f"`{name}`" for name in (*known.variables, *members))
        default = "secret" if known.is_secret else _default_text(field)
        lines.append(f"| {names} | {default} | {field.description or ''} |")
    return "\n".join(lines) + "\n"


def help_text(model: type[ServiceSettings], *, section: str) -> str:
    """Write what `--help` of a process shows: every setting with its default and meaning."""
    lines = [
        f"Settings of {section}. Each is a flag here, a variable {variable_prefix(section)}<NAME>,",
        f"and a key of `{section}:` in {CONFIG_FILE}; secrets are never flags.",
        "",
    ]
    for known in known_names(model, section):
        field = model.model_fields[known.field]
        name = known.variables[0] if known.is_secret else known.flag
        default = "" if known.is_secret else f"  [{_default_text(field).strip('`')}]"
        lines += [f"  {name}{default}", f"      {field.description or ''}".rstrip()]
    return "\n".join(lines) + "\n"


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if default is None or default in ((), {}):
        return "unset"
    return f"`{','.join(map(str, default)) if isinstance(default, tuple) else default}`"


def _merged(*layers: Layer) -> dict[str, Sourced]:
    """Put later layers over earlier ones, value by value; a mapping key by key, so that one key may be overridden."""
    merged: dict[str, Sourced] = {}
    for layer in layers:
        for name, sourced in layer.items():
            before = merged.get(name)
            if before is not None and isinstance(before.value, dict) and isinstance(sourced.value, dict):
                merged[name] = Sourced({**before.value, **sourced.value}, sourced.origin)
            else:
                merged[name] = sourced
    return merged


def _yaml_layer(known: Sequence[Known], section: str, environ: Mapping[str, str], cwd: Path) -> Layer:
    named = environ.get(CONFIG_VARIABLE)
    path = cwd / (named or CONFIG_FILE)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if named:
            raise InvalidArgumentError(
                CONFIG_VARIABLE, f"names a file that does not exist: {named}"
            ) from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(str(path), "cannot be read as text") from error
    return from_yaml(text, known, section=section, sections=(*PART_NAMES, WITNESS), path=named or CONFIG_FILE)


def _env_file(cwd: Path) -> dict[str, str]:
    path = cwd / ENV_FILE
    if not path.is_file():
        return {}
    try:
        # No interpolation: a value in .env means the same as the same value in the environment.
        values = dotenv_values(path, interpolate=False)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(str(path), "cannot be read as text") from error
    return {name: value for name, value in values.items() if value is not None}


def _parsed(sourced: Sourced, field: FieldInfo) -> object:
    """Give text its shape: off means None, lists are JSON or split at commas, models and mappings are JSON."""
    text = sourced.value
    if not isinstance(text, str):
        return text
    alternatives = _alternatives(field)
    if NoneType in alternatives and text.strip().lower() in _OFF:
        return None
    shapes = {get_origin(kind) or kind for kind in alternatives}
    if not shapes.isdisjoint({tuple, list, set, frozenset}) and not text.lstrip().startswith("["):
        return [item.strip() for item in text.split(",") if item.strip()]
    is_model = any(isinstance(shape, type) and issubclass(shape, BaseModel) for shape in shapes)
    if not is_model and shapes.isdisjoint({tuple, list, set, frozenset, dict}):
        return text
    try:
        return json.loads(text)
    except ValueError:
        raise InvalidArgumentError(sourced.origin, "is not valid JSON") from None


def _alternatives(field: FieldInfo) -> tuple[Any, ...]:  # Any: an annotation may be any type expression
    annotation = field.annotation
    return get_args(annotation) if NoneType in get_args(annotation) else (annotation,)


def _aliases_of(field: FieldInfo) -> tuple[str, ...]:
    return tuple(name for item in field.metadata if isinstance(item, Aliases) for name in item.names)


def _family_of(field: FieldInfo) -> str:
    return next((item.prefix for item in field.metadata if isinstance(item, Family)), "")


def _in_one_line(error: ValidationError, merged: Mapping[str, Sourced], section: str) -> InvalidArgumentError:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    problem = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return InvalidArgumentError(section, problem)
    name = str(first["loc"][0])
    origin = merged[name].origin if name in merged else variable_prefix(section) + name.upper()
    return InvalidArgumentError(origin, problem[0].lower() + problem[1:])
