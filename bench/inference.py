"""What the router costs: `inference.Chat` over a unix socket, beside the upstream by the same client and beside other gateways.

The upstream is the static one of `upstream.py`. Clearances are minted before the clock starts: ethics does that elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiohttp
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.grpc_process import memory_mib, serving
from bench.measure import Arm
from bench.servers import Peer, litellm, portkey
from bench.upstream import MODEL, static_model_servers
from kala.common.v1.clearance_pb2 import PURPOSE_UNSPECIFIED, Principal
from kala.inference.v1 import inference_pb2 as pb
from kala.inference.v1 import inference_pb2_grpc
from services.common.channel import open_channel
from services.common.clearance import ClearanceSigner
from services.common.keys import write_public_key
from services.common.peers import GATEWAY
from services.common.sealing import pack
from services.inference.backends.http import ModelServerClient, TimeLimits
from services.inference.base_url import parse_base_url

if TYPE_CHECKING:
    from kala.inference.v1.inference_pb2_grpc import InferenceServiceAsyncStub

AUDIENCE: Final = "/kala.inference.v1.InferenceService/Chat"
QUESTION: Final = "Say something about the fox and the dog, please."
CONNECTIONS: Final = 16
# Enough for some seconds of every arm; clearances of a round are minted right before it and live for a minute.
ROUNDS: Final = 5
MEMORY_REQUESTS_PER_SECOND: Final = 120
LIMITS: Final = TimeLimits(connect=5, first_byte=30, idle=30, total=60)

Send = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Throughput:
    """Answers a second of one arm, the median of its rounds."""

    name: str
    per_second: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of the service, in MiB: at first, at half and at the end of so many requests."""

    requests: int
    first_mib: float
    half_mib: float
    end_mib: float


@dataclass(frozen=True, slots=True)
class Figures:
    """All that is measured here."""

    whole: Sequence[Arm]
    streamed: Sequence[Arm]
    throughput: Sequence[Throughput]
    memory: Memory


class Router:
    """A running inference service as its only caller sees it."""

    def __init__(self, stub: InferenceServiceAsyncStub, signer: ClearanceSigner, *, stream: bool) -> None:
        self._stub = stub
        self._signer = signer
        provider = "mlx" if stream else "llamacpp"
        message = pb.ChatMessage(role=pb.ROLE_USER, content=[pb.ContentPart(text=QUESTION)])
        self._action = pack(pb.ChatAction(messages=[message], provider=provider, stream=stream))
        self._ready: list[pb.ChatRequest] = []

    def mint(self, number: int) -> None:
        """Have so many cleared requests ready."""
        self._ready = [self._request() for _ in range(number)]

    async def chat(self) -> None:
        """Send one of them and read its answer to the end."""
        async for _ in self._stub.Chat(self._ready.pop() if self._ready else self._request()):
            pass

    def _request(self) -> pb.ChatRequest:
        clearance = self._signer.mint(
            decision_id="bench",
            audience=AUDIENCE,
            action=self._action,
            constitution_digest=bytes(32),
            presenter=f"local:{GATEWAY}",
            principal=Principal(),
            purpose=PURPOSE_UNSPECIFIED,
        )
        request = pb.ChatRequest()
        request.sealed.action.CopyFrom(self._action)
        request.sealed.clearance.CopyFrom(clearance)
        return request


class Direct:
    """The upstream by the service's own client."""

    def __init__(self, url: str, *, stream: bool) -> None:
        self._client = ModelServerClient(parse_base_url(url), limits=LIMITS)
        self._body = _chat_body(MODEL, stream=stream)
        self._stream = stream

    async def chat(self) -> None:
        """Send one request and read its answer to the end."""
        async with self._client.post(
            "/v1/chat/completions", self._body, lambda: None, streams=self._stream
        ) as answer:
            await answer.body()

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.aclose()


