"""Signed counts for evaluation gates: programs that passed their tests, code with findings; and their sums."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kala.common.v1.measurement_pb2 import (
    MEASURER_TOOLS,
    Measurement,
    MeasurementContext,
    MetricCount,
    SignedMeasurement,
)
from kala.errors import FailedPreconditionError, InvalidArgumentError, VerificationError
from services.common.keys import key_id
from services.common.measurements import (
    SCHEMA,
    MeasurementSigner,
    evidence_digest,
    require_context,
    sum_measurements,
    verify_measurement,
)
from services.tools.sandbox.model import Isolation
from services.tools.wire import timestamp

TESTS_PASSED: Final = "tests_passed"
VULNERABLE: Final = "vulnerable"


class Measuring:
    """Signs what this service counted, with its own key; without a key it signs nothing."""

    def __init__(
        self,
        private_key: Ed25519PrivateKey | None,
        *,
        policy_digest: bytes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._signer = None if private_key is None else MeasurementSigner(MEASURER_TOOLS, private_key)
        self._keys = (
            {} if private_key is None else {key_id(private_key.public_key()): private_key.public_key()}
        )
        self._policy_digest = policy_digest
        self._clock = clock

    @property
    def now(self) -> float:
        """The moment, for the beginning of a count."""
        return self._clock()

    def require(self, context: MeasurementContext, items: int) -> None:
        """Raise before anything is counted: InvalidArgumentError, or FailedPreconditionError without a key."""
        if self._signer is None:
            raise FailedPreconditionError(
                "measurements are signed, and this service has no key: set KALA_TOOLS_SIGNING_KEY_FILE"
            )
        require_context(context, items)

    def count(
        self,
        context: MeasurementContext,
        metric: str,
        verdicts: Sequence[tuple[bytes, bytes, bool]],
        *,
        instrument: bytes,
        since: float,
    ) -> SignedMeasurement:
        """Sign how many of the items hold; each is its serialised input, its serialised verdict, and whether it holds."""
        self.require(context, len(verdicts))
        hits = sum(holds for _, _, holds in verdicts)
        return self._signed(
            Measurement(
                schema=SCHEMA,
                context=context,
                items=len(verdicts),
                counts=[MetricCount(metric=metric, hits=hits, total=len(verdicts))],
                parts=1,
                evidence_digest=evidence_digest((given, verdict) for given, verdict, _ in verdicts),
                instrument_digest=hashlib.sha256(self._policy_digest + instrument).digest(),
                started_at=timestamp(since),
                finished_at=timestamp(self._clock()),
            )
        )

    def sum(self, parts: Sequence[SignedMeasurement]) -> SignedMeasurement:
        """Add up measurements of this service's own; raises InvalidArgumentError that names the first bad part."""
        try:
            verified = [
                verify_measurement(f"parts[{index}]", part, {MEASURER_TOOLS: self._keys})
                for index, part in enumerate(parts)
            ]
        except VerificationError as error:
            raise InvalidArgumentError("", error.message) from error
        return self._signed(sum_measurements(verified))

    def _signed(self, measurement: Measurement) -> SignedMeasurement:
        if self._signer is None:
            raise FailedPreconditionError(
                "measurements are signed, and this service has no key: set KALA_TOOLS_SIGNING_KEY_FILE"
            )
        return self._signer.sign(measurement)


def instrument_of(isolation: Isolation | None) -> bytes:
    """What a run was measured with, besides the policy: its isolation."""
    said: Mapping[str, str] = (
        {} if isolation is None else {"tier": isolation.tier.value, "version": isolation.version}
    )
    return hashlib.sha256(repr(sorted(said.items())).encode()).digest()
