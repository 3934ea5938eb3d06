"""The settings of the trainer; the only place of it that reads the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from services.common.peers import GATEWAY, GRPC_PORTS, METRICS_PORTS, TRAINER
from services.common.settings import AllowedPeers, GrpcServerSettings, ListenAddress, MetricsPort, aliases

SECTION: Final = TRAINER

DEFAULT_STATE: Final = Path(os.path.expanduser("~/.local/state/kala/trainer"))  # noqa: PTH111 - may know no home

DAY_SECONDS: Final = 86_400


class TrainerSettings(GrpcServerSettings):
    """What is trained from, where it runs, how much at a time."""

    address: ListenAddress = f"127.0.0.1:{GRPC_PORTS[TRAINER]}"
    allowed_peers: AllowedPeers = (GATEWAY,)
    metrics_port: MetricsPort = METRICS_PORTS[TRAINER]
    ethics_public_keys: Annotated[
        tuple[Path, ...],
        Field(description="PEM files of ethics' current and next key; required, or nothing is cleared."),
    ] = ()
    signing_key_file: Annotated[
        Path | None,
        Field(description="PEM private key that signs adapters, gates and revocations; required."),
    ] = None
    trainer_public_keys: Annotated[
        tuple[Path, ...],
        Field(description="PEM files of this trainer's earlier keys, whose adapters may still be promoted."),
    ] = ()
    tools_public_keys: Annotated[
        tuple[Path, ...],
        Field(description="PEM files of tools' keys, which sign what gates count of generated code."),
    ] = ()
    audit_vkey_file: Annotated[
        Path | None,
        Field(description="The log's public key, one vkey line each; a gate must be in this log."),
    ] = None
    spool_dir: Annotated[
        Path | None, Field(description="Where denials wait while audit is away; unset keeps none.")
    ] = None
    spool_key_file: Annotated[Path | None, Field(description="32-byte key that encrypts the spool.")] = None

    state_dir: Annotated[
        Path,
        Field(description="Work, datasets, adapters and exports; made private. Ray workers must see it too."),
    ] = DEFAULT_STATE
    database: Annotated[
        str | None,
        Field(description="Path of an SQLite file, or an SQLAlchemy URL; unset means a file in state_dir."),
    ] = None
    bases_dir: Annotated[
        Path | None, Field(description="Base models, `<dir>/<name>/…`; unset offers the embedded one only.")
    ] = None
    embedded_dir: Annotated[
        Path | None, Field(description="The embedded model `kala-embedded`; unset offers it not.")
    ] = None
    data_dir: Annotated[
        Path | None, Field(description="Files that datasets may name, relative to it; unset allows none.")
    ] = None
    profiles_dir: Annotated[
        Path | None, Field(description="Gate profiles of the operator, beside the packaged ones.")
    ] = None
    suites_dir: Annotated[
        Path | None,
        Field(description="Evaluation files that are not shipped, e.g. HumanEval and GSM8K, by suite name."),
    ] = None
    remote_data: Annotated[
        tuple[str, ...],
        Field(
            description="Schemes of remote data that datasets may name, e.g. `s3`, `gs`, `hub`; empty allows none."
        ),
    ] = ()
    hub_url: Annotated[
        str, Field(description="The dataset hub, asked only where `remote_data` names `hub`.")
    ] = "https://huggingface.co"
    publish_url: Annotated[
        str | None, Field(description="Where promoted adapters are copied to, e.g. `s3://…`; unset: nowhere.")
    ] = None
    revocations_file: Annotated[
        Path | None, Field(description="Where the signed list of revocations is written for inference.")
    ] = None
    accept_demo_profiles: Annotated[
        bool, Field(description="Let a demonstration's gate profile promote; only `kala up` sets it.")
    ] = False

    ethics_address: Annotated[
        str | None, Field(description="The ethics service: verdicts on drafts and for gates.")
    ] = None
    tools_address: Annotated[
        str | None, Field(description="The tools service: tests and scans of generated code for gates.")
    ] = None

    max_jobs: Annotated[
        int, Field(ge=1, le=64, description="Training jobs at a time on this machine; more wait.")
    ] = 1
    max_tasks: Annotated[
        int, Field(ge=1, le=64, description="Builds, evaluations and exports at a time; more wait.")
    ] = 2
    max_queued: Annotated[
        int, Field(ge=0, le=10_000, description="Pieces of work that may wait; more get RESOURCE_EXHAUSTED.")
    ] = 32
    threads: Annotated[
        int, Field(ge=0, le=1024, description="CPU threads of a local process; 0 means one per core.")
    ] = 0
    memory_bytes: Annotated[
        int, Field(ge=0, description="Most data memory of a local process; 0 sets no bound.")
    ] = 0
    max_seconds: Annotated[
        float,
        Field(
            gt=0, le=14 * DAY_SECONDS, description="Longest time of any piece of work, evaluation included."
        ),
    ] = 14 * DAY_SECONDS
    max_restarts: Annotated[
        int,
        Field(ge=0, le=100, description="Times that a job goes on from its last checkpoint after a crash."),
    ] = 3

    ray_address: Annotated[
        str | None,
        aliases("RAY_ADDRESS"),
        Field(
            description="Ray's dashboard, e.g. `http://ray-head:8265`; unset starts a local Ray on demand."
        ),
    ] = None
    ray_token_file: Annotated[
        Path | None, Field(description="File with the token of Ray's API; needed with ray_address.")
    ] = None
    mlflow_uri: Annotated[
        str | None, Field(description="MLflow's tracking server; unset writes below the job's folder.")
    ] = None

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        if not self.state_dir.is_absolute():
            raise ValueError("state_dir must be an absolute path; a user without a home must be given one")
        if (self.spool_dir is None) != (self.spool_key_file is None):
            raise ValueError("spool_dir and spool_key_file go together")
        if self.ray_address is not None and not self.ray_address.startswith(("http://", "https://")):
            raise ValueError(
                "ray_address must be the URL of Ray's dashboard, e.g. http://ray-head:8265; unset it for a local Ray"
            )
        return self
