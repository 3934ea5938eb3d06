"""PullModel: a real process that fetches from a hub of our own, and everything that can go wrong on the way."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kala.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    KalaError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
    UnimplementedError,
    VerificationError,
)
from kala.inference.v1 import inference_pb2 as pb
from kala.offline_pull import pull_offline
from services.common.status import translated
from services.inference.pull.shelf import ARRIVALS
from tests.fakes.hub import COMMIT, FakeHub, fake_hub
from tests.fakes.model_server import FakeModelServer
from tests.fakes.tiny_pythia import make_tiny_pythia
from tests.service.inference.conftest import StartSuite, Suite, until

pytest.importorskip(
    "huggingface_hub", reason="huggingface_hub is not installed: kala-suite[inference-pythia]"
)

SOURCE = "EleutherAI/pythia-70m"
WEIGHTS = bytes(range(256)) * 4096


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as server:
        server.repositories[SOURCE] = {
            "config.json": b'{"model_type": "gpt_neox", "max_position_embeddings": 64}',
            "tokenizer.json": b"{}",
            "model.safetensors": WEIGHTS,
            "pytorch_model.bin": b"a pickle",
        }
        yield server


@pytest.fixture
async def suite(start: StartSuite, hub: FakeHub, tmp_path: Path) -> Suite:
    return await start(hub_url=hub.url, models_dir=tmp_path / "models")


async def pull(suite: Suite, source: str = SOURCE, **fields: str) -> list[pb.PullModelResponse]:
    with translated():
        call = suite.stub.PullModel(pb.PullModelRequest(source=source, **fields))
        return [response async for response in call]


def arrivals(models: Path) -> list[Path]:
    return [path for path in (models / ARRIVALS).rglob("*") if path.is_file() and path.suffix != ".lock"]


async def test_a_model_arrives_whole_with_its_digests(suite: Suite, hub: FakeHub, tmp_path: Path) -> None:
    *progress, last = await pull(suite)
    assert {file.name: file.sha256 for file in last.files}["model.safetensors"] == hashlib.sha256(
        WEIGHTS
    ).digest()
    assert last.received_bytes == last.total_bytes == sum(file.bytes for file in last.files)
    received = [message.received_bytes for message in progress]
    assert received == sorted(received)
    folder = tmp_path / "models" / "pythia-70m"
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["source"], manifest["revision"]) == (SOURCE, COMMIT)
    assert sorted(manifest["files"]) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert "pytorch_model.bin" not in hub.got
    assert arrivals(tmp_path / "models") == []


async def test_what_is_here_already_is_not_fetched_again(suite: Suite, hub: FakeHub) -> None:
    first = await pull(suite)
    hub.got.clear()
    second = await pull(suite)
    assert (second[-1].files, hub.got) == (first[-1].files, [])


async def test_a_new_commit_replaces_the_old_one(suite: Suite, hub: FakeHub, tmp_path: Path) -> None:
    await pull(suite)
    hub.commit = "f" * 40
    hub.repositories[SOURCE]["model.safetensors"] = b"new weights"
    del hub.repositories[SOURCE]["tokenizer.json"]
    await pull(suite)
    folder = tmp_path / "models" / "pythia-70m"
    assert (folder / "model.safetensors").read_bytes() == b"new weights"
    assert not (folder / "tokenizer.json").exists()


async def test_a_model_that_was_pulled_can_be_asked_for(
    start: StartSuite, hub: FakeHub, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    made = make_tiny_pythia(tmp_path / "made", context_tokens=64)
    hub.repositories[SOURCE] = {
        path.name: path.read_bytes() for path in made.iterdir() if path.name != "manifest.json"
    }
    suite = await start(hub_url=hub.url, models_dir=tmp_path / "models", model_size="70m")
    (before,) = (await suite.stub.ListBackends(pb.ListBackendsRequest())).backends
    assert "kala models pull EleutherAI/pythia-70m" in before.detail
    await pull(suite)
    await suite.registry.refresh()
    (after,) = (await suite.stub.ListBackends(pb.ListBackendsRequest())).backends
    assert after.state == pb.BACKEND_STATE_READY


async def test_one_quantization_after_another_shares_a_folder(
    suite: Suite, hub: FakeHub, tmp_path: Path
) -> None:
    hub.repositories["org/tiny"] = {"tiny.Q4.gguf": b"GGUF4", "tiny.Q8.gguf": b"GGUF8"}
    for name in ("tiny.Q4.gguf", "tiny.Q8.gguf"):
        await pull(suite, f"org/tiny/{name}")
    folder = tmp_path / "models" / "tiny"
    assert (folder / "tiny.Q4.gguf").read_bytes() == b"GGUF4"
    assert sorted(json.loads((folder / "manifest.json").read_text())["files"]) == [
        "tiny.Q4.gguf",
        "tiny.Q8.gguf",
    ]


async def test_bytes_that_are_not_the_listed_ones_never_arrive(
    suite: Suite, hub: FakeHub, tmp_path: Path
) -> None:
    hub.instead["model.safetensors"] = WEIGHTS[:-1] + b"!"
    with pytest.raises(VerificationError, match=r"model\.safetensors did not arrive"):
        await pull(suite)
    assert not (tmp_path / "models" / "pythia-70m").exists()
    assert not any(path.name == "model.safetensors" for path in arrivals(tmp_path / "models"))


async def test_a_pull_that_ended_early_goes_on_with_the_next_file(suite: Suite, hub: FakeHub) -> None:
    hub.instead["model.safetensors"] = b"cut"
    with pytest.raises(KalaError):
        await pull(suite)
    hub.instead.clear()
    hub.got.clear()
    await pull(suite)
    assert hub.got.count("config.json") == 0
    assert hub.got.count("model.safetensors") == 1


async def test_a_caller_that_leaves_stops_it_and_no_half_file_stays(
    suite: Suite, hub: FakeHub, tmp_path: Path
) -> None:
    hub.held = "model.safetensors"
    call = suite.stub.PullModel(pb.PullModelRequest(source=SOURCE))
    reading = asyncio.create_task(_read_all(call))
    await until(hub.holding.is_set)
    call.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    models = tmp_path / "models"
    await until(lambda: not any(path.suffix == ".incomplete" for path in arrivals(models)))
    await until(lambda: suite_is_free(models))
    assert not (models / "pythia-70m").exists()


async def test_the_same_model_is_not_pulled_twice_at_once(suite: Suite, hub: FakeHub) -> None:
    hub.held = "model.safetensors"
    call = suite.stub.PullModel(pb.PullModelRequest(source=SOURCE))
    reading = asyncio.create_task(_read_all(call))
    await until(hub.holding.is_set)
    with pytest.raises(AlreadyExistsError, match="is being pulled already"):
        await pull(suite)
    hub.gate.set()
    await reading


async def test_a_machine_without_a_way_out_is_told_what_to_do(start: StartSuite, tmp_path: Path) -> None:
    suite = await start(hub_url="http://127.0.0.1:9", models_dir=tmp_path / "models")
    with pytest.raises(
        UnavailableError, match=r"cannot reach http://127\.0\.0\.1:9.*KALA_INFERENCE_HUB_URL to a mirror"
    ):
        await pull(suite)


@pytest.mark.parametrize(
    ("source", "fields", "error", "says"),
    [
        ("org/nothing", {}, NotFoundError, "has no repository org/nothing; a private one needs HF_TOKEN"),
        (SOURCE, {"revision": "v9"}, NotFoundError, "has no revision 'v9'"),
        ("org/gated", {}, PermissionDeniedError, "accept its terms"),
        ("pythia", {}, InvalidArgumentError, "source: must be <owner>/<repository>"),
        ("a/b" + "c" * 300, {}, InvalidArgumentError, "source: must be at most 256 characters"),
        (SOURCE, {"backend": "backends/mlx"}, NotFoundError, "there is no backends/mlx"),
    ],
    ids=["unknown", "revision", "gated", "no source", "too long", "backend"],
)
async def test_a_pull_that_cannot_be_names_its_cure(
    suite: Suite, hub: FakeHub, source: str, fields: dict[str, str], error: type[KalaError], says: str
) -> None:
    hub.gated.add("org/gated")
    with pytest.raises(error, match=says):
        await pull(suite, source, **fields)


async def test_a_server_that_cannot_pull_is_named(
    start: StartSuite, llama: FakeModelServer, tmp_path: Path
) -> None:
    suite = await start(llamacpp_url=llama.url, models_dir=tmp_path)
    with pytest.raises(UnimplementedError, match="llamacpp cannot be told to get a model"):
        await pull(suite, backend="backends/llamacpp")


async def test_a_model_over_the_bound_is_not_begun(start: StartSuite, hub: FakeHub, tmp_path: Path) -> None:
    suite = await start(hub_url=hub.url, models_dir=tmp_path / "models", max_pull_gigabytes=0.000001)
    with pytest.raises(InvalidArgumentError, match="KALA_INFERENCE_MAX_PULL_GIGABYTES"):
        await pull(suite)
    assert hub.got == []


async def test_what_somebody_put_there_is_not_touched(suite: Suite, tmp_path: Path) -> None:
    mine = tmp_path / "models" / "pythia-70m" / "config.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(AlreadyExistsError, match="holds files that were not pulled"):
        await pull(suite)
    assert mine.read_text() == "mine"


async def test_a_library_that_was_told_to_stay_offline_does(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FailedPreconditionError, match="HF_HUB_OFFLINE is set"):
        await pull(suite)


async def test_a_token_of_this_machines_user_is_not_sent(suite: Suite, hub: FakeHub) -> None:
    await pull(suite)
    assert set(hub.tokens) == {None}


@pytest.fixture
def alone(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a suite, whose settings name the hub; gives its models directory."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "models"


def test_without_a_suite_the_same_process_pulls(alone: Path) -> None:
    *_, last = pull_offline(SOURCE, to=alone)
    assert (alone / "pythia-70m" / "model.safetensors").read_bytes() == WEIGHTS
    assert {file["name"] for file in last["files"]} == {"config.json", "model.safetensors", "tokenizer.json"}


def test_whoever_stops_asking_stops_the_process_and_no_half_file_stays(alone: Path, hub: FakeHub) -> None:
    hub.held = "model.safetensors"
    steps = pull_offline(SOURCE, to=alone)
    while next(steps)["file"] != "model.safetensors" or not hub.holding.wait(20):
        pass
    steps.close()
    assert suite_is_free(alone)
    assert not any(path.suffix == ".incomplete" for path in arrivals(alone))


def test_what_goes_wrong_without_a_suite_is_one_of_our_errors(alone: Path) -> None:
    with pytest.raises(NotFoundError, match="has no repository org/nothing"):
        list(pull_offline("org/nothing", to=alone))
    with pytest.raises(InvalidArgumentError, match=r"^source: must be") as caught:
        list(pull_offline("nothing", to=alone))
    assert caught.value.field == "source"


async def _read_all(call: object) -> None:
    async for _response in call:  # type: ignore[attr-defined]  # a grpc.aio call
        pass


def suite_is_free(models: Path) -> bool:
    """Whether no process holds the lock of the source any more."""
    import fcntl

    lock = next((models / ARRIVALS).glob("*.lock"))
    with lock.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
