"""An adapter's passport: who signed what, which base it fits, what it learned from and which gates it passed.

`verify_adapter` is what inference calls before it loads; `verify_candidate` is the trainer's, before a gate has passed.
Both return the verified adapter with the very bytes that were checked, so that nothing is read a second time, or raise
VerificationError naming the first thing that is wrong. Neither opens files nor knows the time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kala.common.v1.adapter_pb2 import (
    ADAPTER_STAGE_SPECIALIST,
    ADAPTER_TASK_CAUSAL_LM,
    ADAPTER_TASK_CLASSIFICATION,
    SPECIALIST_UNSPECIFIED,
    AdapterDescription,
    AdapterManifest,
    BaseModel,
    DatasetUsed,
    RevocationList,
    SignedAdapterManifest,
    SignedRevocationList,
    TrainingRecord,
)
from kala.errors import VerificationError
from services.common import signatures
from services.common.adapter_weights import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    require_config,
    require_sane_lora,
    require_weights,
)
from services.common.file_set import file_set_digest, require_file_set
from services.common.gate_profile import Profile
from services.common.gates import GateSubject, GateTrust, VerifiedGate, require_profile, verify_gate
from services.common.signatures import PublicKeys
from services.common.strict_parsing import (
    parse_signed,
    require_digest,
    require_known_fields,
    require_same,
    require_schema,
)

MANIFEST_FILE: Final = "kala-adapter.binpb"
MANIFEST_DOMAIN: Final = b"kala-adapter-manifest-v1\0"
ADAPTER_DOMAIN: Final = b"kala-adapter-v1\0"
REVOCATIONS_DOMAIN: Final = b"kala-adapter-revocations-v1\0"
TRAINING_ACTION_URL: Final = b"type.kala.dev/kala.trainer.v1.CreateTrainingJobAction\0"
SCHEMA: Final = 1
MAX_MANIFEST_BYTES: Final = 8 << 20
MAX_DESCRIPTION_BYTES: Final = 4 << 20
MAX_REVOCATIONS_BYTES: Final = 32 << 20
MAX_ACTION_BYTES: Final = 1 << 20
MAX_GATES: Final = 8
MAX_ANCESTORS: Final = 16
MAX_DATASETS: Final = 64
MAX_ADAPTER_FILES: Final = 64
MAX_BASE_FILES: Final = 256
# A rank-1,024 adapter of every matrix of Pythia 12b in fp32 stays below.
MAX_ADAPTER_BYTES: Final = 16 << 30
LABELS: Final = range(2, 65)
_NAME: Final = re.compile(r"adapters/[a-z0-9-]{1,64}@[1-9][0-9]{0,9}")
_RECEIPT: Final = re.compile(r"rcpt_[0-9a-f]{32}")
_DECISION: Final = re.compile(r"[0-9a-f]{32}")

ReadFile = Callable[[str, int], bytes]
"""Reads a file of the adapter's folder by name, at most the given number of bytes."""


@dataclass(frozen=True, slots=True)
class AdapterTrust:
    """The public keys behind an adapter, pinned by the operator: the trainer's, and those behind its gates."""

    trainer: PublicKeys
    gates: GateTrust


@dataclass(frozen=True, slots=True)
class ServingPolicy:
    """What one inference process accepts: its base, its profiles by digest, constitutions in force, revocations."""

    base_digest: bytes
    profiles: Mapping[bytes, Profile]
    constitution_digests: frozenset[bytes]
    revoked: frozenset[bytes] = frozenset()
    # Only a suite started by `kala up` lets the embedded demo's profiles count.
    demo_allowed: bool = False


@dataclass(frozen=True, slots=True)
class VerifiedAdapter:
    """An adapter that held, with the bytes of its files as they were checked."""

    digest: bytes
    manifest: AdapterManifest
    description: AdapterDescription
    gates: tuple[VerifiedGate, ...]
    files: Mapping[str, bytes]


def adapter_digest(description: bytes) -> bytes:
    """The digest of an adapter: of its serialised AdapterDescription, before any gate."""
    return hashlib.sha256(ADAPTER_DOMAIN + description).digest()


