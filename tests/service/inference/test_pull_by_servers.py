"""PullModel where a model server gets the model itself: Ollama's stream of lines, LM Studio's download job."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from kala.errors import InvalidArgumentError, KalaError, NotFoundError, UnavailableError
from kala.inference.v1 import inference_pb2 as pb
from services.common.status import translated
from services.inference.pull import servers
from tests.fakes.model_server import FakeModelServer, Hang, Scripted, as_json, in_turn
from tests.service.inference.conftest import StartSuite, Suite, until

DIGEST = "sha256:" + "ab" * 32
PULL = "/api/pull"
DOWNLOAD = "/api/v1/models/download"


@pytest.fixture
async def server() -> AsyncIterator[FakeModelServer]:
    async with FakeModelServer(like_llama_server=False) as fake:
        fake.on("GET", "/api/tags", as_json({"models": []}))
        fake.on("GET", "/api/v1/models", as_json({"models": []}))
        yield fake


@pytest.fixture
async def suite(start: StartSuite, server: FakeModelServer) -> Suite:
    return await start(ollama_url=server.url, lmstudio_url=server.url)


def told(*lines: object) -> Scripted:
    steps = [json.dumps(line).encode() + b"\n" for line in lines]
    return Scripted(steps, 200, {"content-type": "application/x-ndjson"}, framing="chunked")


async def pull(
    suite: Suite, backend: str, source: str = "qwen3:4b", **fields: str
) -> list[pb.PullModelResponse]:
    with translated():
        request = pb.PullModelRequest(source=source, backend=f"backends/{backend}", **fields)
        return [response async for response in suite.stub.PullModel(request)]


async def test_ollama_tells_its_progress_and_its_digests(suite: Suite, server: FakeModelServer) -> None:
    layer = {"status": "pulling abab", "digest": DIGEST, "total": 100}
    server.on(
        "POST",
        PULL,
        told(
            {"status": "pulling manifest"},
            layer,
            {**layer, "completed": 40},
            {**layer, "completed": 100},
            {"status": "verifying sha256 digest"},
            {"status": "success"},
        ),
    )
    *progress, last = await pull(suite, "ollama")
    assert [message.received_bytes for message in progress] == [0, 0, 40, 100, 100]
    assert progress[2].total_bytes == 100
    assert not progress[0].HasField("total_bytes")
    assert [(file.name, file.sha256.hex(), file.bytes) for file in last.files] == [(DIGEST, "ab" * 32, 100)]
    (asked,) = [seen.json() for seen in server.requests if seen.path == PULL]
    assert asked == {"model": "qwen3:4b", "stream": True}


@pytest.mark.parametrize(
    ("script", "error", "says"),
    [
        (
            told({"error": "pull model manifest: file does not exist"}),
            NotFoundError,
            "file does not exist",
        ),
        (as_json({"error": "model 'x' not found"}, status=404), NotFoundError, "ollama finds no such model"),
        (told({"status": "pulling manifest"}), UnavailableError, "without a success"),
        (told(["no object"]), UnavailableError, "no JSON object"),
        (as_json({"error": "boom"}, status=500), UnavailableError, "answered 500: boom"),
        (Scripted([b"<html>"], 200, {}, framing="chunked"), UnavailableError, "without a success"),
    ],
    ids=["inside a 200", "404", "cut", "no object", "500", "web page"],
)
async def test_what_ollama_cannot_get_is_told(
    suite: Suite, server: FakeModelServer, script: Scripted, error: type[KalaError], says: str
) -> None:
    server.on("POST", PULL, script)
    with pytest.raises(error, match=says):
        await pull(suite, "ollama")


async def test_leaving_stops_ollama(suite: Suite, server: FakeModelServer) -> None:
    head = json.dumps({"status": "pulling manifest"}).encode() + b"\n"
    server.on("POST", PULL, Scripted([head, Hang()], 200, {}, framing="chunked"))
    call = suite.stub.PullModel(pb.PullModelRequest(source="qwen3:4b", backend="backends/ollama"))
    assert (await call.read()).file == "pulling manifest"
    call.cancel()
    await until(server.client_left.is_set)


async def test_lm_studio_tells_the_progress_of_its_job(
    suite: Suite, server: FakeModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "POLL_SECONDS", 0.0)
    job = {"job_id": "job_1", "status": "downloading", "total_size_bytes": 100}
    server.on("POST", DOWNLOAD, as_json(job))
    server.on("GET", f"{DOWNLOAD}/status/job_1", as_json({**job, "downloaded_bytes": 60}))
    call = suite.stub.PullModel(pb.PullModelRequest(source="qwen/qwen3-4b", backend="backends/lmstudio"))
    messages = aiter(call)
    received = [(await anext(messages)).received_bytes, (await anext(messages)).received_bytes]
    server.on(
        "GET", f"{DOWNLOAD}/status/job_1", as_json({**job, "status": "completed", "downloaded_bytes": 100})
    )
    rest = [message async for message in messages]
    assert received == [0, 60]
    assert (rest[-1].received_bytes, rest[-1].total_bytes, list(rest[-1].files)) == (100, 100, [])


async def test_a_model_that_lm_studio_has_is_got_at_once(suite: Suite, server: FakeModelServer) -> None:
    server.on("POST", DOWNLOAD, as_json({"status": "already_downloaded"}))
    assert len(await pull(suite, "lmstudio")) == 1


@pytest.mark.parametrize(
    ("script", "error", "says"),
    [
        (as_json({"error": "Unexpected endpoint or method. (POST /api/v1/models/download)"}), UnavailableError, "before LM Studio 0.4.0; use `lms get`"),
        (as_json({"error": {"type": "model_not_found", "message": "no such"}}, status=404), NotFoundError, "finds no such model"),
        (as_json({"job_id": "j", "status": "failed"}), UnavailableError, "could not get the model: failed"),
        (as_json({"status": "downloading"}), UnavailableError, "could not get the model"),
    ],
    ids=["old version", "unknown", "failed", "no job"],
)  # fmt: skip
async def test_what_lm_studio_cannot_get_is_told(
    suite: Suite, server: FakeModelServer, script: Scripted, error: type[KalaError], says: str
) -> None:
    server.on("POST", DOWNLOAD, script)
    with pytest.raises(error, match=says):
        await pull(suite, "lmstudio")


async def test_one_missed_look_at_a_job_does_not_end_it(
    suite: Suite, server: FakeModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "POLL_SECONDS", 0.0)
    server.on("POST", DOWNLOAD, as_json({"job_id": "j", "status": "downloading"}))
    completed = {"job_id": "j", "status": "completed"}
    server.on(
        "GET", f"{DOWNLOAD}/status/j", in_turn(as_json({"error": "busy"}, status=500), as_json(completed))
    )
    assert len(await pull(suite, "lmstudio")) >= 2


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"source": ""}, "source: must name a model"),
        ({"revision": "v1"}, "revision: is for pulls without a backend"),
    ],
    ids=["source", "revision"],
)
async def test_what_a_server_cannot_take_is_refused(suite: Suite, fields: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        await pull(suite, "ollama", **fields)
