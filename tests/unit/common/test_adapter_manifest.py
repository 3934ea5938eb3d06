"""The adapter verifier, attacked one layer at a time: each test damages one thing and expects it to be named."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kala.audit.note import Signer
from kala.common.v1 import adapter_pb2 as pb
from kala.errors import VerificationError
from services.common import adapter_manifest as am
from services.common.adapter_weights import CONFIG_FILE, WEIGHTS_FILE
from services.common.gate_profile import read_profile
from tests.fakes.adapters import (
    ISSUER,
    TRAINER,
    AdapterWorld,
    key,
    peft_config,
    profile_file,
    public,
    refused,
    safetensors,
    set_field,
    tensors,
    verify,
)

OTHER = sha256(b"something else").digest()
# An unknown field: number 999, a varint.
UNKNOWN = b"\xb8\x3e\x01"


def test_a_valid_adapter_is_returned_with_the_bytes_that_were_checked():
    world = AdapterWorld()
    adapter = verify(world)
    assert adapter.description.name == "adapters/new-task@1"
    assert adapter.digest == am.adapter_digest(adapter.manifest.adapter)
    assert adapter.files == world.files
    assert adapter.gates[0].receipt.index == 1
    assert adapter.gates[0].result.profile == "test"


def test_it_survives_its_file_form():
    world = AdapterWorld()
    assert verify(world, am.read_signed_manifest(world.signed().SerializeToString())).digest == world.digest


# --- signatures -----------------------------------------------------------------------------------------------------


def test_a_manifest_signed_by_a_stranger_is_refused():
    refused(AdapterWorld(signer=key("stranger")), "manifest: no trusted key signed it")


def test_a_forged_signature_under_a_trusted_key_id_is_refused():
    world = AdapterWorld(signer=key("stranger"))
    signed = world.signed()
    signed.signatures[0].key_id = next(iter(public(TRAINER)))
    refused(world, "manifest: the signature of key [0-9a-f]{16} does not hold", signed)


def test_one_altered_byte_of_the_manifest_is_refused():
    world = AdapterWorld()
    signed = world.signed()
    signed.manifest = signed.manifest[:-1] + bytes([signed.manifest[-1] ^ 1])
    refused(world, "does not hold", signed)


def test_an_unsigned_manifest_is_refused():
    world = AdapterWorld()
    signed = world.signed()
    del signed.signatures[:]
    refused(world, "has 0 signatures", signed)


def test_a_wrong_trusted_signature_beside_a_good_one_refuses_the_whole():
    world = AdapterWorld()
    signed = world.signed()
    signed.signatures.append(pb.ManifestSignature(key_id=signed.signatures[0].key_id, signature=bytes(64)))
    refused(world, "does not hold", signed)


def test_an_unknown_signature_beside_a_good_one_is_ignored_for_rotation():
    world = AdapterWorld()
    signed = world.signed()
    signed.signatures.append(pb.ManifestSignature(key_id="f" * 16, signature=b"of a later algorithm"))
    assert verify(world, signed).digest == world.digest


def test_a_signature_for_another_kind_of_bytes_does_not_pass():
    world = AdapterWorld()
    signed = world.signed()
    signed.signatures[0].signature = TRAINER.sign(am.REVOCATIONS_DOMAIN + signed.manifest)
    refused(world, "does not hold", signed)


# --- strictness -----------------------------------------------------------------------------------------------------


def test_unknown_fields_around_the_manifest_are_refused():
    world = AdapterWorld()
    data = world.signed().SerializeToString() + UNKNOWN
    with pytest.raises(VerificationError, match="does not know"):
        am.read_signed_manifest(data)
    refused(world, "signed manifest: has fields", pb.SignedAdapterManifest.FromString(data))


def test_unknown_fields_inside_the_manifest_are_refused_though_they_are_signed():
    world = AdapterWorld()
    refused(AdapterWorld(on_manifest=lambda m: m.MergeFromString(UNKNOWN)), "manifest: has fields")
    refused(AdapterWorld(on_description=lambda d: d.MergeFromString(UNKNOWN)), "adapter: has fields")
    refused(AdapterWorld(on_description=lambda d: d.base.MergeFromString(UNKNOWN)), "adapter: has fields")
    refused(AdapterWorld(on_result=lambda r: r.MergeFromString(UNKNOWN)), r"gates\[0\].result: has fields")
    refused(
        AdapterWorld(on_measurement=lambda m: m.MergeFromString(UNKNOWN)), r"measurements\[0\]: has fields"
    )
    assert verify(world)


@pytest.mark.parametrize("data", [b"", b"\xff\xff\xff", b"\x0a\xff"], ids=["empty", "garbage", "cut"])
def test_bytes_that_are_no_manifest_are_refused(data: bytes):
    with pytest.raises(VerificationError):
        am.read_signed_manifest(data)
    refused(AdapterWorld(on_manifest=lambda m: setattr(m, "adapter", data)), "adapter: ")


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        ("schema", 2, "schema 2"),
        ("name", "adapters/New Task@1", "is not adapters/<name>@<version>"),
        ("name", "adapters/new-task@0", "is not adapters/<name>@<version>"),
        ("tenant", "", "names no tenant"),
        ("owner", "", "names no tenant, owner"),
        ("base.digest", OTHER, "base: digest of its files"),
        ("base.root_digest", b"short", "base: root digest"),
        ("base.architecture", "", "base: lacks name, architecture"),
        ("base.files.0.name", "../config.json", "not a plain relative file name"),
        ("base.files.0.sha256", b"short", "is not 32 bytes"),
        ("lora.rank", 0, "rank 0"),
        ("lora.rank", 5000, "rank 5000"),
        ("lora.dropout_micros", 1_000_000, "dropout or tensor type"),
        ("lora.tensor_type", 0, "dropout or tensor type"),
        ("lora.targets.0.matched", 0, "target 'embed_in' matches nothing"),
        ("lora.targets.0.module", "query_key_value", "each once"),
        ("lora.targets.0.module", "a b", "is not a module"),
        ("stage", 0, "has no stage"),
        ("stage", pb.ADAPTER_STAGE_SPECIALIST, "stage and specialist"),
        ("specialist", pb.SPECIALIST_CODE, "stage and specialist"),
        ("task", 0, "a language model has no labels"),
        ("task", pb.ADAPTER_TASK_CLASSIFICATION, "a classifier has 2 to 64 labels"),
        ("datasets.0.digest", OTHER, r"datasets\[0\]: digest of its files"),
        ("datasets.0.rows", 0, r"datasets\[0\]: lacks name, rows"),
        ("training.action", b"another action", "training: digest of its action"),
        ("training.action", b"", "training: its action has 0 bytes"),
        ("training.intent_receipt", "rcpt_x", "names no intent's receipt"),
        ("training.constitution_digest", b"", "training: constitution digest"),
        ("training.steps", 0, "took no step"),
        ("chat_template", "other.jinja", "other.jinja is missing"),
        ("files.0.name", "weights.bin", "does not come after"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused_though_it_is_signed(
    path: str, value: object, match: str
):
    refused(AdapterWorld(on_description=set_field(path, value)), match)


def test_modules_in_full_are_only_for_classifiers_and_never_embeddings():
    refused(
        AdapterWorld(on_description=lambda d: d.lora.full_modules.append("embed_in")),
        "'embed_in' is not a module",
    )
    refused(AdapterWorld(on_description=lambda d: d.lora.full_modules.append("score")), "no modules in full")


def test_a_classifier_with_labels_and_a_head_passes():
    def guardian(description: pb.AdapterDescription) -> None:
        description.task = pb.ADAPTER_TASK_CLASSIFICATION
        description.stage, description.specialist = pb.ADAPTER_STAGE_SPECIALIST, pb.SPECIALIST_GUARDIAN
        description.labels.extend(["supported", "refuted", "unsure"])
        description.lora.full_modules.append("score")

    world = AdapterWorld(on_description=guardian)
    world.files[WEIGHTS_FILE] = safetensors({**tensors(), "base_model.model.score.weight": [3, 4]})
    world.files[CONFIG_FILE] = peft_config(modules_to_save=["score"])
    assert list(verify(world).description.labels) == ["supported", "refuted", "unsure"]


# --- gates, as seen from the manifest (test_gates.py has the rest) --------------------------------------------------


def test_a_candidate_without_a_gate_may_be_evaluated_and_may_not_serve():
    world = AdapterWorld(on_manifest=lambda m: m.ClearField("gates"))
    signed = world.signed()
    refused(world, "gates: the adapter has passed none", signed)
    candidate = am.verify_candidate(
        signed, world.files, world.read, trusted=public(TRAINER), base_digest=world.base_digest
    )
    assert candidate.gates == ()


def test_a_candidate_is_held_to_base_and_revocation_too():
    world = AdapterWorld(on_manifest=lambda m: m.ClearField("gates"))
    signed = world.signed()
    with pytest.raises(VerificationError, match="base digest"):
        am.verify_candidate(signed, world.files, world.read, trusted=public(TRAINER), base_digest=OTHER)
    with pytest.raises(VerificationError, match="is revoked"):
        am.verify_candidate(
            signed, world.files, world.read, trusted=public(TRAINER), base_digest=world.base_digest,
            revoked=frozenset({world.digest}),
        )  # fmt: skip


def test_a_profile_that_is_not_accepted_here_is_refused():
    world = AdapterWorld()
    other = read_profile(profile_file(name="stricter"))
    refused(world, "profile 'test' .* is not accepted here", profiles={other.digest: other})


def test_a_demonstration_profile_serves_only_where_it_is_allowed():
    world = AdapterWorld(profile=profile_file(demo=True))
    refused(world, "serves only under `kala up`")
    assert verify(world, demo_allowed=True)


def test_an_outdated_constitution_is_refused():
    refused(AdapterWorld(), "which is outdated", constitution_digests=frozenset({OTHER}))


def test_one_accepted_gate_is_enough_but_all_must_be_genuine():
    world = AdapterWorld()
    signed = world.signed()
    manifest = pb.AdapterManifest.FromString(signed.manifest)
    other = AdapterWorld(profile=profile_file(name="other"))
    other.signed()
    manifest.gates.append(other.evidence())
    assert len(verify(world, am.sign_manifest(manifest, TRAINER)).gates) == 2
    manifest.gates[1].proof = manifest.gates[1].proof.replace("index 1", "index 0")
    refused(world, r"gates\[1\].proof", am.sign_manifest(manifest, TRAINER))


def test_the_gate_of_another_adapter_is_refused():
    world = AdapterWorld()
    manifest = pb.AdapterManifest.FromString(world.signed().manifest)
    other = AdapterWorld(on_description=set_field("summary", "another adapter"))
    other.signed()
    manifest.gates[0].CopyFrom(other.evidence())
    refused(world, r"gates\[0\].result: adapter digest", am.sign_manifest(manifest, TRAINER))


def test_a_gate_recorded_by_another_peer_is_refused():
    refused(AdapterWorld(on_manifest=set_field("issuer", "local:stranger")), f"was recorded by {ISSUER}")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: setattr(m, "issuer", ""), "names no issuer"),
        (lambda m: m.ClearField("signed_at"), "names no issuer or no time"),
    ],
)
def test_a_manifest_without_issuer_or_time_is_refused(change, match: str):
    refused(AdapterWorld(on_manifest=change), match)


def test_more_ancestors_datasets_or_files_than_are_read_are_refused():
    refused(AdapterWorld(on_description=lambda d: d.ancestors.extend([pb.Ancestor()] * 17)), "there are 17")
    refused(AdapterWorld(on_description=lambda d: d.ClearField("datasets")), "datasets: names 0, not 1 to 64")
    refused(AdapterWorld(on_description=lambda d: d.ClearField("files")), "files: names 0 files, not 1 to 64")


def test_too_many_gates_are_refused():
    refused(AdapterWorld(on_manifest=lambda m: m.gates.extend([m.gates[0]] * 8)), "there are 9")


def test_a_log_with_another_key_is_refused():
    refused(AdapterWorld(log=Signer.of("kala.test/log", bytes(32))), r"gates\[0\].proof: ")


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_named():
    world = AdapterWorld()
    signed = world.signed()
    refused(world, f"file {WEIGHTS_FILE}: is missing", signed, names=[CONFIG_FILE, "chat_template.jinja"])


def test_an_extra_file_is_named():
    world = AdapterWorld()
    refused(
        world, r"file 'adapter_model.bin': is not in the manifest", names=[*world.files, "adapter_model.bin"]
    )


@pytest.mark.parametrize("name", [WEIGHTS_FILE, CONFIG_FILE, "chat_template.jinja"])
def test_one_altered_byte_of_a_file_is_named(name: str):
    world = AdapterWorld()
    signed = world.signed()
    data = world.files[name]
    world.files[name] = data[:-1] + bytes([data[-1] ^ 1])
    refused(world, f"file {name}: SHA-256", signed)


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"x"], ids=["shorter", "longer"])
def test_a_file_of_another_size_is_named(change):
    world = AdapterWorld()
    signed = world.signed()
    world.files["chat_template.jinja"] = change(world.files["chat_template.jinja"])
    refused(world, "file chat_template.jinja: is not 14 bytes long", signed)


def test_the_manifest_cannot_list_itself():
    world = AdapterWorld()
    world.files[am.MANIFEST_FILE] = b"x"
    refused(world, "they name the manifest itself")


def test_an_absurd_total_size_is_refused_before_anything_is_read():
    def swell(description: pb.AdapterDescription) -> None:
        description.files[1].bytes = am.MAX_ADAPTER_BYTES + 1

    refused(AdapterWorld(on_description=swell), "are too large")


# --- exhaustively ---------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(position=st.integers(0, 1 << 20), bit=st.integers(0, 7))
def test_no_single_bit_of_the_signed_manifest_can_change(position: int, bit: int):
    world = AdapterWorld()
    signed = world.signed()
    data = bytearray(signed.SerializeToString())
    data[position % len(data)] ^= 1 << bit
    try:
        changed = am.read_signed_manifest(bytes(data))
    except VerificationError:
        return
    with pytest.raises(VerificationError):
        verify(world, changed)
