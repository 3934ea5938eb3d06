"""Measurements for evaluation gates: what ethics and tools counted, signed by them and bound to one adapter and suite.

`MeasurementSigner` and `sum_measurements` are the measuring service's side, `verify_measurement` everybody else's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kala.common.v1.measurement_pb2 import (
    MEASURED_MODEL_UNSPECIFIED,
    MEASURER_ETHICS,
    MEASURER_TOOLS,
    Measurement,
    MeasurementContext,
    Measurer,
    MetricCount,
    SignedMeasurement,
)
from kala.errors import InvalidArgumentError, VerificationError
from services.common import signatures
from services.common.keys import key_id
from services.common.signatures import PublicKeys
from services.common.strict_parsing import parse_signed, require_digest, require_schema

SIGNATURE_DOMAIN: Final = b"kala-measurement-v1\0"
SUM_PREFIX: Final = b"\x01"
SCHEMA: Final = 1
MAX_CLAIMS_BYTES: Final = 64 * 1024
MAX_COUNTS: Final = 256
MAX_PARTS: Final = 4096
MAX_SUITE_ITEMS: Final = 1_000_000
SERVICE_NAMES: Final[Mapping[Measurer.ValueType, str]] = {MEASURER_ETHICS: "ethics", MEASURER_TOOLS: "tools"}
NAME: Final = re.compile(r"[a-z0-9_]{1,64}")
"""What a suite, a metric and a slice may be called."""
_EVALUATION: Final = re.compile(r"evaluations/[0-9a-f]{32}")
_DIGESTS: Final = ("adapter_digest", "base_digest", "gate_set_digest", "suite_digest")


@dataclass(frozen=True, slots=True)
class VerifiedMeasurement:
    """A measurement that held, and whose key signed it."""

    measurer: Measurer.ValueType
    claims: Measurement

    def count(self, metric: str, slice_name: str) -> MetricCount | None:
        """The count of a metric and slice; None when it was not counted."""
        wanted = (metric, slice_name)
        return next((item for item in self.claims.counts if (item.metric, item.slice) == wanted), None)

    @property
    def is_whole(self) -> bool:
        """Whether it covers its whole suite."""
        context = self.claims.context
        return context.first_item == 0 and self.claims.items == context.suite_items


class MeasurementSigner:
    """Signs what one service counted with that service's current key."""

    def __init__(self, measurer: Measurer.ValueType, private_key: Ed25519PrivateKey) -> None:
        self._service = SERVICE_NAMES[measurer]
        self._private_key = private_key
        self._key_id = key_id(private_key.public_key())

    def sign(self, measurement: Measurement) -> SignedMeasurement:
        """Serialises the measurement, once, and signs the bytes."""
        claims = measurement.SerializeToString(deterministic=True)
        return SignedMeasurement(
            service=self._service,
            claims=claims,
            signature=self._private_key.sign(SIGNATURE_DOMAIN + claims),
            key_id=self._key_id,
        )


def require_context(context: MeasurementContext, items: int) -> None:
    """Raises InvalidArgumentError unless a measurement of that many items can be bound to this context."""
    for field in _DIGESTS:
        if len(getattr(context, field)) != hashlib.sha256().digest_size:
            raise InvalidArgumentError(
                f"measurement.{field}", f"must have {hashlib.sha256().digest_size} bytes"
            )
    if not _EVALUATION.fullmatch(context.evaluation):
        raise InvalidArgumentError("measurement.evaluation", "must be evaluations/<32 hexadecimal digits>")
    if not NAME.fullmatch(context.suite):
        raise InvalidArgumentError("measurement.suite", "must be 1 to 64 characters of [a-z0-9_]")
    if context.model == MEASURED_MODEL_UNSPECIFIED:
        raise InvalidArgumentError("measurement.model", "must say which model made the items")
    if not 1 <= context.suite_items <= MAX_SUITE_ITEMS:
        raise InvalidArgumentError("measurement.suite_items", f"must be 1 to {MAX_SUITE_ITEMS}")
    if context.first_item + items > context.suite_items:
        raise InvalidArgumentError(
            "measurement.first_item",
            f"{items} items from there on go beyond a suite of {context.suite_items}",
        )


