"""The settings of the ethics service; the only place of it that reads the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from kala.ethics.constitution import Trust
from services.common.peers import (
    CLI,
    CONSOLE,
    ETHICS,
    GATEWAY,
    GRPC_PORTS,
    INFERENCE,
    METRICS_PORTS,
    TOOLS,
    TRAINER,
)
from services.common.settings import AllowedPeers, GrpcServerSettings, ListenAddress, MetricsPort
from services.ethics.guard.formats import PromptKind
from services.ethics.guard.judge import CONCURRENCY, DEADLINE_SECONDS

SECTION: Final = ETHICS

REVERIFY_SECONDS: Final = 300.0
"""A change on disk is noticed within five minutes, at the cost of hashing the constitution on a thread: 25 MB with weights."""

UNNAMED_MODELS: Final = frozenset({"", "auto", "local-model"})
"""Names by which inference takes any model."""

PACKAGED_CONSTITUTION: Final = Path(__file__).parent / "constitution"
REPOSITORY_CONSTITUTION: Final = Path(__file__).parents[2] / "constitution"


def default_constitution_dir() -> Path:
    """The constitution inside the installed package, or else the one at the root of the repository."""
    return PACKAGED_CONSTITUTION if PACKAGED_CONSTITUTION.is_dir() else REPOSITORY_CONSTITUTION


class EthicsSettings(GrpcServerSettings):
    """Which constitution is in force, whose signature on it counts, and with which key clearances are signed."""

    address: ListenAddress = f"127.0.0.1:{GRPC_PORTS[ETHICS]}"
    allowed_peers: AllowedPeers = (GATEWAY, CONSOLE, INFERENCE, TOOLS, TRAINER, CLI)
    metrics_port: MetricsPort = METRICS_PORTS[ETHICS]
    constitution_dir: Annotated[
        Path | None, Field(description="Directory of the signed constitution; unset means the packaged one.")
    ] = None
    trust: Annotated[
        Literal["pinned", "development"],
        Field(
            description="`pinned` trusts trusted_key_files; `development` only the published development key."
        ),
    ] = "pinned"
    trusted_key_files: Annotated[
        tuple[Path, ...],
        Field(description="PEM public keys that may sign the constitution; outside its directory."),
    ] = ()
    trusted_key_threshold: Annotated[
        int | None,
        Field(
            ge=1,
            description="How many different trusted keys must have signed; unset means a majority of them.",
        ),
    ] = None
    archive_dir: Annotated[
        Path | None,
        Field(
            description="Directory of earlier signed versions, one folder each, for ReplayDecision; unset keeps none."
        ),
    ] = None
    reverify_seconds: Annotated[
        float, Field(gt=0, description="How often the constitution on disk is verified again.")
    ] = REVERIFY_SECONDS
    signing_key_file: Annotated[
        Path | None, Field(description="PEM private key that signs clearances; required.")
    ] = None
    next_public_key_file: Annotated[
        Path | None, Field(description="PEM public key announced for the next rotation.")
    ] = None
    unjudged_parts: Annotated[
        Literal["refuse", "allow"],
        Field(description="What happens to images and audio, which no judge of this release can read."),
    ] = "refuse"
    inference_address: Annotated[
        str | None, Field(description="Where inference listens; needed with a guard model only.")
    ] = None
    guard_model: Annotated[
        str | None,
        Field(
            description="Model asked about what the judges leave open, e.g. `lmstudio/llama-guard-3-8b`; unset asks none."
        ),
    ] = None
    guard_format: Annotated[
        str | None,
        Field(description="How it is asked: the name of a file in the constitution's `guards/`."),
    ] = None
    guard_prompt: Annotated[
        PromptKind | None,
        Field(
            description="Who writes its prompt: `server`, by the model's own chat template, or `whole`, by KALA; unset means as the format prefers."
        ),
    ] = None
    guard_deadline_seconds: Annotated[
        float, Field(gt=0, le=60, description="Longest wait for its verdicts in one judgement.")
    ] = DEADLINE_SECONDS
    guard_concurrency: Annotated[
        int, Field(ge=1, le=64, description="Prompts put to it at once; more wait, within the deadline.")
    ] = CONCURRENCY
    spool_dir: Annotated[
        Path | None, Field(description="Where records wait while audit is away; unset keeps none.")
    ] = None
    spool_key_file: Annotated[Path | None, Field(description="32-byte key that encrypts the spool.")] = None

    @property
    def constitution(self) -> Path:
        """The directory to load the constitution from."""
        return self.constitution_dir or default_constitution_dir()

    @property
    def constitution_trust(self) -> Trust:
        """Whose signatures count, and how many it takes."""
        if self.trust == "development":
            return Trust.development()
        return Trust.pinned(*self.trusted_key_files, threshold=self.trusted_key_threshold)

    @model_validator(mode="after")
    def _check_guard(self) -> Self:
        if self.guard_model is None:
            if self.guard_format is not None or self.guard_prompt is not None:
                raise ValueError("guard_format and guard_prompt are for a guard_model")
            return self
        if self.guard_model in UNNAMED_MODELS:
            raise ValueError("guard_model must name one model: whatever happens to be loaded is no judge")
        if self.guard_format is None or self.inference_address is None:
            raise ValueError("guard_model needs guard_format and inference_address")
        return self

    @model_validator(mode="after")
    def _check_trust(self) -> Self:
        if self.trust == "development" and self.trusted_key_files:
            raise ValueError("trusted_key_files are for trust = pinned; development trusts no other key")
        if self.trust == "development" and self.trusted_key_threshold is not None:
            raise ValueError("trusted_key_threshold is for trust = pinned; development trusts one key")
        if (self.trusted_key_threshold or 0) > len(self.trusted_key_files):
            raise ValueError(
                f"trusted_key_threshold must not be more than the {len(self.trusted_key_files)} trusted_key_files"
            )
        if self.archive_dir is not None and any(
            path.resolve().is_relative_to(self.archive_dir.resolve()) for path in self.trusted_key_files
        ):
            raise ValueError("trusted_key_files must not lie in the archive_dir that they protect")
        if (self.spool_dir is None) != (self.spool_key_file is None):
            raise ValueError("spool_dir and spool_key_file go together")
        return self
