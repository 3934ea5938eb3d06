"""Settings of the audit service, `KALA_AUDIT_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import Field, field_validator, model_validator

from kala.errors import InvalidArgumentError
from services.audit.export.sink_settings import SinkSettings, require_sink_names
from services.audit.log import MAX_PENDING
from services.audit.publishing.witness_policy import parse_witnesses
from services.common.peers import (
    AUDIT,
    CLI,
    CONSOLE,
    ETHICS,
    GATEWAY,
    GRPC_PORTS,
    INFERENCE,
    METRICS_PORTS,
    TOOLS,
    TRAINER,
    WITNESS,
)
from services.common.settings import AllowedPeers, GrpcServerSettings, ListenAddress, MetricsPort

SECTION: Final = AUDIT
_STATE: Final = Path("~/.local/state/kala").expanduser()

# Regulation (EU) 2024/1689, articles 19 and 26(6): providers and deployers keep logs for at least six months.
LEGAL_FLOOR_DAYS: Final = 180


class AuditSettings(GrpcServerSettings):
    """What the audit service can be told."""

    address: ListenAddress = f"127.0.0.1:{GRPC_PORTS[AUDIT]}"
    allowed_peers: AllowedPeers = (GATEWAY, CONSOLE, ETHICS, INFERENCE, TOOLS, TRAINER, CLI, WITNESS)
    metrics_port: MetricsPort = METRICS_PORTS[AUDIT]
    database: Annotated[
        str,
        Field(description="The log: path of an SQLite file, whose directory is made, or `postgresql://…`."),
    ] = str(_STATE / "data" / "audit.db")
    log_key_file: Annotated[
        Path, Field(description="The log's signing key, `PRIVATE+KEY+<origin>+…`, mode 0600.")
    ] = _STATE / "keys" / "audit-log.key"
    kek_file: Annotated[
        Path, Field(description="Key that wraps the subjects' keys: 32 bytes, mode 0600.")
    ] = _STATE / "keys" / "audit-kek.key"
    next_log_key_file: Annotated[
        Path | None,
        Field(description="A key of the same origin that signs beside the log's own while it is replaced."),
    ] = None
    log_ml_dsa_key_file: Annotated[
        Path | None,
        Field(
            description="The log's ML-DSA-44 key, with which it cosigns the checkpoints that it publishes."
        ),
    ] = None
    tile_token_file: Annotated[
        Path | None,
        Field(description="Token that readers of /tile show, mode 0600; unset: no tile is served over HTTP."),
    ] = None
    witnesses: Annotated[
        tuple[str, ...], Field(description="Witnesses to ask for cosignatures, `<url> <vkey>` each.")
    ] = ()
    witnesses_required: Annotated[
        int, Field(ge=0, description="How many must have cosigned a checkpoint before /checkpoint shows it.")
    ] = 0
    witness_interval_seconds: Annotated[
        float, Field(ge=0.1, description="How often the witnesses are asked while the log grows.")
    ] = 1.0
    sinks: Annotated[
        dict[str, SinkSettings],
        Field(
            default_factory=dict,
            description="Where every entry is sent besides, by name: `url`, `format`, `start`, `header_file`, `batch_entries`; as JSON here, or a mapping in kala.yaml.",
        ),
    ]
    max_pending_records: Annotated[
        int,
        Field(
            ge=1, description="Records that may wait for their transaction before callers are pushed back."
        ),
    ] = MAX_PENDING

    payload_retention_days: Annotated[
        int, Field(ge=1, description="Age at which content is deleted; subjects under a legal hold keep it.")
    ] = 30
    entry_retention_days: Annotated[
        int,
        Field(
            ge=0,
            description="Age at which entries may be dropped, whole partitions of PostgreSQL at a time; 0 keeps them for ever.",
        ),
    ] = LEGAL_FLOOR_DAYS
    redact_pii: Annotated[
        bool,
        Field(
            description="Mask e-mail addresses, telephone and card numbers and the like in content that is kept; needs the extra audit-pii."
        ),
    ] = False
    allow_below_legal_floor: Annotated[bool, Field(description="Accept fewer than 180 days for entries.")] = (
        False
    )

    @model_validator(mode="after")
    def _check_retention(self) -> Self:
        kept = self.entry_retention_days
        if 0 < kept < LEGAL_FLOOR_DAYS and not self.allow_below_legal_floor:
            raise ValueError(
                f"entry_retention_days is {kept}; below {LEGAL_FLOOR_DAYS} it needs allow_below_legal_floor=true"
            )
        if 0 < kept < self.payload_retention_days:
            raise ValueError(
                f"payload_retention_days is {self.payload_retention_days}, longer than the {kept} days of entries"
            )
        return self

    @field_validator("sinks", mode="before")
    @classmethod
    def _check_sinks(cls, value: object) -> object:
        require_sink_names(value)
        return value

    @model_validator(mode="after")
    def _check_witnesses(self) -> Self:
        try:
            parse_witnesses(self.witnesses, self.witnesses_required)
        except InvalidArgumentError as error:
            raise ValueError(error.message) from error
        return self