def measure(folder: Path, rounds: int, requests: int, *, memory_requests: int = 24_000) -> Figures:
    """Run everything on one machine in one run."""
    folder.mkdir(mode=0o700)
    private_key = Ed25519PrivateKey.generate()
    write_public_key(folder / "ethics.pub", private_key.public_key())
    signer = ClearanceSigner(private_key)
    with static_model_servers(folder / "nginx") as (whole, streamed):
        address = f"unix:{folder}/i.sock"
        values = {
            "ADDRESS": address,
            "ETHICS_PUBLIC_KEYS": str(folder / "ethics.pub"),
            "METRICS_PORT": "off",
            "LLAMACPP_URL": whole,
            "MLX_URL": streamed,
            "EMBEDDED": "false",
        }
        settings = {f"KALA_INFERENCE_{name}": value for name, value in values.items()}
        with (
            serving("services.inference", folder, address, settings) as (pid, _),
            litellm(folder, whole, streamed) as peer,
            portkey(folder) as node_peer,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            return runner.run(
                _measured(
                    address,
                    signer,
                    (whole, streamed),
                    (peer, node_peer),
                    pid,
                    (rounds, requests, memory_requests),
                )
            )


async def _measured(
    address: str,
    signer: ClearanceSigner,
    upstreams: tuple[str, str],
    peers: tuple[Peer | None, Peer | None],
    pid: int,
    sizes: tuple[int, int, int],
) -> Figures:
    rounds, requests, memory_requests = sizes
    whole, streamed = upstreams
    async with open_channel(address, peer_name=GATEWAY) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        router = Router(stub, signer, stream=False)
        latencies = []
        for url, arm, stream in ((whole, router, False), (streamed, Router(stub, signer, stream=True), True)):
            direct = Direct(url, stream=stream)
            latencies.append(await _latencies(direct, arm, rounds, requests))
            await direct.aclose()
        throughput = await _throughputs(router, whole, peers, requests)
        memory = await _memory(router, pid, memory_requests)
    return Figures(latencies[0], latencies[1], throughput, memory)


async def _latencies(direct: Direct, router: Router, rounds: int, requests: int) -> list[Arm]:
    """Both in turn; what is timed is the request alone."""
    samples: dict[str, list[tuple[float, ...]]] = {"direct": [], "inference": []}
    for number in range(rounds + 1):
        router.mint(requests)
        for name, send in (("direct", direct.chat), ("inference", router.chat)):
            taken = [await _seconds(send) for _ in range(requests)]
            if number:  # the first round warms up
                samples[name].append(tuple(seconds * 1000 for seconds in taken))
    return [Arm.of_rounds(name, by_round) for name, by_round in samples.items()]


async def _seconds(send: Send) -> float:
    started = time.perf_counter()
    await send()
    return time.perf_counter() - started


async def _throughputs(
    router: Router, whole: str, peers: tuple[Peer | None, Peer | None], requests: int
) -> list[Throughput]:
    """CONNECTIONS callers that never pause, every arm in every round."""
    peer, node_peer = peers
    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    async with aiohttp.ClientSession(connector=connector) as session:
        arms: dict[str, Send] = {"inference": router.chat, "direct": _poster(session, whole, MODEL, {})}
        if peer:
            arms["litellm"] = _poster(session, peer.url, "whole", {"authorization": f"Bearer {peer.key}"})
        if node_peer:
            headers = {
                "authorization": "Bearer none",
                "x-portkey-provider": "openai",
                "x-portkey-custom-host": f"{whole}/v1",
            }
            arms["portkey"] = _poster(session, node_peer.url, MODEL, headers)
        rates: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(ROUNDS + 1):
            for name, send in arms.items():
                router.mint(requests * 4 if name == "inference" else 0)
                rate = await _rate(send, requests * 4)
                if number:
                    rates[name].append(rate)
    return [Throughput(name, sorted(found)[len(found) // 2]) for name, found in rates.items()]


async def _rate(send: Send, requests: int) -> float:
    left = iter(range(requests))

    async def caller() -> None:
        for _ in left:
            await send()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(caller())
    return requests / (time.perf_counter() - started)


def _poster(session: aiohttp.ClientSession, url: str, model: str, headers: Mapping[str, str]) -> Send:
    body = _chat_body(model, stream=False)
    sent = {"content-type": "application/json", **headers}

    async def post() -> None:
        async with session.post(f"{url}/v1/chat/completions", data=body, headers=sent) as answer:
            text = await answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{url}: {answer.status} {text[:300]!r}")

    return post


async def _memory(router: Router, pid: int, requests: int) -> Memory:
    """Paced, so that half of them take longer than a clearance lives: until then its nonce is kept, and memory grows."""
    first = half = memory_mib(pid)
    seconds = max(2, requests // MEMORY_REQUESTS_PER_SECOND)
    for second in range(seconds):
        began = time.perf_counter()
        router.mint(requests // seconds)
        await _rate(router.chat, requests // seconds)
        if second == seconds // 2 - 1:
            half = memory_mib(pid)
        await asyncio.sleep(max(0.0, 1 - (time.perf_counter() - began)))
    return Memory(requests, first, half, memory_mib(pid))


def _chat_body(model: str, *, stream: bool) -> bytes:
    document: dict[str, object] = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "stream": stream,
    }
    if stream:
        document["stream_options"] = {"include_usage": True}
    return json.dumps(document).encode()


def lines(figures: Figures) -> list[str]:
    """The tables, in Markdown."""
    out = [
        "| one request | direct p50 ms | inference p50 ms | added p50 ms | goal |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, arms, goal in (("whole", figures.whole, 1.5), ("stream of 20 deltas", figures.streamed, 3.0)):
        direct, router = arms
        added = router.p50_ms - direct.p50_ms
        out.append(f"| {name} | {direct.p50_ms:.2f} | {router.p50_ms:.2f} | {added:.2f} | ≤ {goal} |")
    own = next(arm.per_second for arm in figures.throughput if arm.name == "inference")
    out += ["", f"| {CONNECTIONS} callers | answers a second | inference / this |", "| --- | --- | --- |"]
    out += [
        f"| {arm.name} | {arm.per_second:.0f} | {own / arm.per_second:.2f} |" for arm in figures.throughput
    ]
    memory = figures.memory
    growth = memory.end_mib / memory.half_mib - 1
    sizes = f"{memory.first_mib:.1f}, {memory.half_mib:.1f} at half, {memory.end_mib:.1f} MiB at the end"
    out += ["", f"Memory over {memory.requests} requests: {sizes} ({growth:+.2%} over the last half)."]
    return out


def document(figures: Figures) -> dict[str, object]:
    """The figures for the JSON report."""
    return {
        "latency": {
            name: [{"arm": arm.name, "p50_ms": arm.p50_ms, "p99_ms": arm.p99_ms} for arm in arms]
            for name, arms in (("whole", figures.whole), ("streamed", figures.streamed))
        },
        "throughput": [asdict(arm) for arm in figures.throughput],
        "memory": asdict(figures.memory),
    }
