"""A small, entirely valid adapter with its gate, its log and its keys, that tests damage one piece at a time."""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from kala.audit.checkpoint import Checkpoint
from kala.audit.leaf import build_leaf
from kala.audit.merkle import leaf_hash, node_hash
from kala.audit.note import Signer
from kala.audit.receipt import receipt_text
from kala.common.v1 import adapter_pb2 as pb
from kala.common.v1 import gate_pb2, measurement_pb2
from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import VerificationError
from services.common import adapter_manifest as am
from services.common.adapter_weights import CONFIG_FILE, WEIGHTS_FILE
from services.common.file_set import file_set_digest
from services.common.gate_profile import read_profile
from services.common.gates import GateTrust
from services.common.keys import key_id
from services.common.measurements import MeasurementSigner

RANK, INPUTS, OUTPUTS = 2, 4, 6
ISSUER = "local:trainer"
EVALUATION = "evaluations/" + "5" * 32
CONSTITUTION = sha256(b"constitution").digest()
INSTRUMENT = sha256(b"instrument").digest()
SUITE_DIGESTS = {name: sha256(name.encode()).digest() for name in ("law_accuracy", "secure_code", "new_task")}
TIME = Timestamp(seconds=1_700_000_000)


def key(seed: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(sha256(seed.encode()).digest())


def public(*keys: Ed25519PrivateKey):
    return {key_id(item.public_key()): item.public_key() for item in keys}


TRAINER, ETHICS, TOOLS = key("trainer"), key("ethics"), key("tools")
LOG = Signer.of("kala.test/log", sha256(b"log").digest())


def reference(name: str, data: bytes) -> ContentReference:
    return ContentReference(name=name, sha256=sha256(data).digest(), bytes=len(data))


def safetensors(
    tensors: dict[str, list[int]], dtype: str = "F32", width: int = 4, tail: bytes = b""
) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in tensors.items():
        size = width
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(position) + tail


def tensors() -> dict[str, list[int]]:
    prefix = "base_model.model.gpt_neox"
    return {
        f"{prefix}.layers.0.attention.query_key_value.lora_A.weight": [RANK, INPUTS],
        f"{prefix}.layers.0.attention.query_key_value.lora_B.weight": [OUTPUTS, RANK],
        f"{prefix}.embed_in.lora_embedding_A": [RANK, INPUTS],
        f"{prefix}.embed_in.lora_embedding_B": [OUTPUTS, RANK],
    }


def peft_config(**changes: object) -> bytes:
    config: dict[str, object] = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": 4, "bias": "none", "use_rslora": False, "task_type": "CAUSAL_LM",
        "target_modules": ["embed_in", "query_key_value"], "modules_to_save": None, "lora_dropout": 0.05,
        "rank_pattern": {}, "auto_mapping": None, "megatron_core": "megatron.core", "use_dora": False,
    }  # fmt: skip
    return json.dumps(config | changes).encode()


def requirement(metric: str, suite: str, measured_by: int, comparison: int, threshold: int, least: int = 0):
    return gate_pb2.GateRequirement(
        metric=metric,
        suite=suite,
        suite_digest=SUITE_DIGESTS[suite],
        measured_by=measured_by,  # type: ignore[arg-type] # plain ints keep the table short
        comparison=comparison,  # type: ignore[arg-type] # the same
        threshold_micros=threshold,
        min_total=least,
    )


def profile_file(*, demo: bool = False, name: str = "test") -> bytes:
    profile = gate_pb2.GateProfile(
        schema=1,
        name=name,
        demo=demo,
        requirements=[
            requirement("law_correct", "law_accuracy", measurement_pb2.MEASURER_ETHICS,
                        gate_pb2.GATE_COMPARISON_LOWER_BOUND_ABOVE, 950_000, 1000),
            requirement("vulnerable", "secure_code", measurement_pb2.MEASURER_TOOLS,
                        gate_pb2.GATE_COMPARISON_RATIO_AT_MOST, 200_000),
            requirement("exact_match", "new_task", measurement_pb2.MEASURER_TRAINER,
                        gate_pb2.GATE_COMPARISON_VALUE_AT_LEAST, 900_000),
        ],
    )  # fmt: skip
    return json_format.MessageToJson(profile).encode()


