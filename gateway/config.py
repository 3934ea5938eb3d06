"""The gateway's settings; the only place of the gateway that names them."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from gateway.destination import Provider
from gateway.edge_config import EdgeSettings
from gateway.mid_stream import MidStream
from gateway.truncation import Truncation
from kala.errors import InvalidArgumentError
from services.common.addresses import parse_address
from services.common.peers import AUDIT, ETHICS, GATEWAY, GRPC_PORTS, INFERENCE, METRICS_PORTS
from services.common.settings import MetricsPort, aliases
from services.common.tls import TlsFiles

SECTION: Final = GATEWAY

DEFAULT_PORT: Final = 8800

DEFAULT_STATE: Final = Path("~/.local/state/kala").expanduser()
"""Where `kala up` keeps its state; a gateway that is started alone finds the same keys there."""

DEFAULT_MAX_BODY_BYTES: Final = 4 * 1024 * 1024
"""A million words of text; more is a mistake or an attack."""

DEFAULT_MAX_IMAGE_BODY_BYTES: Final = 32 * 1024 * 1024
"""A few photographs in base64; gRPC's limit of 36 MiB leaves room for what wraps them."""

DEFAULT_MAX_ACT_SECONDS: Final = 900.0
"""`max_act_seconds` of the whole suite: no act outlives it."""

DEFAULT_HOLD_BACK_CHARACTERS: Final = 64
DEFAULT_HOLD_BACK_MILLISECONDS: Final = 12
"""Checks cost half of what those of single tokens do, and no gap grows by more than 20 ms (docs/performance.md)."""

DEFAULT_TOOL_TURNS: Final = 8
"""A model that has not answered after seven rounds of tools is going in circles."""

DEFAULT_TOOL_CALLS: Final = 16
"""Two calls a turn; each is judged, logged twice and run in a sandbox of its own."""

DEFAULT_TOOL_TOKENS: Final = 262_144
"""Eight turns that each fill a context of 32,768."""

DEFAULT_TOOL_RESULT_CHARS: Final = 32_768
"""About 8,000 tokens: several results fit into a local model's context."""

DEFAULT_MAX_FILE_BYTES: Final = 128 * 1024 * 1024
"""50,000 requests of a page each, OpenAI's most for a batch."""

DEFAULT_FILE_QUOTA_BYTES: Final = 2 * 1024 * 1024 * 1024
"""A few dozen batches with their answers, on a disk that also holds the log."""

DEFAULT_BATCH_CONCURRENCY: Final = 2
"""Local models answer a few requests at a time; people's own must find room beside a batch's."""

DEFAULT_BATCH_LEASE_SECONDS: Final = 30.0
"""How long a batch stands still after its replica was killed."""

_TLS_FIELDS: Final = ("tls_cert_file", "tls_key_file", "tls_ca_file")


