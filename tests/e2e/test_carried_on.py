"""A real mlx_lm.server killed in the middle of an answer, and the model in process that carries it on."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kala.inference.v1 import inference_pb2 as pb
from services.inference.backends.pythia import PythiaBackend
from tests.e2e.test_mlx_backend import MlxServer
from tests.fakes.tiny_pythia import make_tiny_pythia
from tests.service.inference.conftest import Answer, Suite, action, running, until

TOKENS = 1500
"""More than mlx_lm.server can write between its first words and its end."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_pythia(tmp_path_factory.mktemp("model") / "tiny-neox", context_tokens=4 * TOKENS)


@pytest.fixture
def mlx(model: Path, tmp_path: Path) -> Iterator[MlxServer]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server = MlxServer(model, probe.getsockname()[1], tmp_path / "hub")
    try:
        server.start()
        yield server
    finally:
        server.kill()


async def interrupted(suite: Suite, mlx: MlxServer) -> Answer:
    """Ask, kill the server at its first words, and read on."""
    greedy = pb.Sampling(temperature=0, max_output_tokens=TOKENS)
    wanted = action(stream=True, sampling=greedy, mid_stream=pb.MID_STREAM_POLICY_CONTINUE)
    responses = []
    async for response in suite.call(wanted):
        responses.append(response)
        if response.delta.text:
            mlx.kill()
    return Answer(responses)


async def test_an_answer_survives_its_server_and_the_server_is_used_again(
    mlx: MlxServer, model: Path, tmp_path: Path
) -> None:
    async with running(tmp_path, mlx_url=mlx.url, model_dir=model) as suite:
        await suite.registry.ready()
        pythia, entry = suite.registry.get("pythia"), suite.registry.get("mlx")
        assert pythia is not None
        assert entry is not None
        assert isinstance(pythia.backend, PythiaBackend)
        await pythia.backend.preload()

        answer = await interrupted(suite, mlx)
        first, second = answer.finish.attempts
        assert (first.backend, first.spliced) == ("backends/mlx", False)
        assert first.reason in {"STREAM_CUT", "DISCONNECTED"}
        assert (second.backend, second.reason, second.spliced) == ("backends/pythia", "", True)
        assert answer.route.backend == "backends/mlx"
        assert len(answer.finish.derived_digest) == 32
        assert answer.finish.reason == pb.FINISH_REASON_LENGTH

        short = action(sampling=pb.Sampling(temperature=0, max_output_tokens=4))
        assert (await suite.chat(short)).route.backend == "backends/pythia"
        mlx.start()
        await suite.registry.look(entry)
        await until(lambda: entry.guard.reach.is_closed)
        assert (await suite.chat(short)).route.backend == "backends/mlx"