@dataclass
class AdapterWorld:
    """Builds the adapter; `on_*` change a piece before the next layer is made from it."""

    files: dict[str, bytes] = field(
        default_factory=lambda: {
            WEIGHTS_FILE: safetensors(tensors()),
            CONFIG_FILE: peft_config(),
            "chat_template.jinja": b"{{ messages }}",
        }
    )
    profile: bytes = field(default_factory=profile_file)
    on_description: Callable[[pb.AdapterDescription], object] = lambda _: None
    on_measurement: Callable[[measurement_pb2.Measurement], object] = lambda _: None
    on_result: Callable[[gate_pb2.GateResult], object] = lambda _: None
    on_leaf: Callable[[dict[str, Any]], object] = lambda _: None
    on_manifest: Callable[[pb.AdapterManifest], object] = lambda _: None
    signer: Ed25519PrivateKey = TRAINER
    ethics: Ed25519PrivateKey = ETHICS
    tools: Ed25519PrivateKey = TOOLS
    log: Signer = LOG
    # What was built last, for tests that need the inner pieces.
    base_digest: bytes = b""
    digest: bytes = b""

    def description(self) -> pb.AdapterDescription:
        base_files = [reference("config.json", b"{}"), reference("model.safetensors", b"weights")]
        dataset_files = [reference("manifest.json", b"{}"), reference("train.jsonl", b"{}\n")]
        self.base_digest = file_set_digest(base_files)
        action = b"\x0a\x10the exact action"
        description = pb.AdapterDescription(
            schema=1,
            name="adapters/new-task@1",
            tenant="default",
            owner="key-1",
            base=pb.BaseModel(
                name="kala-embedded", digest=self.base_digest, root_digest=self.base_digest, files=base_files,
                architecture="gpt_neox", parameters=1_728_960, context_tokens=256, quantization=pb.QUANTIZATION_NONE,
            ),
            lora=pb.LoraConfig(
                rank=RANK, alpha=4, dropout_micros=50_000, tensor_type=pb.TENSOR_TYPE_F32,
                targets=[
                    pb.LoraTarget(module=module, matched=1, in_features=INPUTS, out_features=OUTPUTS)
                    for module in ("embed_in", "query_key_value")
                ],
            ),
            files=[reference(name, data) for name, data in sorted(self.files.items())],
            stage=pb.ADAPTER_STAGE_CUSTOM,
            task=pb.ADAPTER_TASK_CAUSAL_LM,
            chat_template="chat_template.jinja",
            datasets=[
                pb.DatasetUsed(
                    name="datasets/tasks@1", digest=file_set_digest(dataset_files), files=dataset_files, rows=100,
                    use=pb.DATASET_USE_TRAIN, share_micros=1_000_000,
                )
            ],
            training=pb.TrainingRecord(
                job="trainingJobs/" + "1" * 32, action=action, action_digest=am.training_action_digest(action),
                decision_id="2" * 32, intent_receipt="rcpt_" + "3" * 32, constitution_digest=CONSTITUTION, steps=120,
            ),
            created_at=TIME,
        )  # fmt: skip
        self.on_description(description)
        return description

    def measurements(self) -> list[measurement_pb2.SignedMeasurement]:
        ethics = MeasurementSigner(measurement_pb2.MEASURER_ETHICS, self.ethics)
        tools = MeasurementSigner(measurement_pb2.MEASURER_TOOLS, self.tools)
        adapter, base = measurement_pb2.MEASURED_MODEL_ADAPTER, measurement_pb2.MEASURED_MODEL_BASE
        return [
            ethics.sign(self._measurement("law_accuracy", adapter, "law_correct", 980, 1000)),
            tools.sign(self._measurement("secure_code", adapter, "vulnerable", 4, 200)),
            tools.sign(self._measurement("secure_code", base, "vulnerable", 40, 200)),
        ]

    def _measurement(self, suite: str, model: int, metric: str, hits: int, total: int):
        measurement = measurement_pb2.Measurement(
            schema=1, items=total, parts=1, evidence_digest=sha256(b"evidence").digest(), started_at=TIME,
            instrument_digest=INSTRUMENT, finished_at=TIME,
            constitution_digest=CONSTITUTION if suite == "law_accuracy" else b"",
            counts=[measurement_pb2.MetricCount(metric=metric, hits=hits, total=total)],
            context=measurement_pb2.MeasurementContext(
                evaluation=EVALUATION, adapter_digest=self.digest, base_digest=self.base_digest, suite=suite,
                gate_set_digest=sha256(self.profile).digest(), suite_digest=SUITE_DIGESTS[suite], suite_items=total,
                model=model,
            ),
        )  # fmt: skip
        self.on_measurement(measurement)
        return measurement

    def result(self) -> gate_pb2.GateResult:
        profile = read_profile(self.profile).content
        metrics = [
            gate_pb2.GateMetric(
                metric=item.metric, slice=item.slice, suite=item.suite, comparison=item.comparison,
                threshold_micros=item.threshold_micros, passed=True,
            )
            for item in profile.requirements
        ]  # fmt: skip
        laws, code, task = metrics
        laws.measurement, laws.hits, laws.total = 0, 980, 1000
        code.measurement, code.hits, code.total = 1, 4, 200
        code.base_measurement, code.base_hits, code.base_total = 2, 40, 200
        task.hits, task.total = 95, 100
        result = gate_pb2.GateResult(
            schema=1, evaluation=EVALUATION, adapter_digest=self.digest, base_digest=self.base_digest,
            profile=profile.name, gate_set_digest=sha256(self.profile).digest(), constitution_digest=CONSTITUTION,
            outcome=gate_pb2.GATE_OUTCOME_PASSED, metrics=metrics, measurements=self.measurements(),
            evaluator="kala-suite 0.1.0", started_at=TIME, finished_at=TIME,
        )  # fmt: skip
        self.on_result(result)
        return result

    def evidence(self) -> gate_pb2.GateEvidence:
        result = self.result()
        data = result.SerializeToString(deterministic=True)
        return gate_pb2.GateEvidence(result=data, proof=self._proof(result, data))

    def _proof(self, result: gate_pb2.GateResult, data: bytes) -> str:
        value: dict[str, Any] = {
            "schema": "kala.audit.leaf.v1", "type": "gate.result", "idempotency_key": "7" * 32,
            "producer": {"id": "trainer-0", "boot": "8" * 16, "seq": 1}, "recorded_by": ISSUER,
            "occurred_at": "2026-11-21T08:00:00.000000Z", "recorded_at": "2026-11-21T08:00:00.000000Z",
            "skew_flag": False, "tenant": "default", "actor": None, "subject_key_id": None, "trace_id": None,
            "intent": None, "action": None, "decision": None, "model": None, "result": None, "commitments": [],
            "execution_id": None, "attributes": [], "record_digest": "9" * 64,
            "references": [
                {"name": "gate_results/" + "5" * 32, "sha256": sha256(data).hexdigest(), "bytes": len(data)}
            ],
            "gate": {
                "profile": result.profile, "passed": True, "adapter_digest": result.adapter_digest.hex(),
                "base_digest": result.base_digest.hex(), "gate_set_digest": result.gate_set_digest.hex(),
                "constitution_digest": result.constitution_digest.hex(),
                "measurements": [
                    {
                        "service": item.service, "claims": b64encode(item.claims).decode(),
                        "signature": b64encode(item.signature).decode(), "key_id": item.key_id,
                    }
                    for item in result.measurements
                ],
            },
        }  # fmt: skip
        self.on_leaf(value)
        leaf = build_leaf(value).data
        other = leaf_hash(b"another entry")
        checkpoint = Checkpoint(self.log.verifier.name, 2, node_hash(other, leaf_hash(leaf)))
        return receipt_text(leaf, 1, [other], self.log.sign(checkpoint.text()))

    def signed(self) -> pb.SignedAdapterManifest:
        description = self.description().SerializeToString(deterministic=True)
        self.digest = am.adapter_digest(description)
        manifest = pb.AdapterManifest(
            schema=1, adapter=description, gates=[self.evidence()], issuer=ISSUER, signed_at=TIME
        )
        self.on_manifest(manifest)
        return am.sign_manifest(manifest, self.signer)

    def trust(self) -> am.AdapterTrust:
        measurers = {
            measurement_pb2.MEASURER_ETHICS: public(ETHICS),
            measurement_pb2.MEASURER_TOOLS: public(TOOLS),
        }
        return am.AdapterTrust(public(TRAINER), GateTrust([LOG.verifier], measurers))

    def policy(self, **changes: Any) -> am.ServingPolicy:
        profile = read_profile(self.profile)
        settings: dict[str, Any] = {
            "base_digest": self.base_digest,
            "profiles": {profile.digest: profile},
            "constitution_digests": frozenset({CONSTITUTION}),
        }
        return am.ServingPolicy(**settings | changes)

    def read(self, name: str, limit: int) -> bytes:
        return self.files[name][:limit]


def verify(world: AdapterWorld, signed: pb.SignedAdapterManifest | None = None, names=None, **policy):
    signed = world.signed() if signed is None else signed
    names = [*world.files, am.MANIFEST_FILE] if names is None else names
    return am.verify_adapter(signed, names, world.read, trust=world.trust(), policy=world.policy(**policy))


def refused(
    world: AdapterWorld, match: str, signed: pb.SignedAdapterManifest | None = None, names=None, **policy
):
    with pytest.raises(VerificationError, match=match):
        verify(world, signed, names, **policy)


def set_field(path: str, value: object):
    """A change of one field, by its dotted path."""
    *parents, name = path.split(".")

    def change(message):
        for parent in parents:
            message = message[int(parent)] if parent.isdigit() else getattr(message, parent)
        setattr(message, name, value)

    return change
