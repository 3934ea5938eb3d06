"""The settings of the tools service; the only place of it that reads the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from services.common.peers import GATEWAY, GRPC_PORTS, METRICS_PORTS, TOOLS, TRAINER
from services.common.settings import AllowedPeers, GrpcServerSettings, ListenAddress, MetricsPort
from services.tools.scanning import WORKERS

SECTION: Final = TOOLS

DEFAULT_STATE: Final = Path(os.path.expanduser("~/.local/state/kala/tools"))  # noqa: PTH111 - may know no home

MAX_ACT_SECONDS: Final = 900.0
"""The bound that the design gives every act; the policy's own limits are far below."""

MAX_RUNS: Final = 8
"""Each may use the policy's memory: more at once than a small machine can hold would slow all of them."""

POOL_SLOTS: Final = 2
"""Sandboxes that wait for code, per language: what one conversation's loop uses before the pool is full again."""

RUN_AS_UID: Final = 65532
"""The "nonroot" user of distroless images; it owns nothing on an ordinary machine."""

TierName = Literal["kubernetes", "runsc", "bubblewrap", "landlock"]


class ToolsSettings(GrpcServerSettings):
    """What may run, inside what, and where its files are."""

    address: ListenAddress = f"127.0.0.1:{GRPC_PORTS[TOOLS]}"
    allowed_peers: AllowedPeers = (GATEWAY, TRAINER)
    metrics_port: MetricsPort = METRICS_PORTS[TOOLS]
    ethics_public_keys: Annotated[
        tuple[Path, ...],
        Field(description="PEM files of ethics' current and next key; required, or nothing is cleared."),
    ] = ()
    signing_key_file: Annotated[
        Path | None,
        Field(description="PEM private key that signs measurements for gates; unset signs none."),
    ] = None
    spool_dir: Annotated[
        Path | None, Field(description="Where denials wait while audit is away; unset keeps none.")
    ] = None
    spool_key_file: Annotated[Path | None, Field(description="32-byte key that encrypts the spool.")] = None

    replica: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
            description="Begins the names of workspaces, runs and approvals, so that calls find their way back; one per replica.",
        ),
    ] = "local"
    state_dir: Annotated[
        Path, Field(description="Workspaces, runs and artifacts; made private, never shown to a sandbox.")
    ] = DEFAULT_STATE
    policy_file: Annotated[
        Path | None,
        Field(
            description="The rules: tools, commands, zones, approvals, limits; unset means the packaged ones."
        ),
    ] = None
    tiers: Annotated[
        tuple[TierName, ...],
        Field(min_length=1, description="Isolation tiers to try, the first that holds is used."),
    ] = ("kubernetes", "runsc", "bubblewrap", "landlock")
    allow_weak: Annotated[
        bool,
        Field(
            description="Let the Landlock tier run code, from which names of the host stay visible; the policy file may too."
        ),
    ] = False
    allow_host_directory: Annotated[
        bool,
        Field(
            description="Let workspaces show a host directory read-only, as private suites do; the policy file may too."
        ),
    ] = False
    run_as_uid: Annotated[
        int,
        Field(ge=1, lt=2**32 - 1, description="User that `kala up`, started as root, runs this service as."),
    ] = RUN_AS_UID
    protected_paths: Annotated[
        tuple[Path, ...],
        Field(description="No workspace shows a host directory that holds one of these or lies in one."),
    ] = ()
    max_runs: Annotated[
        int, Field(ge=1, le=256, description="Runs at a time; more get RESOURCE_EXHAUSTED.")
    ] = MAX_RUNS
    pool_slots: Annotated[
        int, Field(ge=0, le=64, description="Sandboxes kept ready per language; 0 starts every run cold.")
    ] = POOL_SLOTS
    scan_workers: Annotated[
        int,
        Field(
            ge=1, le=16, description="Processes that scan code, one call each; each may use 1 GiB and a core."
        ),
    ] = WORKERS
    semgrep: Annotated[
        Path | None,
        Field(
            description="semgrep's program, as `scripts/semgrep.sh` names it; unset, who asks for semgrep is told so."
        ),
    ] = None
    max_act_seconds: Annotated[float, Field(gt=0, le=900, description="Longest act, queue included.")] = (
        MAX_ACT_SECONDS
    )
    inference_address: Annotated[
        str | None, Field(description="Where inference listens; needed by GenerateCode only.")
    ] = None
    runtime_class: Annotated[
        str | None,
        Field(
            description="RuntimeClass of sandbox pods, e.g. `gvisor`; unset leaves the kubernetes tier out."
        ),
    ] = None
    sandbox_namespace: Annotated[str, Field(description="Namespace of sandbox pods.")] = "kala-sandboxes"
    sandbox_image: Annotated[
        str | None, Field(description="Image of sandbox pods, by digest; needed with runtime_class.")
    ] = None

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        if not self.state_dir.is_absolute():
            raise ValueError("state_dir must be an absolute path; a user without a home must be given one")
        if (self.runtime_class is None) != (self.sandbox_image is None):
            raise ValueError("runtime_class and sandbox_image go together")
        if (self.spool_dir is None) != (self.spool_key_file is None):
            raise ValueError("spool_dir and spool_key_file go together")
        return self
