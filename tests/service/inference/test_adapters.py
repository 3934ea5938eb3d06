"""Signed adapters on the model in process: what they change, beside whom, and which are turned away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from kala.common.v1 import adapter_pb2
from kala.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    KalaError,
    NotFoundError,
    VerificationError,
)
from kala.inference.v1 import inference_pb2 as pb
from services.common.adapter_manifest import sign_revocations
from services.common.keys import write_public_key
from services.common.status import translated
from tests.fakes.adapters import CONSTITUTION, ETHICS, LOG, TOOLS, TRAINER, key, profile_file
from tests.fakes.model_server import FakeModelServer
from tests.fakes.tiny_adapters import TinyAdapter, merged
from tests.fakes.tiny_pythia import make_tiny_pythia
from tests.service.inference.conftest import CHAT, Answer, StartSuite, Suite, action

pytestmark = pytest.mark.torch

LOAD = "/kala.inference.v1.InferenceService/LoadAdapter"
OTHER_LAWS = bytes(range(32))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_pythia(tmp_path_factory.mktemp("tiny"))


@dataclass
class Desk:
    """A suite that verifies adapters, and its administrator."""

    suite: Suite
    directory: Path
    revocations: Path

    async def load(
        self,
        adapter: TinyAdapter,
        /,
        *,
        tenant: str = "default",
        laws: bytes = CONSTITUTION,
        manifest: adapter_pb2.SignedAdapterManifest | None = None,
        **fields: Any,
    ) -> pb.LoadAdapterResponse:
        folder = self.directory / adapter.name.replace("/", "-")
        written = None if folder.exists() and manifest else adapter.write(folder)
        wanted = pb.LoadAdapterAction(
            **{
                "adapter": adapter.name,
                "backend": "backends/pythia",
                "manifest": manifest or written,
                "location": folder.name,
                **fields,
            }
        )
        sealed = self.suite.ethics.seal(wanted, audience=LOAD, tenant=tenant, constitution_digest=laws)
        with translated():
            return await self.suite.stub.LoadAdapter(pb.LoadAdapterRequest(sealed=sealed))

    async def unload(self, name: str) -> None:
        with translated():
            await self.suite.stub.UnloadAdapter(pb.UnloadAdapterRequest(adapter=name))

    def call(
        self, *adapters: str, tenant: str = "default", laws: bytes = CONSTITUTION, **sampling: Any
    ) -> Any:
        drawn = pb.Sampling(**{"max_output_tokens": 20, "temperature": 0, **sampling})
        wanted = action("Hello", adapters=adapters, sampling=drawn, stream=True)
        sealed = self.suite.ethics.seal(wanted, audience=CHAT, tenant=tenant, constitution_digest=laws)
        return self.suite.stub.Chat(pb.ChatRequest(sealed=sealed))

    async def chat(self, *adapters: str, **how: Any) -> Answer:
        with translated():
            return Answer([response async for response in self.call(*adapters, **how)])

    def revoke(self, *digests: bytes, serial: int = 1) -> None:
        listed = adapter_pb2.RevocationList(
            schema=1,
            serial=serial,
            signed_at=Timestamp(seconds=1),
            revocations=[
                adapter_pb2.Revocation(adapter_digest=digest, reason="test", revoked_at=Timestamp(seconds=1))
                for digest in digests
            ],
        )
        self.revocations.write_bytes(sign_revocations(listed, TRAINER).SerializeToString())


def pinned(directory: Path, **changes: object) -> dict[str, object]:
    """Write the operator's pinned files and give the settings that name them."""
    for name, private in (("trainer", TRAINER), ("ethics", ETHICS), ("tools", TOOLS)):
        path = directory / f"{name}.pub"
        if not path.exists():
            write_public_key(path, private.public_key())
    (directory / "log.vkey").write_text(f"{LOG.verifier}\n")
    (directory / "profile.json").write_bytes(profile_file())
    return {
        "trainer_public_keys": (directory / "trainer.pub",),
        "ethics_public_keys": (directory / "ethics.pub",),
        "tools_public_keys": (directory / "tools.pub",),
        "audit_vkey_file": directory / "log.vkey",
        "gate_profiles": (directory / "profile.json",),
        "adapter_revocations": directory / "revocations.binpb",
        "adapters_dir": directory / "adapters",
        **changes,
    }


StartDesk = Callable[..., "asyncio.Future[Desk]"]