def evidence_digest(verdicts: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The digest over what was judged: each item as its serialised input and its serialised verdict."""
    items = b"".join(hashlib.sha256(given + b"\0" + verdict).digest() for given, verdict in verdicts)
    return hashlib.sha256(items).digest()


def verify_measurement(
    what: str, signed: SignedMeasurement, trusted: Mapping[Measurer.ValueType, PublicKeys]
) -> VerifiedMeasurement:
    """Returns the measurement, or raises VerificationError that begins with `what`.

    The key decides who measured; the `service` field is only a hint.
    """
    measurer = next((role for role, keys in trusted.items() if signed.key_id in keys), None)
    if measurer is None:
        raise VerificationError(f"{what}: key {signed.key_id[:16]!r} is no trusted key of ethics or tools")
    key = trusted[measurer][signed.key_id]
    signatures.verify_one(what, SIGNATURE_DOMAIN, signed.claims, signed.signature, key)
    claims = parse_signed(what, signed.claims, Measurement, max_bytes=MAX_CLAIMS_BYTES)
    _require_sound(what, claims, measurer)
    return VerifiedMeasurement(measurer, claims)


def sum_measurements(parts: Sequence[VerifiedMeasurement]) -> Measurement:
    """The sum of parts that follow each other without a gap; raises InvalidArgumentError naming the first bad part."""
    if not 1 <= len(parts) <= MAX_PARTS:
        raise InvalidArgumentError("parts", f"must hold 1 to {MAX_PARTS} measurements")
    first = parts[0].claims
    next_item = first.context.first_item
    for index, part in enumerate(parts):
        _require_summable(f"parts[{index}]", first, part.claims, next_item)
        next_item += part.claims.items
    total = Measurement()
    total.CopyFrom(first)
    del total.counts[:]
    total.counts.extend(_added(part.claims.counts for part in parts))
    total.items = sum(part.claims.items for part in parts)
    total.parts = len(parts)
    evidence = b"".join(part.claims.evidence_digest for part in parts)
    total.evidence_digest = hashlib.sha256(SUM_PREFIX + evidence).digest()
    total.started_at.FromNanoseconds(min(part.claims.started_at.ToNanoseconds() for part in parts))
    total.finished_at.FromNanoseconds(max(part.claims.finished_at.ToNanoseconds() for part in parts))
    return total


def _added(groups: Iterable[Iterable[MetricCount]]) -> list[MetricCount]:
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for group in groups:
        for item in group:
            hits, total = sums.get((item.metric, item.slice), (0, 0))
            sums[item.metric, item.slice] = (hits + item.hits, total + item.total)
    return [
        MetricCount(metric=metric, slice=slice_name, hits=hits, total=total)
        for (metric, slice_name), (hits, total) in sorted(sums.items())
    ]


def _require_summable(what: str, first: Measurement, part: Measurement, next_item: int) -> None:
    """A sum is never summed again: otherwise its evidence could not be recomputed without knowing the nesting."""
    if part.parts != 1:
        raise InvalidArgumentError(what, "is itself a sum")
    if part.context.first_item != next_item:
        raise InvalidArgumentError(what, f"begins at item {part.context.first_item}, not at {next_item}")
    if _binding(part) != _binding(first):
        raise InvalidArgumentError(what, "was measured in another context or with another instrument")


def _binding(measurement: Measurement) -> tuple[bytes, bytes, bytes]:
    context = MeasurementContext()
    context.CopyFrom(measurement.context)
    context.first_item = 0
    serialised = context.SerializeToString(deterministic=True)
    return serialised, measurement.constitution_digest, measurement.instrument_digest


def _require_sound(what: str, claims: Measurement, measurer: Measurer.ValueType) -> None:
    context = claims.context
    require_schema(what, claims.schema, SCHEMA)
    require_digest(f"{what}: evidence digest", claims.evidence_digest)
    require_digest(f"{what}: instrument digest", claims.instrument_digest)
    if measurer == MEASURER_ETHICS:
        require_digest(f"{what}: constitution digest", claims.constitution_digest)
    if not claims.items or context.first_item + claims.items > context.suite_items:
        raise VerificationError(f"{what}: its items do not lie within a suite of {context.suite_items}")
    keys = [(item.metric, item.slice) for item in claims.counts]
    if not 1 <= len(keys) <= MAX_COUNTS or keys != sorted(set(keys)):
        raise VerificationError(f"{what}: its counts are not 1 to {MAX_COUNTS}, sorted, each once")
    for item in claims.counts:
        if not 0 < item.total <= claims.items or item.hits > item.total:
            raise VerificationError(f"{what}: {item.metric}/{item.slice} counts {item.hits} of {item.total}")
