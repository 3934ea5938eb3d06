"""Servers that inference starts itself: watched, started again, told apart from missing ones, and never left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kala.errors import ModelNotAvailable, UnavailableError
from kala.inference.v1 import inference_pb2 as pb
from services.inference.backend import State
from services.inference.backends.make import ServerFactory
from services.inference.config import InferenceSettings
from services.inference.started.server import START_SECONDS, StartedServer
from services.inference.started.tether import __file__ as tether
from tests.fakes import llama_server_program
from tests.service.inference.conftest import Suite, action, running
from tests.service.inference.conftest import until as until_within

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    """What the next program is to do."""
    path = tmp_path / "orders"
    tell(path, "serve")
    return path


@pytest.fixture
def settings(tmp_path: Path, orders: Path) -> dict[str, object]:
    """A model, and a program that serves it."""
    model, program = tmp_path / "tiny.gguf", tmp_path / "llama-server"
    model.write_bytes(b"GGUF and weights")
    fake = Path(llama_server_program.__file__)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {fake} {orders} "$@"\n')
    program.chmod(0o755)
    return {"llamacpp_model_path": model, "llamacpp_program": str(program)}


@asynccontextmanager
async def serving(tmp_path: Path, settings: dict[str, object]) -> AsyncIterator[tuple[Suite, StartedServer]]:
    """Run a suite with the server that its settings start; pauses between starts take no time."""
    ours = {**os.environ, "KALA_INFERENCE_LLAMACPP_API_KEY": "x", "OPENAI_API_KEY": "sk-1", "MARK": "1"}
    (server,) = ServerFactory(InferenceSettings(**settings)).started(ours)
    server.sleep = lambda seconds: asyncio.sleep(seconds if seconds == START_SECONDS else 0.01)
    async with running(tmp_path, started=[server], **settings) as suite:
        server.changed = suite.registry.look_soon
        task = asyncio.create_task(server.run())
        try:
            yield suite, server
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def backend_is(suite: Suite, state: State) -> Callable[[], bool]:
    def holds() -> bool:
        entry = suite.registry.get("llamacpp")
        return entry is not None and entry.status.state is state

    return holds


async def until(holds: Callable[[], bool]) -> None:
    """Wait as long as a few starts of a process may take on a busy machine."""
    await until_within(holds, within_seconds=60)


def tell(orders: Path, order: str) -> None:
    orders.write_text(order)


def left_behind(orders: Path, pid: object) -> dict[str, Any]:
    """Give what a program wrote about itself."""
    seen: dict[str, Any] = json.loads(orders.with_name(f"orders.{pid}").read_text())
    return seen


def orders_taken(orders: Path) -> set[str]:
    """Give the orders that any program has begun to follow."""
    texts = [path.read_text() for path in orders.parent.glob("orders.*")]
    return {json.loads(text)["order"] for text in texts if text.endswith("}")}


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def answering_pid(suite: Suite) -> int:
    await until(backend_is(suite, State.READY))
    return int((await suite.chat()).text.removeprefix("I am "))


async def test_it_is_started_and_answers_by_its_models_name(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    async with serving(tmp_path, settings) as (suite, server):
        pid = await answering_pid(suite)
        assert pid == server.pid
        assert (await suite.chat(action(model="tiny"))).route.model == "tiny"
    assert not is_running(pid)


async def test_it_gets_its_options_and_no_secret_of_ours(
    tmp_path: Path, settings: dict[str, object], orders: Path
) -> None:
    options = {"llamacpp_gpu_layers": 7, "llamacpp_context_tokens": 512, "llamacpp_model": "my-model"}
    async with serving(tmp_path, {**settings, **options}) as (suite, _):
        pid = await answering_pid(suite)
    seen = left_behind(orders, pid)
    argv, environ = seen["argv"], seen["environ"]
    given = dict(zip(argv[::2], argv[1::2], strict=True))
    assert given.pop("--port").isdigit()
    assert given == {
        "--model": str(settings["llamacpp_model_path"]),
        "--alias": "my-model",
        "--host": "127.0.0.1",
        "--n-gpu-layers": "7",
        "--ctx-size": "512",
    }
    assert environ["MARK"] == "1"
    assert environ["HF_HUB_OFFLINE"] == "1"
    assert not {name for name in environ if name.startswith("KALA_")} | ({"OPENAI_API_KEY"} & set(environ))
    assert environ["LLAMA_API_KEY"] not in " ".join(argv)


async def test_killed_it_is_started_again(tmp_path: Path, settings: dict[str, object]) -> None:
    async with serving(tmp_path, settings) as (suite, server):
        first = await answering_pid(suite)
        os.kill(first, signal.SIGKILL)
        await until(lambda: server.pid not in {None, first})
        await until(lambda: server.status() is None)
        await until(backend_is(suite, State.READY))
        await suite.registry.refresh()
        assert await answering_pid(suite) == server.pid


async def test_while_it_starts_a_request_hears_that_it_does(
    tmp_path: Path, settings: dict[str, object], orders: Path
) -> None:
    tell(orders, "deaf")
    async with serving(tmp_path, settings) as (suite, server):
        await until(lambda: server.pid is not None)
        for asked in (action(), action(model="tiny")):
            with pytest.raises(UnavailableError, match="is being started with tiny; wait for it"):
                await suite.chat(asked)
        backend = await suite.stub.GetBackend(pb.GetBackendRequest(name="backends/llamacpp"))
        assert backend.backend.state == pb.BACKEND_STATE_LOADING


async def test_one_that_never_listens_is_started_anew(
    tmp_path: Path, settings: dict[str, object], orders: Path
) -> None:
    tell(orders, "deaf")
    async with serving(tmp_path, settings) as (suite, server):
        patience = asyncio.Event()
        server.sleep = lambda _seconds: patience.wait()
        await until(lambda: "deaf" in orders_taken(orders))
        tell(orders, "serve")
        server.sleep = lambda seconds: asyncio.sleep(seconds if seconds == START_SECONDS else 0)
        patience.set()
        assert await answering_pid(suite) == server.pid


async def test_one_that_cannot_load_its_model_says_so(
    tmp_path: Path, settings: dict[str, object], orders: Path
) -> None:
    tell(orders, "fail")
    async with serving(tmp_path, settings) as (suite, server):
        server.sleep = lambda _seconds: asyncio.sleep(600)
        await until(backend_is(suite, State.ERROR))
        with pytest.raises(UnavailableError, match="ended with exit code 3 before it listened"):
            await suite.chat()


async def test_a_stubborn_one_is_ended_all_the_same(
    tmp_path: Path, settings: dict[str, object], orders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.inference.started.server.GRACE_SECONDS", 0.2)
    tell(orders, "stubborn")
    async with serving(tmp_path, settings) as (suite, _):
        pid = await answering_pid(suite)
    assert not is_running(pid)


async def test_a_model_that_is_not_there_is_said_with_its_cure(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    missing = {**settings, "llamacpp_model_path": tmp_path / "gone.gguf"}
    async with serving(tmp_path, missing) as (suite, server):
        server.sleep = lambda _seconds: asyncio.sleep(600)
        await until(backend_is(suite, State.ERROR))
        with pytest.raises(ModelNotAvailable, match="kala models pull"):
            await suite.chat()


def test_a_server_does_not_outlive_its_parent(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = (
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, {tether!r}, str(os.getpid()), 'sleep', '600'])\n"
        f"open({str(pid_file)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(0.5)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    pid = int(pid_file.read_text())
    for _ in range(500):
        if not is_running(pid):
            return
        subprocess.run(["sleep", "0.01"], check=True)
    raise AssertionError("it still runs")