@pytest.fixture
def start_desk(start: StartSuite, tiny: Path, tmp_path: Path) -> StartDesk:
    async def starter(**changes: object) -> Desk:
        directory = tmp_path / "adapters"
        directory.mkdir(exist_ok=True)
        desk = Desk(None, directory, tmp_path / "revocations.binpb")  # type: ignore[arg-type]  # made below
        desk.revoke()
        desk.suite = await start(**{"model_dir": tiny, **pinned(tmp_path), **changes})
        return desk

    return starter


@pytest.fixture
async def desk(start_desk: StartDesk) -> Desk:
    return await start_desk()


# --- what an adapter does


@pytest.mark.parametrize("rank_stabilised", [False, True])
async def test_it_answers_as_the_merged_model_would(
    desk: Desk, start: StartSuite, tiny: Path, tmp_path: Path, rank_stabilised: bool
) -> None:
    tone = TinyAdapter(tiny, rank_stabilised=rank_stabilised)
    plain = (await desk.chat()).text
    await desk.load(tone)
    adapted = await desk.chat(tone.name)
    ground = await start(model_dir=merged(tiny, tmp_path / "merged", tone))
    truth = await ground.chat(
        action("Hello", sampling=pb.Sampling(max_output_tokens=20, temperature=0), stream=True)
    )
    assert adapted.text == truth.text != plain
    assert (await desk.chat()).text == plain


async def test_requests_with_different_adapters_share_a_batch(desk: Desk, tiny: Path) -> None:
    tone, law = TinyAdapter(tiny), TinyAdapter(tiny, name="adapters/law@2", seed=2)
    await desk.load(tone)
    await desk.load(law)
    mixes = [(), (tone.name,), (law.name,), (tone.name, law.name)]
    alone = [(await desk.chat(*mix)).text for mix in mixes]
    assert len(set(alone)) == len(mixes)
    together = await asyncio.gather(*(desk.chat(*mix) for mix in mixes * 2))
    assert [answer.text for answer in together] == alone * 2


async def test_it_is_applied_to_weights_in_8_bits(start_desk: StartDesk, tiny: Path) -> None:
    pytest.importorskip("bitsandbytes")
    desk = await start_desk(pythia_quantization="8bit")
    plain = (await desk.chat()).text
    tone = TinyAdapter(tiny)
    await desk.load(tone)
    assert (await desk.chat(tone.name)).text != plain
    assert (await desk.chat()).text == plain


async def test_the_route_names_adapters_with_their_digests(desk: Desk, tiny: Path) -> None:
    tone = TinyAdapter(tiny)
    await desk.load(tone)
    (shown,) = (await desk.chat(tone.name)).route.adapters
    assert (shown.name, shown.sha256) == (tone.name, tone.world.digest)
    assert not (await desk.chat()).route.adapters


async def test_its_own_chat_template_is_used(desk: Desk, tiny: Path) -> None:
    tone = TinyAdapter(tiny, template="{% for message in messages %}{{ message['content'] }}{% endfor %}")
    await desk.load(tone)
    assert (await desk.chat(tone.name)).finish.usage.input_tokens == len("Hello")
    assert (await desk.chat()).finish.usage.input_tokens > len("Hello")


async def test_two_chat_templates_at_once_are_refused(desk: Desk, tiny: Path) -> None:
    one = TinyAdapter(tiny, template="{{ messages[0]['content'] }}")
    two = TinyAdapter(tiny, name="adapters/law@2", template="{{ messages[-1]['content'] }}!")
    await desk.load(one)
    await desk.load(two)
    with pytest.raises(InvalidArgumentError, match="different chat templates"):
        await desk.chat(one.name, two.name)


async def test_an_answer_under_way_keeps_its_adapter_to_its_end(desk: Desk, tiny: Path) -> None:
    tone = TinyAdapter(tiny)
    await desk.load(tone)
    whole = await desk.chat(tone.name, max_output_tokens=50)
    responses = []
    async for response in desk.call(tone.name, max_output_tokens=50):
        if not responses:
            await desk.unload(tone.name)
        responses.append(response)
    assert Answer(responses).text == whole.text
    with pytest.raises(NotFoundError, match=r"adapters/tone@1 is not loaded"):
        await desk.chat(tone.name)


async def test_loading_it_twice_is_no_error_and_another_of_its_name_is(desk: Desk, tiny: Path) -> None:
    await desk.load(TinyAdapter(tiny))
    await desk.load(TinyAdapter(tiny))
    with pytest.raises(AlreadyExistsError, match="unload that first"):
        await desk.load(TinyAdapter(tiny, seed=2))