def training_action_digest(action: bytes) -> bytes:
    """The digest of a training action, as its clearance and its intent's leaf have it."""
    return hashlib.sha256(TRAINING_ACTION_URL + action).digest()


def sign_manifest(manifest: AdapterManifest, private_key: Ed25519PrivateKey) -> SignedAdapterManifest:
    """Serialises a manifest, once, and signs the bytes; the trainer's side."""
    data = manifest.SerializeToString(deterministic=True)
    return SignedAdapterManifest(
        manifest=data, signatures=[signatures.sign(MANIFEST_DOMAIN, data, private_key)]
    )


def sign_revocations(revocations: RevocationList, private_key: Ed25519PrivateKey) -> SignedRevocationList:
    """Serialises a list of revocations, once, and signs the bytes; the trainer's side."""
    data = revocations.SerializeToString(deterministic=True)
    return SignedRevocationList(
        list=data, signatures=[signatures.sign(REVOCATIONS_DOMAIN, data, private_key)]
    )


def read_signed_manifest(data: bytes) -> SignedAdapterManifest:
    """Reads the bytes of `MANIFEST_FILE`; nothing in them is verified yet."""
    return parse_signed("signed manifest", data, SignedAdapterManifest, max_bytes=2 * MAX_MANIFEST_BYTES)


def verify_revocations(
    signed: SignedRevocationList, trusted: PublicKeys, *, min_serial: int = 0
) -> RevocationList:
    """Returns the list, or raises VerificationError; one older than `min_serial` is refused, for it hides revocations."""
    what = "revocation list"
    require_known_fields(what, signed)
    signatures.verify_any(what, REVOCATIONS_DOMAIN, signed.list, signed.signatures, trusted)
    revocations = parse_signed(what, signed.list, RevocationList, max_bytes=MAX_REVOCATIONS_BYTES)
    require_schema(what, revocations.schema, SCHEMA)
    if revocations.serial < min_serial:
        raise VerificationError(f"{what}: has serial {revocations.serial}, but {min_serial} was seen before")
    for index, item in enumerate(revocations.revocations):
        require_digest(f"{what}: adapter digest {index}", item.adapter_digest)
    return revocations


def verify_adapter(
    signed: SignedAdapterManifest,
    names: Iterable[str],
    read: ReadFile,
    *,
    trust: AdapterTrust,
    policy: ServingPolicy,
) -> VerifiedAdapter:
    """Returns an adapter that may serve under `policy`, or raises VerificationError.

    `names` are all files in the adapter's folder; the manifest's own file may be among them.
    """
    manifest, description, digest = _open(signed, trust.trainer)
    _require_description("adapter", description)
    require_same("adapter: base digest", description.base.digest, policy.base_digest)
    _require_not_revoked(digest, description, policy.revoked)
    gates = _verify_gates(manifest, digest, description.base.digest, trust.gates, policy)
    files = _read_files(description, names, read)
    return VerifiedAdapter(digest, manifest, description, gates, files)


def verify_candidate(
    signed: SignedAdapterManifest,
    names: Iterable[str],
    read: ReadFile,
    *,
    trusted: PublicKeys,
    base_digest: bytes,
    revoked: frozenset[bytes] = frozenset(),
) -> VerifiedAdapter:
    """Like `verify_adapter` without asking for gates: what may be evaluated, and may not serve."""
    manifest, description, digest = _open(signed, trusted)
    _require_description("adapter", description)
    require_same("adapter: base digest", description.base.digest, base_digest)
    _require_not_revoked(digest, description, revoked)
    return VerifiedAdapter(digest, manifest, description, (), _read_files(description, names, read))


def _open(
    signed: SignedAdapterManifest, trusted: PublicKeys
) -> tuple[AdapterManifest, AdapterDescription, bytes]:
    """Signature first: nothing unsigned is parsed."""
    require_known_fields("signed manifest", signed)
    signatures.verify_any("manifest", MANIFEST_DOMAIN, signed.manifest, signed.signatures, trusted)
    manifest = parse_signed("manifest", signed.manifest, AdapterManifest, max_bytes=MAX_MANIFEST_BYTES)
    require_schema("manifest", manifest.schema, SCHEMA)
    if not manifest.issuer or not manifest.HasField("signed_at"):
        raise VerificationError("manifest: names no issuer or no time")
    description = parse_signed(
        "adapter", manifest.adapter, AdapterDescription, max_bytes=MAX_DESCRIPTION_BYTES
    )
    return manifest, description, adapter_digest(manifest.adapter)


