"""The formats of exports and sinks: entries in, whole lines out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from kala.audit.export_manifest import JSONL
from services.audit.export.cef import cef_lines
from services.audit.export.ocsf import ocsf_lines
from services.audit.export.otlp import otlp_lines
from services.audit.storage.store import StoredEntry

Format = Callable[[Sequence[StoredEntry], str], list[bytes]]
"""Writes entries of the log of this origin as lines without their newlines: one per entry, but for OTLP."""


def jsonl_lines(entries: Sequence[StoredEntry], origin: str) -> list[bytes]:
    """Each leaf, verbatim: canonical JSON holds no newline."""
    del origin
    return [entry.leaf for entry in entries]


FORMATS: Final[Mapping[str, Format]] = {
    JSONL: jsonl_lines,
    "ocsf": ocsf_lines,
    "cef": cef_lines,
    "otlp": otlp_lines,
}