class GatewaySettings(EdgeSettings):
    """Settings of one gateway process."""

    metrics_port: MetricsPort = METRICS_PORTS[GATEWAY]
    host: Annotated[
        str, Field(description="Address to listen on; beyond this machine it needs the HTTPS files.")
    ] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")] = (
        DEFAULT_PORT
    )
    http_cert_file: Annotated[Path | None, Field(description="PEM chain of the HTTPS side.")] = None
    http_key_file: Annotated[Path | None, Field(description="PEM key of the HTTPS side.")] = None
    url_file: Annotated[
        Path | None, Field(description="File that receives the URL once the socket listens.")
    ] = None

    ethics_address: Annotated[str, Field(description="The ethics service.")] = (
        f"127.0.0.1:{GRPC_PORTS[ETHICS]}"
    )
    inference_address: Annotated[str, Field(description="The inference service.")] = (
        f"127.0.0.1:{GRPC_PORTS[INFERENCE]}"
    )
    audit_address: Annotated[str, Field(description="The audit service.")] = f"127.0.0.1:{GRPC_PORTS[AUDIT]}"
    tools_address: Annotated[
        str | None, Field(description="The tools service; unset means not deployed.")
    ] = None
    trainer_address: Annotated[str | None, Field(description="The trainer; unset means not deployed.")] = None
    tls_cert_file: Annotated[
        Path | None, Field(description="PEM chain that the gateway shows the services.")
    ] = None
    tls_key_file: Annotated[Path | None, Field(description="PEM key of that chain.")] = None
    tls_ca_file: Annotated[Path | None, Field(description="PEM of the authority that signs every part.")] = (
        None
    )

    provider: Annotated[
        Provider,
        Field(
            description="What inference is told, too; naming `openai` or `anthropic` lets data leave, `auto` does not."
        ),
        aliases("LLM_PROVIDER"),
    ] = "auto"
    allow_remote: Annotated[
        bool,
        Field(
            description="Let requests that name no provider leave this machine when no local backend answers."
        ),
    ] = False

    database: Annotated[str, Field(description="Keys: path of an SQLite file, or an SQLAlchemy URL.")] = str(
        DEFAULT_STATE / "data" / "gateway.db"
    )
    pepper_file: Annotated[
        Path,
        Field(description="32 random bytes behind all pseudonyms; made when absent. Replicas share one."),
    ] = DEFAULT_STATE / "keys" / "gateway.pepper"
    spool_dir: Annotated[Path, Field(description="Audit records wait here while the log is away.")] = (
        DEFAULT_STATE / "data" / "spool"
    )
    spool_key_file: Annotated[Path, Field(description="Key that encrypts the spool; made when absent.")] = (
        DEFAULT_STATE / "keys" / "gateway.spool"
    )
    store_key_file: Annotated[
        Path,
        Field(
            description="Key that wraps the keys of stored conversations and files; made when absent. Replicas share one."
        ),
    ] = DEFAULT_STATE / "keys" / "gateway.store"
    audit_vkey_file: Annotated[
        Path | None, Field(description="The log's public key; needed to pin its checkpoints.")
    ] = None
    checkpoint_file: Annotated[
        Path | None,
        Field(description="Keeps the newest checkpoint outside the log, so that a cut log is noticed."),
    ] = None
    spool_max_bytes: Annotated[int, Field(ge=1024 * 1024, description="Room in the spool.")] = (
        64 * 1024 * 1024
    )
    audit_policy: Annotated[
        Literal["spool", "fail_closed"],
        Field(description="What chat does while the log is away: answer from the durable spool, or stop."),
    ] = "spool"
    producer_id: Annotated[
        str,
        Field(min_length=1, max_length=128, description="Name of this process in the log; one per replica."),
    ] = "gateway-0"

    max_body_bytes: Annotated[int, Field(ge=1024, description="Largest request body without images.")] = (
        DEFAULT_MAX_BODY_BYTES
    )
    max_image_body_bytes: Annotated[int, Field(ge=1024, description="Largest request body with images.")] = (
        DEFAULT_MAX_IMAGE_BODY_BYTES
    )
    max_concurrent_requests: Annotated[
        int, Field(ge=1, description="Acts and calls of services at a time; more are 429.")
    ] = 256
    max_act_seconds: Annotated[float, Field(gt=0, le=900, description="Longest generation.")] = (
        DEFAULT_MAX_ACT_SECONDS
    )
    judge_timeout_seconds: Annotated[float, Field(gt=0, description="Longest wait for a judgement.")] = 10.0
    body_timeout_seconds: Annotated[float, Field(gt=0, description="Longest wait for a request's body.")] = (
        30.0
    )
    unjudged_parts: Annotated[
        Literal["refuse", "allow"],
        Field(
            description="What a moderation does with images, which no judge reads: refuse it, or leave them out and say so."
        ),
    ] = "refuse"
    hold_back_characters: Annotated[
        int,
        Field(
            ge=1,
            le=65_536,
            description="As soon as so much streamed text waits for its check, the check starts.",
        ),
    ] = DEFAULT_HOLD_BACK_CHARACTERS
    hold_back_milliseconds: Annotated[
        int,
        Field(
            ge=1,
            le=10_000,
            description="When streamed text waited this long, its check starts; only a finished check releases.",
        ),
    ] = DEFAULT_HOLD_BACK_MILLISECONDS
    truncation: Annotated[
        Truncation,
        Field(
            description="What becomes of a conversation over the model's context, unless the request says it itself."
        ),
    ] = "refuse"
    mid_stream: Annotated[
        MidStream,
        Field(
            description="What a backend's failure in mid-stream leads to: an error, or the next one carries the text on."
        ),
    ] = "error"
    tool_turns: Annotated[
        int,
        Field(ge=1, le=64, description="How often one request with `kala_tools` may ask the model."),
    ] = DEFAULT_TOOL_TURNS
    tool_calls: Annotated[
        int, Field(ge=1, le=256, description="How many of KALA's tools one request may run.")
    ] = DEFAULT_TOOL_CALLS
    tool_tokens: Annotated[
        int,
        Field(
            ge=1, description="How many tokens all turns of one request with `kala_tools` may use together."
        ),
    ] = DEFAULT_TOOL_TOKENS
    tool_result_chars: Annotated[
        int,
        Field(ge=1024, description="How much of one tool's result the model reads; the middle is left out."),
    ] = DEFAULT_TOOL_RESULT_CHARS
    max_file_bytes: Annotated[int, Field(ge=1024, description="Largest file that can be uploaded.")] = (
        DEFAULT_MAX_FILE_BYTES
    )
    file_quota_bytes: Annotated[
        int, Field(ge=1024, description="Room for all files of one tenant, in the database.")
    ] = DEFAULT_FILE_QUOTA_BYTES
    batch_concurrency: Annotated[
        int,
        Field(ge=0, le=64, description="Lines of batches that this process works on at a time; 0: none."),
    ] = DEFAULT_BATCH_CONCURRENCY
    batch_lease_seconds: Annotated[
        float,
        Field(ge=1, le=600, description="After this another replica goes on with a dead one's batch or job."),
    ] = DEFAULT_BATCH_LEASE_SECONDS
    training_data_dir: Annotated[
        Path | None,
        Field(
            description="The trainer's data directory, where files to train on are laid; unset: no fine-tuning jobs."
        ),
    ] = None
    conversation_days: Annotated[
        int, Field(ge=1, le=3650, description="How long responses and sessions are kept, unless they say it.")
    ] = 30
    background_responses: Annotated[
        int, Field(ge=1, le=256, description="How many responses with `background: true` run at a time.")
    ] = 8
    fine_tuning_gate: Annotated[
        str | None,
        Field(
            description="Gate profile of fine-tuning jobs; unset: `embedded` for the embedded model, else `standard`."
        ),
    ] = None
    key_cache_seconds: Annotated[
        float,
        Field(ge=0, le=4, description="How long a key's state is remembered; bounds a revocation elsewhere."),
    ] = 4.0
    drain_seconds: Annotated[
        float, Field(ge=0, description="How long running answers may go on after a stop.")
    ] = 10.0

    @property
    def tls(self) -> TlsFiles | None:
        """The files for the connections to the services, or None where they stay on this machine."""
        return TlsFiles.if_complete(self.tls_cert_file, self.tls_key_file, self.tls_ca_file)

    @property
    def scheme(self) -> str:
        """`https` when the HTTPS files are set."""
        return "http" if self.http_cert_file is None else "https"

    @model_validator(mode="after")
    def _check_edges(self) -> Self:
        if (self.http_cert_file is None) != (self.http_key_file is None):
            raise ValueError("http_cert_file and http_key_file must be set together")
        if self.http_cert_file is None and not _is_loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached from other machines, so http_cert_file and http_key_file must be set"
            )
        given = [name for name in _TLS_FIELDS if getattr(self, name) is not None]
        if given and len(given) < len(_TLS_FIELDS):
            raise ValueError(f"TLS to the services needs all three files; only {', '.join(given)} is set")
        return self

    @model_validator(mode="after")
    def _check_addresses(self) -> Self:
        for name in ("ethics", "inference", "audit", "tools", "trainer"):
            address = getattr(self, f"{name}_address")
            if address is None or address.startswith(("dns:", "ipv4:", "ipv6:")):
                continue
            try:
                parse_address(address, field=f"{name}_address")
            except InvalidArgumentError as error:
                raise ValueError(error.message) from error
        return self


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
