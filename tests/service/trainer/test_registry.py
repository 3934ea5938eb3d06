"""From what training leaves to an adapter that inference takes, and to its end; over a real database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kala.common.v1 import adapter_pb2
from kala.common.v1.clearance_pb2 import ClearanceClaims, Principal
from kala.common.v1.gate_pb2 import GATE_OUTCOME_ERROR, GATE_OUTCOME_FAILED, GateOutcome
from kala.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    VerificationError,
)
from kala.trainer.v1 import registry_pb2
from kala.trainer.v1 import trainer_pb2 as pb
from services.common.adapter_manifest import ServingPolicy, verify_adapter, verify_revocations
from services.common.adapter_weights import WEIGHTS_FILE
from services.common.audit_client import Appended, AppendStatus
from services.common.clearance import VerifiedClearance
from services.common.gate_profile import read_profile
from services.common.keys import write_public_key
from services.trainer import verify
from services.trainer.pages import PageTokens
from services.trainer.records import Cleared, Records
from services.trainer.registry.desk import Adapters
from services.trainer.registry.promotion import GateRules, Signing
from services.trainer.registry.publishing import Publisher, require_known
from services.trainer.registry.registry import Registry
from services.trainer.registry.revocations import Revocations
from services.trainer.registry.shelf import Shelf
from services.trainer.store.store import Store
from tests.fakes.adapters import (
    CONSTITUTION,
    ETHICS,
    ISSUER,
    LOG,
    TOOLS,
    TRAINER,
    AdapterWorld,
    profile_file,
    public,
    safetensors,
    tensors,
)
from tests.fakes.clearances import FakeEthics
from tests.fakes.trained import FINISHED, TrainedWorld, evaluation_of, evaluation_reference, gate_of

AUDIENCE = "/kala.trainer.v1.TrainerService/PromoteAdapter"
CALLER = Principal(id="key-1", tenant="default")
STRANGER = Principal(id="key-9", tenant="others")


class Log:
    """Takes records, or is away."""

    def __init__(self) -> None:
        self.records: list = []
        self.is_away = False

    async def append(self, record, *, key=None, policy):
        if self.is_away:
            raise UnavailableError("the log is away")
        self.records.append(record)
        return Appended(key or b"k" * 16, AppendStatus.LOGGED, created=True)

    @property
    def kinds(self) -> list[str]:
        return [record.type for record in self.records]


@dataclass
class Desk:
    """The registry behind its desk."""

    adapters: Adapters
    log: Log
    root: Path
    gates: AdapterWorld
    ethics: FakeEthics

    @property
    def registry(self) -> Registry:
        return self.adapters.registry

    async def candidate(self, **changes) -> registry_pb2.Adapter:
        world = TrainedWorld(self.root / "work", **changes)
        return await self.registry.register(world.trained, world.adapter)

    async def evaluated(self, adapter: registry_pb2.Adapter) -> registry_pb2.Evaluation:
        evaluation = evaluation_of(gate_of(self.gates, adapter), adapter)
        evaluation.started_at.CopyFrom(FINISHED)
        await self.registry.store.put_evaluation(evaluation, tenant="default", owner="key-1")
        return evaluation

    def cleared(
        self, action: pb.PromoteAdapterAction, constitution: bytes = CONSTITUTION, tenant="default"
    ) -> Cleared:
        sealed = self.ethics.seal(action, audience=AUDIENCE, tenant=tenant, constitution_digest=constitution)
        claims = sealed.clearance.claims
        return Cleared(sealed, VerifiedClearance(ClearanceClaims.FromString(claims), sealed.action))

    async def promote(self, adapter, evaluation, **changes) -> registry_pb2.Adapter:
        action = pb.PromoteAdapterAction(
            request_id="r" * 16, adapter=adapter.reference, evaluation=evaluation_reference(evaluation)
        )
        return (await self.adapters.promote(action, self.cleared(action, **changes))).adapter

    async def promoted(self, **changes) -> registry_pb2.Adapter:
        adapter = await self.candidate(**changes)
        return await self.promote(adapter, await self.evaluated(adapter))

    def serves(self, adapter: registry_pb2.Adapter) -> None:
        """Raises VerificationError unless inference would load it."""
        folder = self.registry.shelf.folder(adapter.name)
        profile = read_profile(self.gates.profile)
        policy = ServingPolicy(
            base_digest=adapter.description.base.digest,
            profiles={profile.digest: profile},
            constitution_digests=frozenset({CONSTITUTION}),
            revoked=self.registry.revocations.revoked,
        )
        verify_adapter(adapter.manifest, folder.names(), folder.read, trust=self.gates.trust(), policy=policy)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    store = await Store.open(tmp_path / "trainer.db")
    gates = AdapterWorld()
    shelf = Shelf(tmp_path / "adapters")
    shelf.open()
    profile = read_profile(gates.profile)
    registry = Registry(
        store=store,
        shelf=shelf,
        revocations=Revocations(
            tmp_path / "revocations.binpb", TRAINER, public(TRAINER), now=lambda: FINISHED
        ),
        signing=Signing(TRAINER, ISSUER),
        rules=GateRules(gates.trust(), {profile.digest: profile}),
        now=lambda: FINISHED,
    )
    log = Log()
    yield Desk(Adapters(registry, Records(log), PageTokens()), log, tmp_path, gates, FakeEthics())
    store.close()


async def test_a_candidate_is_signed_and_may_not_serve(desk: Desk) -> None:
    adapter = await desk.candidate()
    assert (adapter.name, adapter.state) == ("adapters/new-task@1", registry_pb2.ADAPTER_STATE_CANDIDATE)
    assert adapter.location == "new-task@1"
    with pytest.raises(VerificationError, match="has passed none"):
        desk.serves(adapter)


async def test_a_promoted_adapter_is_what_inference_takes(desk: Desk) -> None:
    adapter = await desk.promoted()
    assert adapter.state == registry_pb2.ADAPTER_STATE_PROMOTED
    assert list(adapter.passed_profiles) == ["test"]
    desk.serves(adapter)
    assert desk.registry.shelf.read_manifest(adapter.name) == adapter.manifest
    assert desk.log.kinds == ["adapter.promoting", "adapter.promoted"]
    newest = await desk.adapters.get(pb.GetAdapterRequest(name="adapters/new-task"), CALLER)
    assert newest.adapter == adapter


async def test_promoting_again_gives_the_same_manifest(desk: Desk) -> None:
    candidate = await desk.candidate()
    evaluation = await desk.evaluated(candidate)
    first = await desk.promote(candidate, evaluation)
    assert (await desk.promote(candidate, evaluation)).manifest == first.manifest


@pytest.mark.parametrize("outcome", [GATE_OUTCOME_FAILED, GATE_OUTCOME_ERROR])
async def test_an_adapter_that_did_not_pass_is_not_promoted(
    desk: Desk, outcome: GateOutcome.ValueType
) -> None:
    adapter = await desk.candidate()
    evaluation = await desk.evaluated(adapter)
    evaluation.outcome = outcome
    await desk.registry.store.put_evaluation(evaluation, tenant="default", owner="key-1")
    with pytest.raises(FailedPreconditionError, match="may not serve") as refused:
        await desk.promote(adapter, evaluation)
    assert refused.value.reason == "GATE_NOT_PASSED"
    assert desk.log.records[-1].result.code == "GATE_NOT_PASSED"
    found = await desk.adapters.get(pb.GetAdapterRequest(name=adapter.name), CALLER)
    assert found.adapter.state == registry_pb2.ADAPTER_STATE_CANDIDATE


async def test_a_gate_of_older_laws_is_outdated(desk: Desk) -> None:
    adapter = await desk.candidate()
    evaluation = await desk.evaluated(adapter)
    with pytest.raises(FailedPreconditionError, match="no longer in force") as refused:
        await desk.promote(adapter, evaluation, constitution=bytes(32))
    assert refused.value.reason == "GATE_OUTDATED"


async def test_a_gate_that_is_not_in_the_log_is_refused(desk: Desk) -> None:
    adapter = await desk.candidate()
    desk.gates.on_leaf = lambda leaf: leaf.update(type="chat.outcome")
    with pytest.raises(FailedPreconditionError, match="is no passed gate"):
        await desk.promote(adapter, await desk.evaluated(adapter))


async def test_a_gate_by_another_profile_is_refused(desk: Desk) -> None:
    adapter = await desk.candidate()
    desk.gates.profile = profile_file(name="lenient")
    with pytest.raises(FailedPreconditionError, match=r"'lenient' .* is not accepted here"):
        await desk.promote(adapter, await desk.evaluated(adapter))


async def test_a_demonstration_s_profile_promotes_only_where_it_may(desk: Desk) -> None:
    profile = read_profile(profile_file(demo=True))
    desk.gates.profile = profile_file(demo=True)
    desk.registry.rules = GateRules(desk.gates.trust(), {profile.digest: profile})
    adapter = await desk.candidate()
    evaluation = await desk.evaluated(adapter)
    with pytest.raises(FailedPreconditionError, match="demonstration"):
        await desk.promote(adapter, evaluation)
    desk.registry.rules = GateRules(desk.gates.trust(), {profile.digest: profile}, demo_allowed=True)
    promoted = await desk.promote(adapter, evaluation)
    assert promoted.state == registry_pb2.ADAPTER_STATE_PROMOTED


async def test_another_s_evaluation_promotes_nothing(desk: Desk) -> None:
    first, second = await desk.candidate(), await desk.candidate(stem="adapters/other")
    evaluation = await desk.evaluated(first)
    with pytest.raises(FailedPreconditionError, match="is not about adapters/other@1"):
        await desk.promote(second, evaluation)


@pytest.mark.parametrize(
    "poison",
    [
        lambda folder: (folder / WEIGHTS_FILE).write_bytes(safetensors(tensors())[:-1] + b"\x01"),
        lambda folder: (folder / WEIGHTS_FILE).write_bytes(b"\x80\x04."),
        lambda folder: (folder / "adapter_model.bin").write_bytes(b"\x80\x04."),
        lambda folder: (folder / "README.md").unlink(),
    ],
    ids=["altered byte", "pickle", "more files", "fewer files"],
)
async def test_files_that_changed_since_training_are_not_promoted(desk: Desk, poison) -> None:
    adapter = await desk.candidate()
    evaluation = await desk.evaluated(adapter)
    poison(desk.registry.shelf.folder(adapter.name).path)
    with pytest.raises(FailedPreconditionError, match="may not serve: file") as refused:
        await desk.promote(adapter, evaluation)
    assert refused.value.reason == "ADAPTER_NOT_VERIFIED"


@pytest.mark.parametrize(
    "files", [{"adapter_model.bin": b"\x80\x04."}, {WEIGHTS_FILE: b"\x80\x04."}], ids=["bin", "safetensors"]
)
async def test_a_poisoned_adapter_is_not_registered_and_leaves_nothing(desk: Desk, files: dict) -> None:
    world = TrainedWorld(desk.root / "work")
    world.files |= files
    with pytest.raises(VerificationError):
        await desk.registry.register(world.trained, world.adapter)
    assert [path.name for path in desk.registry.shelf.root.iterdir()] == [".staging"]
    listed = await desk.adapters.list(pb.ListAdaptersRequest(), CALLER)
    assert not listed.adapters


async def test_without_a_log_nothing_is_promoted_or_revoked(desk: Desk) -> None:
    adapter = await desk.candidate()
    evaluation = await desk.evaluated(adapter)
    desk.log.is_away = True
    with pytest.raises(UnavailableError):
        await desk.promote(adapter, evaluation)
    with pytest.raises(UnavailableError):
        await desk.adapters.revoke(pb.RevokeAdapterRequest(name=adapter.name, reason="it lies"), CALLER)
    assert desk.registry.revocations.revoked == frozenset()
    assert desk.registry.shelf.read_manifest(adapter.name) == adapter.manifest


async def test_another_tenant_finds_nothing(desk: Desk) -> None:
    adapter = await desk.promoted()
    with pytest.raises(NotFoundError):
        await desk.adapters.get(pb.GetAdapterRequest(name=adapter.name), STRANGER)
    with pytest.raises(NotFoundError):
        await desk.adapters.revoke(pb.RevokeAdapterRequest(name=adapter.name, reason="mine"), STRANGER)
    assert not (await desk.adapters.list(pb.ListAdaptersRequest(), STRANGER)).adapters
    with pytest.raises(NotFoundError):
        await desk.promote(adapter, evaluation_of(adapter_gate(adapter), adapter), tenant="others")


def adapter_gate(adapter: registry_pb2.Adapter):
    return adapter_pb2.AdapterManifest.FromString(adapter.manifest.manifest).gates[0]


async def test_a_revoked_adapter_and_what_was_built_on_it_serve_no_more(desk: Desk) -> None:
    parent = await desk.promoted()
    child = await desk.promoted(stem="adapters/built", ancestors=(await ancestor(desk, parent),))
    desk.serves(child)
    answer = await desk.adapters.revoke(pb.RevokeAdapterRequest(name=parent.name, reason="it lies"), CALLER)
    assert answer.adapter.state == registry_pb2.ADAPTER_STATE_REVOKED
    assert list(answer.descendants) == [child.name]
    assert desk.log.kinds[-1] == "adapter.revoked"
    listed = verify_revocations(answer.revocations, public(TRAINER))
    assert [(item.adapter_digest, item.reason) for item in listed.revocations] == [
        (parent.adapter_digest, "it lies")
    ]
    for adapter in (parent, child):
        with pytest.raises(VerificationError, match="is revoked"):
            desk.serves(adapter)
        found = (await desk.adapters.get(pb.GetAdapterRequest(name=adapter.name), CALLER)).adapter
        assert found.state == registry_pb2.ADAPTER_STATE_REVOKED
        with pytest.raises(FailedPreconditionError, match="is revoked"):
            await desk.promote(found, evaluation_of(adapter_gate(adapter), adapter))
    with pytest.raises(NotFoundError):
        await desk.adapters.get(pb.GetAdapterRequest(name="adapters/new-task"), CALLER)


async def ancestor(desk: Desk, parent: registry_pb2.Adapter) -> adapter_pb2.Ancestor:
    """Makes the parent's merge the base of what is trained next."""
    merged = TrainedWorld(desk.root / "work").base
    (merged / "model.safetensors").write_bytes(safetensors({"gpt_neox.embed_in.weight": [16, 4]}))
    digest = TrainedWorld(desk.root / "work").base_digest
    export = registry_pb2.Export(
        adapter=parent.name, format=registry_pb2.EXPORT_FORMAT_MERGED, model_digest=digest
    )
    await desk.registry.store.put_export("operations/" + "7" * 32, export, tenant="default", owner="key-1")
    (found,) = await desk.registry.ancestors([parent.reference], digest, tenant="default")
    return found


