"""What is measured of the ethics process from outside: how long it takes to serve, and its memory.

The process is started as in production, `python -m services.ethics`, over a unix socket and with its shipped laws.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.ethics_inside import CALLERS, CHUNK_CHARS, DISGUISED_WORDS, LONG_TOKENS, SHORT_TOKENS, Subject
from bench.ethics_texts import chunks
from bench.grpc_process import memory_mib, serving
from kala.common.v1 import clearance_pb2
from kala.ethics.v1 import ethics_pb2 as pb
from kala.ethics.v1 import ethics_pb2_grpc
from services.common.channel import open_channel
from services.common.keys import write_private_key
from services.common.peers import GATEWAY

STARTS: Final = 5
# Several times what one pass reads, so that long texts count too.
VERY_LONG_TOKENS: Final = 4_000


@dataclass(frozen=True, slots=True)
class Process:
    """Seconds from the command to SERVING, the median of the starts; resident memory in MiB."""

    start_seconds: float
    memory_mib: float
    loaded_memory_mib: float
    peak_memory_mib: float
    checks: int


def process(requests: int) -> Process:
    """Start it several times, and put so many checks of every kind to the last one."""
    with tempfile.TemporaryDirectory(prefix="kala-") as name:
        home = Path(name)
        write_private_key(home / "ethics.key", Ed25519PrivateKey.generate())
        # The first start compiles the sources, which an installed package has done before.
        with _serving(home):
            pass
        seconds = []
        for _ in range(STARTS - 1):
            with _serving(home) as (_, taken):
                seconds.append(taken)
        with _serving(home) as (pid, taken):
            seconds.append(taken)
            at_first = memory_mib(pid)
            checks = asyncio.run(_load(_address(home), requests))
            return Process(
                statistics.median(seconds),
                at_first,
                memory_mib(pid),
                memory_mib(pid, "VmHWM"),
                checks,
            )


def _address(home: Path) -> str:
    return f"unix:{home}/e.sock"


def _serving(home: Path) -> AbstractContextManager[tuple[int, float]]:
    """The process with its id and the seconds that it took to serve."""
    values = {
        "ADDRESS": _address(home),
        "SIGNING_KEY_FILE": str(home / "ethics.key"),
        "TRUST": "development",
        "METRICS_PORT": "off",
    }
    settings = {f"KALA_ETHICS_{name}": value for name, value in values.items()}
    return serving("services.ethics", home, _address(home), settings)


async def _load(address: str, requests: int) -> int:
    """Scores of short, long, disguised and very long texts and checked answers, CALLERS at once."""
    maker = Subject().text
    texts = [maker.ordinary(SHORT_TOKENS) for _ in range(requests)]
    texts += [maker.ordinary(LONG_TOKENS) for _ in range(requests)]
    texts += [maker.disguised(DISGUISED_WORDS) for _ in range(requests)]
    texts += [maker.answer(VERY_LONG_TOKENS) for _ in range(CALLERS)]
    answers = [maker.answer(SHORT_TOKENS * 5) for _ in range(CALLERS)]
    following = iter(texts)
    async with open_channel(address, peer_name=GATEWAY) as channel:
        stub = ethics_pb2_grpc.EthicsServiceStub(channel)

        async def score() -> None:
            for text in following:
                await stub.Score(pb.ScoreRequest(text=text), timeout=300)

        async def stream(answer: str) -> None:
            async for _ in stub.CheckOutput(_events(answer), timeout=300):
                pass

        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(score())
        async with asyncio.TaskGroup() as group:
            for answer in answers:
                group.create_task(stream(answer))
    return len(texts) + len(answers)


def _events(answer: str) -> Iterator[pb.CheckOutputRequest]:
    principal = clearance_pb2.Principal(id="bench", tenant="bench")
    yield pb.CheckOutputRequest(start=pb.OutputStart(decision_id="d" * 32, principal=principal))
    for piece in chunks(answer, CHUNK_CHARS):
        yield pb.CheckOutputRequest(chunk=pb.OutputChunk(channel=pb.OUTPUT_CHANNEL_TEXT, text=piece))
    yield pb.CheckOutputRequest(finish=pb.OutputFinish())