def _require_description(what: str, description: AdapterDescription) -> None:
    require_schema(what, description.schema, SCHEMA)
    if not _NAME.fullmatch(description.name):
        raise VerificationError(f"{what}: {description.name!r} is not adapters/<name>@<version>")
    if not description.tenant or not description.owner or not description.HasField("created_at"):
        raise VerificationError(f"{what}: names no tenant, owner or time")
    _require_base(f"{what}: base", description.base)
    _require_lineage(f"{what}: ancestors", description)
    require_sane_lora(f"{what}: lora", description.lora)
    _require_purpose(what, description)
    _require_datasets(f"{what}: datasets", description.datasets)
    _require_training(f"{what}: training", description.training)
    require_file_set(f"{what}: files", description.files, max_files=MAX_ADAPTER_FILES)
    listed = {file.name for file in description.files}
    for name in (WEIGHTS_FILE, CONFIG_FILE, description.chat_template or CONFIG_FILE):
        if name not in listed:
            raise VerificationError(f"{what}: files: {name} is missing")
    if MANIFEST_FILE in listed or sum(file.bytes for file in description.files) > MAX_ADAPTER_BYTES:
        raise VerificationError(f"{what}: files: they name the manifest itself or are too large")


def _require_base(what: str, base: BaseModel) -> None:
    require_file_set(f"{what}: files", base.files, max_files=MAX_BASE_FILES)
    require_same(f"{what}: digest of its files", file_set_digest(base.files), base.digest)
    require_digest(f"{what}: root digest", base.root_digest)
    if not (
        base.name and base.architecture and base.parameters and base.context_tokens and base.quantization
    ):
        raise VerificationError(f"{what}: lacks name, architecture, parameters, context or quantization")


def _require_lineage(what: str, description: AdapterDescription) -> None:
    """Each ancestor's base is what the one before it was merged into; the last merge is this adapter's base."""
    if len(description.ancestors) > MAX_ANCESTORS:
        raise VerificationError(f"{what}: there are {len(description.ancestors)}, not 0 to {MAX_ANCESTORS}")
    model = description.base.root_digest
    for index, ancestor in enumerate(description.ancestors):
        require_digest(f"{what}[{index}]: adapter digest", ancestor.adapter_digest)
        require_digest(f"{what}[{index}]: merged digest", ancestor.merged_digest)
        require_same(f"{what}[{index}]: base digest", ancestor.base_digest, model)
        if not _NAME.fullmatch(ancestor.name) or not ancestor.stage:
            raise VerificationError(f"{what}[{index}]: has no proper name or no stage")
        model = ancestor.merged_digest
    require_same(f"{what}: the base that they lead to", model, description.base.digest)


def _require_purpose(what: str, description: AdapterDescription) -> None:
    if not description.stage:
        raise VerificationError(f"{what}: has no stage")
    if (description.stage == ADAPTER_STAGE_SPECIALIST) != (description.specialist != SPECIALIST_UNSPECIFIED):
        raise VerificationError(f"{what}: stage and specialist do not agree")
    labels = description.labels
    is_classifier = description.task == ADAPTER_TASK_CLASSIFICATION
    if not is_classifier and (
        description.task != ADAPTER_TASK_CAUSAL_LM or labels or description.lora.full_modules
    ):
        raise VerificationError(f"{what}: a language model has no labels and no modules in full")
    if is_classifier and (len(labels) not in LABELS or len(set(labels)) != len(labels)):
        raise VerificationError(f"{what}: a classifier has 2 to 64 labels, each once")