async def test_a_parent_that_was_never_promoted_is_no_base(desk: Desk) -> None:
    parent = await desk.candidate()
    with pytest.raises(FailedPreconditionError, match="evaluate and promote it first"):
        await desk.registry.ancestors([parent.reference], bytes(32), tenant="default")


async def test_lists_come_in_pages_without_manifests_and_with_revocations_once(desk: Desk) -> None:
    for _ in range(3):
        await desk.candidate()
    first = await desk.adapters.list(pb.ListAdaptersRequest(page_size=2), CALLER)
    rest = await desk.adapters.list(
        pb.ListAdaptersRequest(page_size=2, page_token=first.next_page_token), CALLER
    )
    assert [item.name for item in [*first.adapters, *rest.adapters]] == [
        f"adapters/new-task@{n}" for n in (3, 2, 1)
    ]
    assert not first.adapters[0].HasField("manifest")
    assert (first.HasField("revocations"), rest.HasField("revocations")) == (True, False)
    assert not rest.next_page_token


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.RevokeAdapterRequest(name="adapters/x@1"), "reason"),
        (pb.RevokeAdapterRequest(name="adapters/x", reason="it lies"), "name"),
        (pb.ListAdaptersRequest(page_size=1001), "page_size"),
        (pb.ListAdaptersRequest(base_digest=b"short"), "base_digest"),
        (pb.GetAdapterRequest(name="jobs/x"), "name"),
    ],
    ids=["reason", "version", "page", "digest", "collection"],
)
async def test_a_wrong_field_is_named(desk: Desk, request_, field: str) -> None:
    calls = {
        pb.RevokeAdapterRequest: desk.adapters.revoke,
        pb.ListAdaptersRequest: desk.adapters.list,
        pb.GetAdapterRequest: desk.adapters.get,
    }
    with pytest.raises(InvalidArgumentError) as refused:
        await calls[type(request_)](request_, CALLER)
    assert refused.value.field == field


