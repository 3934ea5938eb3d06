"""What a reader asks for: a filter from the wire as conditions, a span of time, and words for manifests and records."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from kala.audit.canonical import Json
from kala.audit.v1 import audit_pb2
from kala.errors import InvalidArgumentError
from services.audit.entries import time_text
from services.audit.reading.query import Condition
from services.audit.records import MAX_TEXT_CHARS, OUTCOME_NAMES

MAX_TYPES: Final = 32
# The years that a leaf can spell.
_LAST_SECOND: Final = 253_402_300_799
_EXACT: Final = ("actor", "model", "tool", "trace_id", "tenant")


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when, by the log's clock, in microseconds since 1970; None for an open end."""

    recorded_from: int | None = None
    recorded_until: int | None = None


def conditions_of(wanted: audit_pb2.EntryFilter) -> list[Condition]:
    """The conditions of a filter, its times left out; `InvalidArgumentError` names a wrong field."""
    if len(wanted.types) > MAX_TYPES:
        raise InvalidArgumentError("filter.types", f"at most {MAX_TYPES}")
    conditions = [Condition(column, (value,)) for column in _EXACT if (value := getattr(wanted, column))]
    if wanted.types:
        conditions.append(Condition("type", tuple(wanted.types)))
    if wanted.outcomes:
        conditions.append(Condition("outcome", tuple(_outcome(outcome) for outcome in wanted.outcomes)))
    if wanted.HasField("law"):
        conditions.append(Condition("law", (wanted.law,)))
    return conditions


def span_of(wanted: audit_pb2.EntryFilter) -> Span:
    """The span of time that a filter names; `InvalidArgumentError` for a time that no clock shows."""
    return Span(
        _microseconds("filter.from", getattr(wanted, "from")) if wanted.HasField("from") else None,
        _microseconds("filter.until", wanted.until) if wanted.HasField("until") else None,
    )


def timeless_conditions(wanted: audit_pb2.EntryFilter) -> list[Condition]:
    """The conditions of a request that says its span of time otherwise, or needs none."""
    if wanted.HasField("from") or wanted.HasField("until"):
        raise InvalidArgumentError("filter", "takes no times here")
    return conditions_of(wanted)


def described(wanted: audit_pb2.EntryFilter) -> dict[str, Json]:
    """The filter as an export's manifest spells it: only what is set."""
    value: dict[str, Json] = {column: text for column in _EXACT if (text := getattr(wanted, column))}
    if wanted.types:
        value["types"] = list[Json](sorted(wanted.types))
    if wanted.outcomes:
        value["outcomes"] = list[Json](sorted(_outcome(outcome) for outcome in wanted.outcomes))
    if wanted.HasField("law"):
        value["law"] = wanted.law
    span = span_of(wanted)
    if span.recorded_from is not None:
        value["from"] = time_text(span.recorded_from)
    if span.recorded_until is not None:
        value["until"] = time_text(span.recorded_until)
    return value


def facts_of(wanted: audit_pb2.EntryFilter) -> dict[str, str]:
    """The filter as attributes of the record that somebody read by it."""
    return {f"filter.{key}": _fact(value) for key, value in described(wanted).items()}


def _fact(value: Json) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    # What no attribute holds is named by its digest: the record must not fail for a long question.
    return text if len(text) <= MAX_TEXT_CHARS else f"sha256:{sha256(text.encode()).hexdigest()}"


def _outcome(outcome: int) -> str:
    if outcome not in OUTCOME_NAMES:
        raise InvalidArgumentError("filter.outcomes", "holds an outcome that does not exist")
    return OUTCOME_NAMES[outcome]


def _microseconds(field: str, time: Timestamp) -> int:
    if not 0 <= time.seconds <= _LAST_SECOND:
        raise InvalidArgumentError(field, "must be between 1970 and 9999")
    return time.seconds * 1_000_000 + time.nanos // 1_000
