"""Signed counts for evaluation gates: on which texts of a suite the laws came down; and their sums."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.timestamp_pb2 import Timestamp

from kala.common.v1 import decision_pb2
from kala.common.v1.measurement_pb2 import MEASURER_ETHICS, Measurement, MetricCount, SignedMeasurement
from kala.errors import InvalidArgumentError, UnavailableError, VerificationError
from kala.ethics.v1 import ethics_pb2 as pb
from services.common.keys import key_id
from services.common.measurements import (
    NAME,
    SCHEMA,
    MeasurementSigner,
    evidence_digest,
    require_context,
    sum_measurements,
    verify_measurement,
)
from services.ethics.judgement import failed_line

METRICS: Final[Mapping[int, str]] = {
    pb.STAGE_UNSPECIFIED: "request_harmful",
    pb.STAGE_REQUEST: "request_harmful",
    pb.STAGE_OUTPUT: "output_harmful",
    pb.STAGE_TOOL_RESULT: "tool_result_harmful",
}
"""What is counted at each stage."""

HARMFUL: Final = frozenset({decision_pb2.OUTCOME_REFUSE, decision_pb2.OUTCOME_REDIRECT})
"""Outcomes that say a text is harmful; a question back says only that it is unclear."""


class Measuring:
    """Signs what ethics counted, with the key that signs its clearances."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._signer = MeasurementSigner(MEASURER_ETHICS, private_key)
        public = private_key.public_key()
        self._keys = {MEASURER_ETHICS: {key_id(public): public}}

    def require(self, request: pb.ScoreRequest) -> None:
        """Raise InvalidArgumentError before anything is judged."""
        require_context(request.measurement, 1)
        if request.slice and not NAME.fullmatch(request.slice):
            raise InvalidArgumentError("slice", "must be 1 to 64 characters of [a-z0-9_]")
        if request.stage not in METRICS:
            raise InvalidArgumentError("stage", "is unknown")

    def count(
        self, request: pb.ScoreRequest, decision: decision_pb2.Decision, *, began_at: Timestamp
    ) -> SignedMeasurement:
        """Sign one verdict; UnavailableError when a judge failed, for a broken judge measures nothing."""
        broken = [name for name in decision.judges if failed_line(name) in decision.path]
        if broken or not decision.judges:
            raise UnavailableError(
                f"nothing was measured: {', '.join(broken) or 'every judge'} failed; ask again",
                reason="JUDGE_FAILED",
            )
        metric, hits = METRICS[request.stage], int(decision.outcome in HARMFUL)
        slices = sorted({"", request.slice})
        verdict = decision.SerializeToString(deterministic=True)
        return self._signer.sign(
            Measurement(
                schema=SCHEMA,
                context=request.measurement,
                items=1,
                counts=[MetricCount(metric=metric, slice=name, hits=hits, total=1) for name in slices],
                parts=1,
                evidence_digest=evidence_digest([(request.SerializeToString(deterministic=True), verdict)]),
                constitution_digest=decision.constitution_digest,
                instrument_digest=instrument_of(decision),
                started_at=began_at,
                finished_at=decision.decided_at,
            )
        )

    def sum(self, parts: Sequence[SignedMeasurement]) -> SignedMeasurement:
        """Add up measurements that were signed here; InvalidArgumentError names the first bad part."""
        try:
            verified = [
                verify_measurement(f"parts[{index}]", part, self._keys) for index, part in enumerate(parts)
            ]
        except VerificationError as error:
            raise InvalidArgumentError("", error.message) from error
        return self._signer.sign(sum_measurements(verified))


def instrument_of(decision: decision_pb2.Decision) -> bytes:
    """What measured: the judges that were asked, by the constitution that holds their rules and weights."""
    return hashlib.sha256(
        b"\0".join([decision.constitution_digest, *(name.encode() for name in decision.judges)])
    ).digest()
