"""A real llama-server: loading in router mode, its LoRA adapters, and Anthropic's protocol as it speaks it.

It is not built here: KALA_TEST_LLAMA_SERVER names the program, or it is on PATH.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from kala.errors import FailedPreconditionError, InvalidArgumentError
from kala.inference.v1 import inference_pb2 as pb
from services.common.status import translated
from tests.fakes.model_server import Cut, FakeModelServer, as_stream, chunk
from tests.fakes.tiny_gguf import make_tiny_llama, make_tiny_lora
from tests.service.inference.conftest import Suite, action, running

PROGRAM = os.environ.get("KALA_TEST_LLAMA_SERVER") or shutil.which("llama-server")

pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="no llama-server on PATH and none named by KALA_TEST_LLAMA_SERVER"
)

LOAD = "/kala.inference.v1.InferenceService/LoadModel"
LISTEN_SECONDS = 60
GREEDY = pb.Sampling(temperature=0, max_output_tokens=12)


@asynccontextmanager
async def llama_server(*arguments: str) -> AsyncIterator[str]:
    """Run it on a free port and give its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    process = await asyncio.create_subprocess_exec(
        str(PROGRAM), "--host", "127.0.0.1", "--port", port, "--threads", "1", "--offline", *arguments,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(LISTEN_SECONDS), httpx.AsyncClient() as client:
            while True:
                assert process.returncode is None, "llama-server ended"
                try:
                    if (await client.get(f"{url}/health")).status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.05)
        yield url
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models in one directory."""
    directory = tmp_path_factory.mktemp("models")
    make_tiny_llama(directory / "first.gguf", context_tokens=512, seed=1)
    make_tiny_llama(directory / "second.gguf", context_tokens=512, seed=2)
    return directory


async def load(suite: Suite, model: str, context: int | None = None) -> pb.Model:
    wanted = pb.LoadModelAction(backend="backends/llamacpp", model=model, context_tokens=context)
    sealed = suite.ethics.seal(wanted, audience=LOAD)
    with translated():
        return (await suite.stub.LoadModel(pb.LoadModelRequest(sealed=sealed))).model


async def test_router_mode_loads_serves_and_unloads(tmp_path: Path, models: Path) -> None:
    arguments = ("--models-dir", str(models), "--no-models-autoload", "--ctx-size", "256", "--parallel", "1")
    async with llama_server(*arguments) as url, running(tmp_path, llamacpp_url=url) as suite:
        with pytest.raises(FailedPreconditionError, match="no model is loaded"):
            await suite.chat()
        loaded = await load(suite, "first")
        assert (loaded.state, loaded.context_tokens) == (pb.LOAD_STATE_LOADED, 256)
        assert await load(suite, "first", 256) == loaded
        answer = await suite.chat(action(sampling=GREEDY))
        assert (answer.route.model, bool(answer.text)) == ("first", True)
        with pytest.raises(FailedPreconditionError, match="256 tokens of context instead of 512"):
            await load(suite, "second", 512)
        request = pb.UnloadModelRequest(backend="backends/llamacpp", model="first")
        assert (await suite.stub.UnloadModel(request)).model.state == pb.LOAD_STATE_NOT_LOADED
        with pytest.raises(FailedPreconditionError, match="no model is loaded"):
            await suite.chat()


async def test_a_lora_of_its_command_line_changes_nothing_that_is_served(
    tmp_path: Path, models: Path
) -> None:
    model, lora = str(models / "first.gguf"), str(make_tiny_lora(tmp_path / "lora.gguf"))
    texts = {}
    for name, more in {"without": (), "with": ("--lora", lora)}.items():
        async with llama_server("-m", model, "--alias", "tiny", "--ctx-size", "256", *more) as url:
            body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12, "temperature": 0}
            async with httpx.AsyncClient() as client:
                raw = (await client.post(f"{url}/v1/chat/completions", json=body, timeout=30)).json()
            async with running(tmp_path, llamacpp_url=url) as suite:
                served = (await suite.chat(action(sampling=GREEDY))).text
            texts[name] = (raw["choices"][0]["message"]["content"], served)
    # Asked directly, the adapter speaks; asked through KALA, the model does.
    assert texts["with"][0] != texts["without"][0]
    assert texts["with"][1] == texts["without"][1]


async def test_a_lora_of_a_model_that_a_request_loads_changes_nothing_either(
    tmp_path: Path, models: Path
) -> None:
    model, lora = models / "first.gguf", make_tiny_lora(tmp_path / "lora.gguf")
    preset = tmp_path / "preset.ini"
    entry = f"model = {model}\nctx-size = 256\n"
    preset.write_text(f"[plain]\n{entry}[adapted]\nlora = {lora}\n{entry}")
    async with (
        llama_server("--models-preset", str(preset)) as url,
        running(tmp_path, llamacpp_url=url) as suite,
    ):
        adapted = await suite.chat(action(model="adapted", sampling=GREEDY))
        assert adapted.text == (await suite.chat(action(model="plain", sampling=GREEDY))).text


async def test_anthropics_protocol_is_read_as_a_real_server_speaks_it(tmp_path: Path, models: Path) -> None:
    arguments = ("-m", str(models / "first.gguf"), "--alias", "claude-tiny", "--ctx-size", "256")
    async with llama_server(*arguments) as url:
        settings = {"anthropic_api_key": "k", "anthropic_url": url, "anthropic_model": "claude-tiny"}
        async with running(tmp_path, llamacpp_url=url, **settings) as suite:
            local = await suite.chat(action(sampling=GREEDY, provider="llamacpp"))
            wanted = {"sampling": GREEDY, "provider": "anthropic", "allow_remote": True}
            for stream in (True, False):
                remote = await suite.chat(action(stream=stream, **wanted))
                assert (remote.text, remote.route.remote) == (local.text, True)
                assert remote.finish.reason == pb.FINISH_REASON_LENGTH
                assert remote.finish.usage.input_tokens == local.finish.usage.input_tokens
            with pytest.raises(InvalidArgumentError) as caught:
                await suite.chat(action("word " * 400, **wanted))
            assert caught.value.reason == "CONTEXT_LENGTH_EXCEEDED"


async def test_a_text_that_broke_off_is_gone_on_with_and_not_repeated(tmp_path: Path, models: Path) -> None:
    arguments = ("-m", str(models / "first.gguf"), "--alias", "tiny", "--ctx-size", "256")
    async with (
        FakeModelServer() as broken,
        llama_server(*arguments) as url,
        running(tmp_path, llamacpp_url=broken.url, llamacpp_urls=(url,)) as suite,
    ):
        broken.on_chat(as_stream(chunk("Once upon"), Cut()))
        going_on = pb.MID_STREAM_POLICY_CONTINUE
        answer = await suite.chat(action(stream=True, sampling=GREEDY, mid_stream=going_on))
    assert [attempt.reason for attempt in answer.finish.attempts] == ["STREAM_CUT", ""]
    assert answer.finish.attempts[1].spliced
    # The prompt ends with the text so far; the answer begins after it.
    assert answer.text.count("Once upon") == 1
    assert len(answer.text) > len("Once upon")