async def test_a_promoted_adapter_is_published_whole_and_promoting_again_mends_it(desk: Desk) -> None:
    place = desk.root / "published"
    desk.adapters.publish = Publisher(f"file://{place}", desk.registry.shelf).publish
    adapter = await desk.promoted()
    folder = desk.registry.shelf.folder(adapter.name)
    there = place / "new-task@1"
    assert {path.name: path.read_bytes() for path in there.iterdir()} == {
        path.name: path.read_bytes() for path in folder.path.iterdir()
    }
    (there / WEIGHTS_FILE).write_bytes(b"damaged")
    await desk.promote(adapter, evaluation_of(adapter_gate(adapter), adapter))
    assert (there / WEIGHTS_FILE).read_bytes() == (folder.path / WEIGHTS_FILE).read_bytes()


async def test_a_place_that_takes_nothing_is_named(desk: Desk) -> None:
    (desk.root / "file").write_text("")
    desk.adapters.publish = Publisher(f"file://{desk.root / 'file'}/below", desk.registry.shelf).publish
    with pytest.raises(UnavailableError, match="check publish_url") as refused:
        await desk.promoted()
    assert refused.value.reason == "PUBLISHING_FAILED"
    # It is promoted all the same, and the log says so.
    assert desk.log.kinds == ["adapter.promoting", "adapter.promoted"]
    with pytest.raises(InvalidArgumentError, match="cannot be reached from here") as unknown:
        require_known("nowhere://somebody:hunter2@bucket")
    assert "hunter2" not in str(unknown.value)


