"""Between the contract's messages and this service's own words: runs, limits, isolation, outcomes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import InvalidArgumentError
from kala.tools.v1 import execution_pb2 as pb
from services.tools.files.model import Artifact, Reference
from services.tools.limits import AskedLimits
from services.tools.runs import RunRecord
from services.tools.sandbox.model import Isolation, Limits, Output, Status, Stream, Strength, Tier, Usage

DIGEST_BYTES: Final = 32
NANOS: Final = 1_000_000_000

STATUSES: Final = {status: pb.RunStatus.Value(f"RUN_STATUS_{status.name}") for status in Status}
"""The names are the contract's: one that is missing fails at import."""

TIERS: Final = {tier: pb.IsolationTier.Value(f"ISOLATION_TIER_{tier.name}") for tier in Tier}
STRENGTHS: Final = {
    strength: pb.IsolationStrength.Value(f"ISOLATION_STRENGTH_{strength.name}") for strength in Strength
}
_STREAMS: Final = {Stream.STDOUT: pb.OUTPUT_STREAM_STDOUT, Stream.STDERR: pb.OUTPUT_STREAM_STDERR}


def duration(seconds: float) -> Duration:
    """Write a span of time."""
    message = Duration()
    message.FromNanoseconds(round(seconds * NANOS))
    return message


def timestamp(moment: float) -> Timestamp:
    """Write a moment in Unix seconds."""
    message = Timestamp()
    message.FromDatetime(datetime.fromtimestamp(moment, UTC))
    return message


def status_of(number: int) -> Status | None:
    """Read a status; None for UNSPECIFIED."""
    return next((status for status, value in STATUSES.items() if value == number), None)


def tier_of(number: int) -> Tier | None:
    """Read a tier; None for UNSPECIFIED."""
    return next((tier for tier, value in TIERS.items() if value == number), None)


def strength_of(number: int) -> Strength | None:
    """Read a strength; None for UNSPECIFIED."""
    return next((strength for strength, value in STRENGTHS.items() if value == number), None)


def asked_limits(message: pb.Limits, *, field: str = "limits") -> AskedLimits:
    """Read what a caller asks for; raises InvalidArgumentError for a span that is no span."""
    return AskedLimits(
        wall_seconds=_seconds(message, "wall_time", field),
        cpu_seconds=_seconds(message, "cpu_time", field),
        memory_bytes=_number(message, "memory_bytes"),
        processes=_number(message, "processes"),
        open_files=_number(message, "open_files"),
        disk_bytes=_number(message, "disk_bytes"),
        inodes=_number(message, "inodes"),
        file_bytes=_number(message, "file_bytes"),
        output_bytes=_number(message, "output_bytes"),
        artifacts=_number(message, "artifacts"),
        artifact_bytes=_number(message, "artifact_bytes"),
    )


def limits(found: Limits) -> pb.Limits:
    """Write all limits of a run."""
    return pb.Limits(
        wall_time=duration(found.wall_seconds),
        cpu_time=duration(found.cpu_seconds),
        memory_bytes=found.memory_bytes,
        processes=found.processes,
        open_files=found.open_files,
        disk_bytes=found.disk_bytes,
        inodes=found.inodes,
        file_bytes=found.file_bytes,
        output_bytes=found.output_bytes,
        artifacts=found.artifacts,
        artifact_bytes=found.artifact_bytes,
    )


def usage(found: Usage) -> pb.ResourceUsage:
    """Write what a run used; what the tier could not measure stays unset."""
    return pb.ResourceUsage(
        wall_time=duration(found.wall_seconds),
        cpu_time=None if found.cpu_seconds is None else duration(found.cpu_seconds),
        peak_memory_bytes=found.peak_memory_bytes,
        peak_processes=found.peak_processes,
        disk_bytes=found.disk_bytes,
        inodes=found.inodes,
        output_bytes=found.output_bytes,
    )


def isolation(found: Isolation | None) -> pb.Isolation | None:
    """Write where a run takes place."""
    if found is None:
        return None
    return pb.Isolation(
        tier=TIERS[found.tier],
        strength=STRENGTHS[found.strength],
        version=found.version,
        controls=found.controls[:64],
    )


def output(found: Output) -> pb.RunOutput:
    """Write a piece of output."""
    return pb.RunOutput(stream=_STREAMS[found.stream], data=found.data, offset=found.offset)


def artifact(found: Artifact) -> pb.Artifact:
    """Write an artifact."""
    return pb.Artifact(
        name=found.name,
        path=found.path,
        content=ContentReference(name=found.path, sha256=found.sha256, bytes=found.size),
        media_type=found.media_type,
    )


def run(found: RunRecord) -> pb.Run:
    """Write a run for lists."""
    return pb.Run(
        name=found.name,
        tenant=found.run.owner.tenant,
        owner=found.run.owner.principal,
        tool=found.run.tool,
        arguments_sha256=found.run.arguments_sha256,
        workspace=found.run.workspace,
        isolation=isolation(found.isolation),
        status=pb.RUN_STATUS_UNSPECIFIED if found.status is None else STATUSES[found.status],
        exit_code=found.exit_code,
        reason=found.reason,
        usage=usage(found.usage),
        decision_id=found.run.decision_id,
        artifacts=[artifact(each) for each in found.artifacts],
        started_at=timestamp(found.started_at),
        finished_at=None if found.finished_at is None else timestamp(found.finished_at),
    )


def references(found: Iterable[Reference]) -> list[ContentReference]:
    """Write the files that a run was cleared for."""
    return [ContentReference(name=each.path, sha256=each.sha256, bytes=each.size) for each in found]


def read_references(messages: Iterable[ContentReference], *, field: str, most: int) -> tuple[Reference, ...]:
    """Read the files of an action; raises InvalidArgumentError that names the one at fault."""
    found: list[Reference] = []
    seen: set[str] = set()
    for index, message in enumerate(messages):
        name = f"{field}[{index}]"
        if index >= most:
            raise InvalidArgumentError(field, f"must hold at most {most} files")
        if len(message.sha256) != DIGEST_BYTES:
            raise InvalidArgumentError(f"{name}.sha256", f"must have {DIGEST_BYTES} bytes")
        if message.name in seen:
            raise InvalidArgumentError(f"{name}.name", "is there twice")
        seen.add(message.name)
        found.append(Reference(message.name, message.sha256, message.bytes))
    return tuple(found)


def span_of(message: Duration, *, field: str) -> float:
    """Read a span of time above zero, in seconds."""
    seconds = message.seconds + message.nanos / NANOS
    if not 0 <= message.nanos < NANOS or seconds <= 0:
        raise InvalidArgumentError(field, "must be a span above zero")
    return seconds


def _seconds(message: pb.Limits, name: str, field: str) -> float | None:
    if not message.HasField(name):  # type: ignore[arg-type]  # one of the message's own names
        return None
    return span_of(getattr(message, name), field=f"{field}.{name}")


def _number(message: pb.Limits, name: str) -> int | None:
    return getattr(message, name) if message.HasField(name) else None  # type: ignore[arg-type]  # as above