async def test_unloading_what_is_not_there_says_so(desk: Desk) -> None:
    with pytest.raises(NotFoundError, match="none is"):
        await desk.unload("adapters/tone@1")


async def test_unloading_the_model_takes_its_adapters_out(desk: Desk, tiny: Path) -> None:
    tone = TinyAdapter(tiny)
    await desk.load(tone)
    with translated():
        await desk.suite.stub.UnloadModel(pb.UnloadModelRequest(backend="backends/pythia", model=tiny.name))
    with pytest.raises(FailedPreconditionError, match="in service"):
        await desk.chat(tone.name)
    await desk.load(tone)
    assert (await desk.chat(tone.name)).route.adapters


# --- what is turned away


def ungated(adapter: TinyAdapter) -> None:
    adapter.world.on_manifest = lambda manifest: manifest.ClearField("gates")


def stranger(adapter: TinyAdapter) -> None:
    adapter.world.signer = key("stranger")


def failed_gate(adapter: TinyAdapter) -> None:
    adapter.world.on_result = lambda result: setattr(result.metrics[0], "hits", 900)


def other_base(adapter: TinyAdapter) -> None:
    adapter.base = make_tiny_pythia(adapter.base.parent / "other", context_tokens=32)


def labels(adapter: TinyAdapter) -> None:
    def change(description: adapter_pb2.AdapterDescription) -> None:
        adapter.describe(description)
        description.task = adapter_pb2.ADAPTER_TASK_CLASSIFICATION
        description.labels.extend(["good", "bad"])

    adapter.world.on_description = change


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (ungated, "has passed none"),
        (stranger, "no trusted key signed it"),
        (failed_gate, "law_correct says 900"),
        (other_base, "base digest"),
        (labels, "serves no chat"),
    ],
)
async def test_what_is_not_gated_signed_and_for_this_base_never_serves(
    desk: Desk, tiny: Path, damage: Callable[[TinyAdapter], None], problem: str
) -> None:
    adapter = TinyAdapter(tiny)
    damage(adapter)
    with pytest.raises((VerificationError, FailedPreconditionError), match=problem):
        await desk.load(adapter)
    with pytest.raises(NotFoundError):
        await desk.chat(adapter.name)


async def test_changed_weights_are_refused(desk: Desk, tiny: Path) -> None:
    adapter = TinyAdapter(tiny)
    folder = desk.directory / "adapters-tone@1"
    manifest = adapter.write(folder)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(
        (VerificationError, FailedPreconditionError), match=r"adapter_model.safetensors: SHA-256"
    ):
        await desk.load(adapter, manifest=manifest)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"gate_profiles": ()}, "KALA_INFERENCE_GATE_PROFILES"),
        ({"trainer_public_keys": (), "adapter_revocations": None}, "KALA_INFERENCE_TRAINER_PUBLIC_KEYS"),
        ({"audit_vkey_file": None}, "KALA_INFERENCE_AUDIT_VKEY_FILE"),
        ({"tools_public_keys": ()}, "no trusted key of ethics or tools"),
    ],
)
async def test_without_what_it_is_held_against_none_is_loaded(
    start_desk: StartDesk, tiny: Path, settings: dict[str, object], problem: str
) -> None:
    desk = await start_desk(**settings)
    with pytest.raises((FailedPreconditionError, VerificationError), match=problem):
        await desk.load(TinyAdapter(tiny))


async def test_a_demonstrations_profile_serves_only_where_it_is_allowed(
    start_desk: StartDesk, tiny: Path, tmp_path: Path
) -> None:
    adapter = TinyAdapter(tiny)
    adapter.world.profile = profile_file(demo=True)
    demo = tmp_path / "demo.json"
    demo.write_bytes(adapter.world.profile)
    desk = await start_desk(gate_profiles=(demo,))
    with pytest.raises((FailedPreconditionError, VerificationError), match="demonstration"):
        await desk.load(adapter)
    allowed = await start_desk(gate_profiles=(demo,), allow_demo_profiles=True)
    assert (await allowed.load(adapter)).adapter == adapter.name


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"location": "https://example.org/tone"}, "URLs are not fetched"),
        ({"location": "../.."}, "KALA_INFERENCE_ADAPTERS_DIR"),
        ({"location": "/etc"}, "KALA_INFERENCE_ADAPTERS_DIR"),
        ({"location": "nowhere"}, "there is no directory"),
        ({"adapter": "adapters/other@1"}, r"the manifest is that of adapters/tone@1"),
        ({"backend": "backends/nowhere"}, "there is no backends/nowhere"),
    ],
)
async def test_a_wrong_field_is_named(desk: Desk, tiny: Path, fields: dict[str, str], problem: str) -> None:
    with pytest.raises(KalaError, match=problem):
        await desk.load(TinyAdapter(tiny), **fields)


