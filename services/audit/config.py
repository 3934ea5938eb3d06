"""Settings of the audit service, `KALA_AUDIT_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from services.audit.log import MAX_PENDING
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
    max_pending_records: Annotated[
        int,
        Field(
            ge=1, description="Records that may wait for their transaction before callers are pushed back."
        ),
    ] = MAX_PENDING