@pytest.mark.parametrize("url", ["ftp://somebody:hunter2@127.0.0.1:1/x", "memory://somebody:hunter2@host/x"])
async def test_a_place_s_password_is_told_to_nobody(desk: Desk, url: str) -> None:
    require_known(url)
    desk.adapters.publish = Publisher(url, desk.registry.shelf).publish
    said = ""
    with capture_logs() as logged:
        try:
            await desk.promoted()
        except UnavailableError as error:
            said = error.message
    assert "hunter2" not in said + str(logged)
    assert bool(said) != bool(logged)


async def test_a_promotion_whose_caller_goes_away_is_made_and_logged_whole(desk: Desk) -> None:
    candidate = await desk.candidate()
    evaluation = await desk.evaluated(candidate)
    registry, begun = desk.registry.promote, asyncio.Event()

    async def slow(*given, **named):
        begun.set()
        await asyncio.sleep(0.05)
        return await registry(*given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Registry, "promote", lambda _self, *given, **named: slow(*given, **named))
        asking = asyncio.ensure_future(desk.promote(candidate, evaluation))
        await begun.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=5)
    assert desk.log.kinds == ["adapter.promoting", "adapter.promoted"]
    desk.serves(await desk.registry.store.get_adapter(candidate.name, "default"))


async def test_a_folder_is_verified_without_any_service(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = await desk.promoted()
    folder = desk.registry.shelf.folder(adapter.name).path
    for name, key in (("trainer", TRAINER), ("ethics", ETHICS), ("tools", TOOLS)):
        write_public_key(desk.root / f"{name}.pub", key.public_key())
    (desk.root / "log.vkey").write_text(f"{LOG.verifier}\n")
    (desk.root / "profile.json").write_bytes(desk.gates.profile)
    pinned = [
        str(folder), "--trainer-key", f"{desk.root}/trainer.pub", "--ethics-key", f"{desk.root}/ethics.pub",
        "--tools-key", f"{desk.root}/tools.pub", "--log-key", f"{desk.root}/log.vkey",
        "--profile", f"{desk.root}/profile.json", "--constitution", CONSTITUTION.hex(),
        "--revocations", f"{desk.root}/revocations.binpb",
    ]  # fmt: skip
    assert verify.main(pinned) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["datasets"][0]["digest"] == adapter.description.datasets[0].digest.hex()
    assert shown["training"]["intent_receipt"] == "rcpt_" + "3" * 32

    assert verify.main([*pinned, "--base-digest", "00" * 32]) == 1
    (folder / WEIGHTS_FILE).write_bytes(b"altered")
    assert verify.main(pinned) == 1
    assert f"file {WEIGHTS_FILE}" in capsys.readouterr().err
    assert verify.main(["/nowhere", "--trainer-key", f"{desk.root}/trainer.pub"]) == 1


async def test_a_promotion_that_was_cut_is_mended(desk: Desk) -> None:
    adapter = await desk.promoted()
    candidate = await desk.candidate(stem="adapters/other")
    desk.registry.shelf.replace_manifest(adapter.name, candidate.manifest)
    assert (await desk.registry.mended(adapter.name, tenant="default")).manifest == adapter.manifest
    assert desk.registry.shelf.read_manifest(adapter.name) == adapter.manifest
