"""Which limits a run gets: what the caller asked for, the policy's defaults elsewhere, never above its maximum.  Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Final

from kala.errors import InvalidArgumentError
from services.tools.sandbox.model import Limits

LEAST: Final = Limits(
    wall_seconds=0.01,
    cpu_seconds=0.01,
    memory_bytes=16 * 1024 * 1024,
    processes=1,
    open_files=8,
    disk_bytes=0,
    inodes=0,
    file_bytes=0,
    output_bytes=0,
    artifacts=0,
    artifact_bytes=0,
)
"""Below these no interpreter starts, so the caller is told instead of getting a run that cannot succeed."""

_CONTRACT_NAMES: Final = {"wall_seconds": "wall_time", "cpu_seconds": "cpu_time"}
_UNITS: Final = {
    "wall_seconds": " s",
    "cpu_seconds": " s",
    "memory_bytes": " bytes",
    "disk_bytes": " bytes",
    "file_bytes": " bytes",
    "output_bytes": " bytes",
    "artifact_bytes": " bytes",
}


@dataclass(frozen=True, slots=True)
class AskedLimits:
    """What a caller asked for; None where it said nothing."""

    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    memory_bytes: int | None = None
    processes: int | None = None
    open_files: int | None = None
    disk_bytes: int | None = None
    inodes: int | None = None
    file_bytes: int | None = None
    output_bytes: int | None = None
    artifacts: int | None = None
    artifact_bytes: int | None = None


def merged(asked: AskedLimits, *, defaults: Limits, maximum: Limits, field: str = "limits") -> Limits:
    """Give every limit of a run; raises InvalidArgumentError that names the field and the bound it crosses."""
    chosen: dict[str, float] = {}
    for each in fields(AskedLimits):
        value = getattr(asked, each.name)
        if value is None:
            continue
        name = f"{field}.{_CONTRACT_NAMES.get(each.name, each.name)}"
        most, least, unit = getattr(maximum, each.name), getattr(LEAST, each.name), _UNITS.get(each.name, "")
        if value > most:
            raise InvalidArgumentError(
                name,
                f"is {value:g}{unit}, above the policy's maximum of {most:g}{unit}; ask for less or leave it unset",
            )
        if value < least:
            raise InvalidArgumentError(name, f"is {value:g}{unit}; must be at least {least:g}{unit}")
        chosen[each.name] = value
    return replace(defaults, **chosen)  # type: ignore[arg-type]  # the names are the fields', each with its own type