async def test_a_model_server_takes_none(start_desk: StartDesk, tiny: Path, llama: FakeModelServer) -> None:
    desk = await start_desk(llamacpp_url=llama.url)
    with pytest.raises(FailedPreconditionError, match="takes no signed adapters"):
        await desk.load(TinyAdapter(tiny), backend="backends/llamacpp")


async def test_a_server_that_cannot_apply_it_is_never_a_fallback(
    start_desk: StartDesk, tiny: Path, llama: FakeModelServer
) -> None:
    desk = await start_desk(llamacpp_url=llama.url)
    tone = TinyAdapter(tiny)
    await desk.load(tone)
    # llama.cpp goes before Pythia in the chain.
    assert (await desk.chat(tone.name)).route.backend == "backends/pythia"


async def test_a_name_means_one_adapter_whatever_the_backend(
    start_desk: StartDesk, tiny: Path, tmp_path: Path
) -> None:
    # A request names no backend and no digest: it would get the other one, which may be another tenant's.
    demo = tmp_path / "demo"
    demo.mkdir()
    make_tiny_pythia(demo, context_tokens=128)
    desk = await start_desk(embedded=True, embedded_dir=demo)
    await desk.load(TinyAdapter(tiny))
    with pytest.raises(AlreadyExistsError, match="unload that first"):
        await desk.load(TinyAdapter(demo, seed=2), backend="backends/demo")


# --- whose it is, and how long


async def test_another_tenant_neither_loads_nor_uses_it(desk: Desk, tiny: Path) -> None:
    tone = TinyAdapter(tiny)
    with pytest.raises(NotFoundError):
        await desk.load(tone, tenant="other")
    await desk.load(tone)
    with pytest.raises(NotFoundError):
        await desk.chat(tone.name, tenant="other")


async def test_a_revoked_one_stops_serving_at_the_next_request(desk: Desk, tiny: Path) -> None:
    tone = TinyAdapter(tiny)
    await desk.load(tone)
    await desk.chat(tone.name)
    desk.revoke(tone.world.digest, serial=2)
    with pytest.raises(FailedPreconditionError, match="is revoked") as caught:
        await desk.chat(tone.name)
    assert caught.value.reason == "ADAPTER_REVOKED"
    with pytest.raises((VerificationError, FailedPreconditionError), match="is revoked"):
        await desk.load(tone)


@pytest.mark.parametrize("damage", ["older", "forged", "gone"])
async def test_a_revocation_list_that_does_not_hold_stops_every_adapter(
    desk: Desk, tiny: Path, damage: str
) -> None:
    tone = TinyAdapter(tiny)
    desk.revoke(bytes(32), serial=5)
    await desk.load(tone)
    if damage == "older":
        desk.revoke(serial=4)
    elif damage == "forged":
        desk.revocations.write_bytes(desk.revocations.read_bytes()[:-1] + b"\0")
    else:
        desk.revocations.unlink()
    with pytest.raises((VerificationError, FailedPreconditionError), match="revocation list"):
        await desk.chat(tone.name)
    await desk.chat()


async def test_amended_laws_put_it_out_of_service(desk: Desk, tiny: Path) -> None:
    tone = TinyAdapter(tiny)
    with pytest.raises((VerificationError, FailedPreconditionError), match="which is outdated"):
        await desk.load(tone, laws=OTHER_LAWS)
    await desk.load(tone)
    with pytest.raises(FailedPreconditionError, match="no longer in force") as caught:
        await desk.chat(tone.name, laws=OTHER_LAWS)
    assert caught.value.reason == "ADAPTER_OUTDATED"
    await desk.chat(laws=OTHER_LAWS)


async def test_a_base_that_was_changed_on_disk_takes_none(start_desk: StartDesk, tmp_path: Path) -> None:
    base = make_tiny_pythia(tmp_path / "base")
    desk = await start_desk(model_dir=base)
    await desk.chat()
    config = base / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(
        (VerificationError, FailedPreconditionError), match="changed since the model was loaded"
    ):
        await desk.load(TinyAdapter(base))