def _require_datasets(what: str, datasets: Sequence[DatasetUsed]) -> None:
    if not 1 <= len(datasets) <= MAX_DATASETS:
        raise VerificationError(f"{what}: names {len(datasets)}, not 1 to {MAX_DATASETS}")
    for index, dataset in enumerate(datasets):
        require_file_set(f"{what}[{index}]", dataset.files, max_files=MAX_BASE_FILES)
        require_same(f"{what}[{index}]: digest of its files", file_set_digest(dataset.files), dataset.digest)
        if not (dataset.name and dataset.rows and dataset.use):
            raise VerificationError(f"{what}[{index}]: lacks name, rows or use")


def _require_training(what: str, training: TrainingRecord) -> None:
    if not 0 < len(training.action) <= MAX_ACTION_BYTES:
        raise VerificationError(
            f"{what}: its action has {len(training.action)} bytes, not 1 to {MAX_ACTION_BYTES}"
        )
    require_same(
        f"{what}: digest of its action", training_action_digest(training.action), training.action_digest
    )
    require_digest(f"{what}: constitution digest", training.constitution_digest)
    if not _RECEIPT.fullmatch(training.intent_receipt) or not _DECISION.fullmatch(training.decision_id):
        raise VerificationError(f"{what}: names no intent's receipt or no decision")
    if not training.job or not training.steps:
        raise VerificationError(f"{what}: names no job or took no step")


def _require_not_revoked(digest: bytes, description: AdapterDescription, revoked: frozenset[bytes]) -> None:
    if digest in revoked:
        raise VerificationError(f"adapter: {description.name} is revoked")
    for ancestor in description.ancestors:
        if ancestor.adapter_digest in revoked:
            raise VerificationError(f"adapter: its ancestor {ancestor.name} is revoked")


def _verify_gates(
    manifest: AdapterManifest, digest: bytes, base_digest: bytes, trust: GateTrust, policy: ServingPolicy
) -> tuple[VerifiedGate, ...]:
    """Every gate must be genuine, and one of them accepted."""
    if len(manifest.gates) > MAX_GATES:
        raise VerificationError(f"gates: there are {len(manifest.gates)}, at most {MAX_GATES} are read")
    subject = GateSubject(digest, base_digest, manifest.issuer)
    gates = tuple(
        verify_gate(f"gates[{index}]", evidence, subject, trust)
        for index, evidence in enumerate(manifest.gates)
    )
    if not gates:
        raise VerificationError("gates: the adapter has passed none")
    reasons = [_reason_against(f"gates[{index}]", gate, policy) for index, gate in enumerate(gates)]
    if all(reasons):
        raise VerificationError(next(filter(None, reasons)))
    return gates


def _reason_against(what: str, gate: VerifiedGate, policy: ServingPolicy) -> str:
    """Why a genuine gate does not let an adapter serve here; empty when it does."""
    result = gate.result
    profile = policy.profiles.get(result.gate_set_digest)
    if profile is None:
        return (
            f"{what}: profile {result.profile!r} ({result.gate_set_digest.hex()[:16]}) is not accepted here"
        )
    if profile.content.demo and not policy.demo_allowed:
        return f"{what}: profile {result.profile!r} is a demonstration's and serves only under `kala up`"
    if result.constitution_digest not in policy.constitution_digests:
        return f"{what}: was passed under constitution {result.constitution_digest.hex()[:16]}, which is outdated"
    try:
        require_profile(what, gate, profile)
    except VerificationError as error:
        return error.message
    return ""


def _read_files(description: AdapterDescription, names: Iterable[str], read: ReadFile) -> dict[str, bytes]:
    present = set(names) - {MANIFEST_FILE}
    listed = {file.name for file in description.files}
    for name in sorted(listed - present):
        raise VerificationError(f"file {name}: is missing")
    for name in sorted(present - listed):
        raise VerificationError(f"file {name!r}: is not in the manifest")
    files: dict[str, bytes] = {}
    for file in description.files:
        data = read(file.name, file.bytes + 1)
        if len(data) != file.bytes:
            raise VerificationError(f"file {file.name}: is not {file.bytes} bytes long")
        require_same(f"file {file.name}: SHA-256", hashlib.sha256(data).digest(), file.sha256)
        files[file.name] = data
    require_config(f"file {CONFIG_FILE}", files[CONFIG_FILE], description.lora)
    require_weights(f"file {WEIGHTS_FILE}", files[WEIGHTS_FILE], description.lora)
    return files
