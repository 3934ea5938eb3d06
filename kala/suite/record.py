"""What is running, as a file: `run/suite.json`, rewritten whole at each change and read by every command."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from kala.errors import DataLossError, FailedPreconditionError
from kala.suite.layout import StateLayout, write_private_file
from kala.suite.processes import ProcessId

RECORD_VERSION: Final = 1


class Phase(enum.Enum):
    """The life of a suite."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


class Condition(enum.Enum):
    """The life of one part."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    REFUSED = "refused"
    """It ended by its own decision (a bad setting, a changed law) and is not started again."""
    GAVE_UP = "gave-up"
    """It crashed too often."""
    STOPPED = "stopped"
    OFF = "off"
    """It cannot run on this machine; `problem` says why."""


@dataclass(frozen=True, slots=True)
class PartRecord:
    """One part: its process while it has one, its condition, how often it was started again, where it serves metrics.

    `problem` says in words why it is off or was given up.
    """

    process: ProcessId | None
    condition: Condition
    restarts: int = 0
    metrics_url: str | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class SuiteRecord:
    """The suite of one state directory."""

    phase: Phase
    supervisor: ProcessId
    gateway_url: str
    sockets: Path
    started_at: str
    """ISO 8601, UTC."""
    parts: Mapping[str, PartRecord] = field(default_factory=dict)
    problem: str | None = None
    """Why the suite failed, in words for the user; None while it has not."""
    notes: tuple[str, ...] = ()
    """What the user should know: another port than usual, a development constitution."""

    @property
    def pids(self) -> dict[str, int]:
        """The pids of the parts that have a process, by part."""
        return {name: part.process.pid for name, part in self.parts.items() if part.process is not None}

    def to_json(self) -> str:
        """The record as the file holds it."""
        return json.dumps(
            {
                "version": RECORD_VERSION,
                "phase": self.phase.value,
                "supervisor": _process_to_dict(self.supervisor),
                "gateway_url": self.gateway_url,
                "sockets": str(self.sockets),
                "started_at": self.started_at,
                "pids": self.pids,
                "parts": {
                    name: {
                        "process": _process_to_dict(part.process),
                        "condition": part.condition.value,
                        "restarts": part.restarts,
                        "metrics_url": part.metrics_url,
                        "problem": part.problem,
                    }
                    for name, part in self.parts.items()
                },
                "problem": self.problem,
                "notes": list(self.notes),
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote; DataLossError when it is anything else."""
        try:
            raw = json.loads(text)
            supervisor = _process_from_dict(raw["supervisor"])
            if raw["version"] != RECORD_VERSION or supervisor is None:
                raise DataLossError(
                    f"suite.json has version {raw['version']}, this release reads {RECORD_VERSION}"
                )
            return cls(
                phase=Phase(raw["phase"]),
                supervisor=supervisor,
                gateway_url=raw["gateway_url"],
                sockets=Path(raw["sockets"]),
                started_at=raw["started_at"],
                parts={
                    name: PartRecord(
                        _process_from_dict(part["process"]),
                        Condition(part["condition"]),
                        part["restarts"],
                        part["metrics_url"],
                        # A suite of an earlier release may still be running.
                        part.get("problem", ""),
                    )
                    for name, part in raw["parts"].items()
                },
                problem=raw["problem"],
                notes=tuple(raw["notes"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataLossError("suite.json is damaged; run `kala down`, then `kala up`") from error


def write_record(layout: StateLayout, record: SuiteRecord) -> None:
    """Replace the suite's record in one step."""
    write_private_file(layout.record_file, record.to_json().encode())


def read_record(layout: StateLayout) -> SuiteRecord | None:
    """The record of this state directory, running or not; None when no suite was ever started here."""
    try:
        return SuiteRecord.from_json(layout.record_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FailedPreconditionError(f"{layout.record_file} cannot be read: {error.strerror}") from error


def running_suite(layout: StateLayout) -> SuiteRecord | None:
    """The record of the suite that runs here now; None when none does."""
    record = read_record(layout)
    return record if record is not None and record.supervisor.is_alive() else None


def _process_to_dict(process: ProcessId | None) -> dict[str, int | str] | None:
    return None if process is None else {"pid": process.pid, "started": process.started}


def _process_from_dict(raw: dict[str, int | str] | None) -> ProcessId | None:
    return None if raw is None else ProcessId(int(raw["pid"]), str(raw["started"]))
