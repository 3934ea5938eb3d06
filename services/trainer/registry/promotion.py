"""Puts a passed gate into an adapter's manifest, after holding the whole adapter against what inference will ask."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.timestamp_pb2 import Timestamp

from kala.common.v1.adapter_pb2 import AdapterDescription, AdapterManifest, SignedAdapterManifest
from kala.common.v1.gate_pb2 import GATE_OUTCOME_PASSED, GateEvidence, GateOutcome, GateResult
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import FailedPreconditionError, VerificationError
from kala.trainer.v1 import registry_pb2
from services.common.adapter_manifest import (
    MAX_GATES,
    SCHEMA,
    AdapterTrust,
    ServingPolicy,
    adapter_digest,
    sign_manifest,
    verify_adapter,
    verify_candidate,
)
from services.common.gate_profile import Profile
from services.common.gates import GateSubject, GateTrust, verify_gate
from services.trainer.registry.shelf import Folder

EVALUATION_FAILED: Final = "GATE_NOT_PASSED"
OUTDATED: Final = "GATE_OUTDATED"
NOT_VERIFIED: Final = "ADAPTER_NOT_VERIFIED"


@dataclass(frozen=True, slots=True)
class Signing:
    """How this trainer signs: its key, its name as peers see it."""

    private_key: Ed25519PrivateKey
    issuer: str

    def sign(
        self, description: bytes, gates: Sequence[GateEvidence], signed_at: Timestamp
    ) -> SignedAdapterManifest:
        """A signed manifest of exactly these bytes of a description."""
        manifest = AdapterManifest(
            schema=SCHEMA, adapter=description, gates=gates, issuer=self.issuer, signed_at=signed_at
        )
        return sign_manifest(manifest, self.private_key)


@dataclass(frozen=True, slots=True)
class GateRules:
    """What a gate must be for a promotion here: by whose keys, by which profiles, and whether a demonstration's count."""

    trust: AdapterTrust
    profiles: Mapping[bytes, Profile]
    demo_allowed: bool = False


def sign_candidate(
    description: AdapterDescription, name: str, signing: Signing, signed_at: Timestamp
) -> SignedAdapterManifest:
    """The first manifest of an adapter: named, signed, without a gate. No inference loads it."""
    named = AdapterDescription()
    named.CopyFrom(description)
    named.name = name
    return signing.sign(named.SerializeToString(deterministic=True), (), signed_at)


def require_candidate(
    signed: SignedAdapterManifest, folder: Folder, *, rules: GateRules, base_digest: bytes
) -> None:
    """Holds what lies in a folder against its manifest, every byte of it; raises VerificationError."""
    verify_candidate(
        signed, folder.names(), folder.read, trusted=rules.trust.trainer, base_digest=base_digest
    )


def require_passed(
    evaluation: registry_pb2.Evaluation,
    reference: ContentReference,
    *,
    adapter: registry_pb2.Adapter,
    constitution_digest: bytes,
) -> GateResult:
    """The result of an evaluation that was named by digest, or FailedPreconditionError saying why it is no ground to promote.

    Whether its numbers, measurements and log entry hold is asked by `promote`.
    """
    if evaluation.outcome != GATE_OUTCOME_PASSED:
        outcome = GateOutcome.Name(evaluation.outcome).removeprefix("GATE_OUTCOME_")
        raise FailedPreconditionError(
            f"{evaluation.name} came out as {outcome}: {adapter.name} may not serve; train again, or evaluate again if "
            "the evaluation itself broke",
            reason=EVALUATION_FAILED,
        )
    data = evaluation.evidence.result
    if hashlib.sha256(data).digest() != reference.sha256 or len(data) != reference.bytes:
        raise FailedPreconditionError(
            f"{evaluation.name} has another result than the one that was cleared", reason=EVALUATION_FAILED
        )
    result = GateResult.FromString(data)
    if result.adapter_digest != adapter.adapter_digest:
        raise FailedPreconditionError(
            f"{evaluation.name} is not about {adapter.name}", reason=EVALUATION_FAILED
        )
    if result.constitution_digest != constitution_digest:
        raise FailedPreconditionError(
            f"{evaluation.name} was passed under laws that are no longer in force; evaluate {adapter.name} again",
            reason=OUTDATED,
        )
    return result


def promote(
    manifest: AdapterManifest,
    evidence: GateEvidence,
    folder: Folder,
    *,
    signing: Signing,
    rules: GateRules,
    constitution_digest: bytes,
    revoked: frozenset[bytes],
    signed_at: Timestamp,
) -> SignedAdapterManifest:
    """A manifest with one more gate, which inference would accept: every file, gate and signature was just verified.

    Raises FailedPreconditionError naming the first thing that does not hold; nothing was changed then.
    """
    description = AdapterDescription.FromString(manifest.adapter)
    policy = ServingPolicy(
        base_digest=description.base.digest,
        profiles=rules.profiles,
        constitution_digests=frozenset({constitution_digest}),
        revoked=revoked,
        demo_allowed=rules.demo_allowed,
    )
    try:
        # The new gate must do by itself: an older one may be what another profile still asks for.
        alone = signing.sign(manifest.adapter, [evidence], signed_at)
        verify_adapter(alone, folder.names(), folder.read, trust=rules.trust, policy=policy)
        subject = GateSubject(adapter_digest(manifest.adapter), description.base.digest, signing.issuer)
        others = [
            gate
            for gate in manifest.gates
            if _kind(gate) != _kind(evidence) and _is_genuine(gate, subject, rules.trust.gates)
        ]
        return signing.sign(manifest.adapter, [evidence, *others][:MAX_GATES], signed_at)
    except VerificationError as error:
        raise FailedPreconditionError(
            f"{description.name} may not serve: {error.message}", reason=NOT_VERIFIED
        ) from error


def holds_gate(manifest: AdapterManifest, evidence: GateEvidence) -> bool:
    """Whether a manifest already has a gate."""
    return any(gate.result == evidence.result for gate in manifest.gates)


def digest_of(manifest: AdapterManifest) -> bytes:
    """The adapter's digest."""
    return adapter_digest(manifest.adapter)


def _kind(gate: GateEvidence) -> tuple[bytes, bytes]:
    """By what and under which laws; of two such gates the newer one counts."""
    result = GateResult.FromString(gate.result)
    return result.gate_set_digest, result.constitution_digest


def _is_genuine(gate: GateEvidence, subject: GateSubject, trust: GateTrust) -> bool:
    """Whether an older gate still holds: one that does not would refuse the whole manifest."""
    try:
        verify_gate("gate", gate, subject, trust)
    except VerificationError:
        return False
    return True
