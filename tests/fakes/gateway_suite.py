"""A gateway over HTTP before a real log, a scripted ethics and a scripted inference, all in this process."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from prometheus_client import CollectorRegistry

from gateway.bootstrap import create_key
from gateway.config import GatewaySettings
from gateway.http_server import serving_http
from gateway.process import gateway_app
from kala.audit.leaf import Leaf
from kala.audit.receipt import verify_receipt
from kala.audit.v1 import audit_pb2_grpc
from kala.ethics.v1.ethics_pb2_grpc import EthicsServiceServicer, add_EthicsServiceServicer_to_server
from kala.inference.v1 import inference_pb2, inference_pb2_grpc
from kala.tools.v1 import tools_pb2, tools_pb2_grpc
from kala.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from services.audit.batch import BatchWriter
from services.audit.config import AuditSettings
from services.audit.log import Log, system_clock
from services.audit.once import OnceRecords
from services.audit.own_records import OwnRecords
from services.audit.payloads import KeyEncryptionKey
from services.audit.privacy.servicer import AuditPrivacyServicer
from services.audit.privacy.steps import Privacy
from services.audit.privacy.store import PrivacyStore
from services.audit.publishing.published import NoCosignatures, PublishedLog
from services.audit.publishing.tile_reads import PublishedReads, TileReads
from services.audit.reading.log_reader import LogReading
from services.audit.reading.pipelines import Pipelines
from services.audit.reading.servicer import reads_of
from services.audit.servicer import AuditServicer
from services.audit.storage.stores import open_log_store
from services.common.clearance import ClearanceVerifier, guard_for
from services.common.interceptors import CallPolicy
from services.common.keys import key_id
from services.common.pages import Pages
from services.common.server import serving
from services.common.settings import GrpcServerSettings
from services.common.telemetry import RpcTelemetry, Telemetry
from tests.fakes.audit_log import KEK, signer
from tests.fakes.scripted_ethics import ScriptedEthics
from tests.fakes.scripted_inference import ScriptedInference
from tests.fakes.scripted_tools import ScriptedTools

T = TypeVar("T")

ALL_SCOPES = ("chat", "tools", "train", "audit.read", "audit.erase", "admin")


@dataclass
class AuditProcess:
    """The real audit service, which a test can stop and start again on the same log."""

    directory: Path
    _stack: AsyncExitStack | None = None

    @property
    def address(self) -> str:
        return f"unix:{self.directory / 'audit.sock'}"

    async def start(self) -> None:
        key, path = signer(), self.directory / "audit.db"
        self._stack = stack = AsyncExitStack()
        store = stack.enter_context(closing(open_log_store(AuditSettings(database=str(path)), key)))
        kek = KeyEncryptionKey(KEK)
        batches = BatchWriter(
            writer=store.writer, reader=store.open_reader(), signer=key, kek=kek, clock=system_clock
        )
        log = Log(batches, max_pending=1000)
        log.start()
        stack.push_async_callback(log.stop)
        own = OwnRecords(log, clock=system_clock)
        reads = reads_of(
            store.open_reader,
            pipelines=Pipelines(store.engine, store.log_id),
            own=own,
            signer=key,
            kek=kek,
            clock=system_clock,
        )
        stack.push_async_callback(reads.close)
        published = PublishedReads(PublishedLog(store.open_reader(), NoCosignatures()), TileReads(own))
        stack.push_async_callback(published.close)
        reads.show(published)
        kept = PrivacyStore(store.engine, store.log_id, clock=system_clock)
        once = OnceRecords(own, LogReading(store.open_reader()))
        stack.push_async_callback(once.close)
        privacy = Privacy(kept, once, key)
        stack.push_async_callback(privacy.close)
        server = await stack.enter_async_context(
            serving(
                GrpcServerSettings(address=self.address, allowed_peers=("gateway",), drain_seconds=0.2),
                [
                    partial(audit_pb2_grpc.add_AuditServiceServicer_to_server, AuditServicer(log)),
                    partial(audit_pb2_grpc.add_AuditReadServiceServicer_to_server, reads),
                    partial(
                        audit_pb2_grpc.add_AuditPrivacyServiceServicer_to_server,
                        AuditPrivacyServicer(privacy),
                    ),
                ],
            )
        )
        await server.set_serving()

    async def stop(self) -> None:
        if self._stack is not None:
            stack, self._stack = self._stack, None
            await stack.aclose()


@dataclass
class Suite:
    """Everything a test of the gateway touches."""

    url: str
    http: httpx.AsyncClient
    key: str
    ethics: ScriptedEthics
    inference: ScriptedInference
    audit: AuditProcess
    settings: GatewaySettings
    directory: Path
    edge: AsyncExitStack
    tools: ScriptedTools
    """Answers only where the suite was started with it."""
    first_leaf: int = 0

    def bearer(self, key: str | None = None) -> dict[str, str]:
        return {"authorization": f"Bearer {key or self.key}"}

    def new_key(self, *scopes: str, **fields: Any) -> str:
        return create_key(
            self.settings.database, display_name="test", scopes=scopes or ("chat",), **fields
        ).secret

    async def chat(self, text: str = "What is the capital of France?", **fields: Any) -> httpx.Response:
        body = {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}
        return await self.http.post("/v1/chat/completions", json=body, headers=self.bearer())

    async def stream(self, text: str = "What?", **fields: Any) -> tuple[httpx.Response, list[Any]]:
        """Read a stream to its end: the response and its events, `[DONE]` as a string."""
        body = {"model": "auto", "messages": [{"role": "user", "content": text}], "stream": True, **fields}
        async with self.http.stream(
            "POST", "/v1/chat/completions", json=body, headers=self.bearer()
        ) as response:
            events = [_event(line) async for line in response.aiter_lines() if line.startswith("data: ")]
        return response, events

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.http.get(path, headers=self.bearer() | options.pop("headers", {}), **options)

    async def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return await self.http.post(
            path, json=body, headers=self.bearer() | options.pop("headers", {}), **options
        )

    async def stop_http(self) -> None:
        """Stop the edge as SIGTERM does: no new connections, running answers drain."""
        await self.edge.aclose()

    async def reset(self) -> None:
        """Forget what earlier tests scripted and logged."""
        self.http.cookies.clear()
        vars(self.ethics).update(vars(ScriptedEthics(signer=self.ethics.signer)))
        vars(self.inference).update(vars(ScriptedInference()))
        vars(self.tools).update(vars(ScriptedTools()))
        self.first_leaf = 0
        self.first_leaf = len(await self.leaves())

    async def leaves(self, *, kind: str | None = None) -> list[dict[str, Any]]:
        """Read this test's leaves in order, straight from the database."""
        with closing(sqlite3.connect(self.directory / "audit.db")) as connection:
            rows = connection.execute(
                "SELECT leaf FROM entry WHERE idx >= ? ORDER BY idx", (self.first_leaf,)
            ).fetchall()
        values = [json.loads(row[0]) for row in rows]
        return [value for value in values if kind is None or value["type"] == kind]

    async def receipt(self, receipt_id: str) -> Leaf:
        """Fetch a receipt over REST and verify it offline."""
        response = await self.get(f"/kala/v1/audit/receipts/{receipt_id}")
        assert response.status_code == 200, response.text
        return verify_receipt(response.json()["receipt"]["proof"], [signer().verifier]).leaf


async def eventually(check: Callable[[], Awaitable[T]], *, seconds: float = 10.0) -> T:
    """Wait until something outside this process's events is true, and give it."""
    async with asyncio.timeout(seconds):
        while not (result := await check()):  # noqa: ASYNC110 - a database tells nobody
            await asyncio.sleep(0.02)
    return result


def _event(line: str) -> Any:
    data = line.removeprefix("data: ")
    return data if data == "[DONE]" else json.loads(data)


def words_of(events: list[Any]) -> str:
    """Join the text that a stream's reader got."""
    return "".join(
        choice["delta"].get("content") or ""
        for event in events
        if isinstance(event, dict)
        for choice in event.get("choices", ())
    )


@asynccontextmanager
async def running_suite(
    directory: Path,
    *,
    judge: EthicsServiceServicer | None = None,
    judge_key: Ed25519PublicKey | None = None,
    has_tools: bool = False,
    trainer: trainer_pb2_grpc.TrainerServiceServicer | None = None,
    **overrides: Any,
) -> AsyncIterator[Suite]:
    """Start everything; `overrides` are settings of the gateway, `judge` replaces the scripted ethics."""
    ethics, inference, audit = ScriptedEthics(), ScriptedInference(), AuditProcess(directory)
    tools = ScriptedTools()
    public_key = judge_key or ethics.signer.public_key
    guard = guard_for(
        ClearanceVerifier({key_id(public_key): public_key}),
        [inference_pb2.DESCRIPTOR, tools_pb2.DESCRIPTOR, trainer_pb2.DESCRIPTOR],
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(audit.stop)
        await audit.start()
        services = [
            ("ethics", partial(add_EthicsServiceServicer_to_server, judge or ethics), CallPolicy()),
            (
                "inference",
                partial(inference_pb2_grpc.add_InferenceServiceServicer_to_server, inference),
                CallPolicy(guard_for=guard),
            ),
        ]
        if has_tools:
            register = partial(tools_pb2_grpc.add_ToolsServiceServicer_to_server, tools)
            services.append(("tools", register, CallPolicy(guard_for=guard)))
            overrides.setdefault("tools_address", f"unix:{directory / 'tools.sock'}")
        if trainer is not None:
            register = partial(trainer_pb2_grpc.add_TrainerServiceServicer_to_server, trainer)
            services.append(("trainer", register, CallPolicy(guard_for=guard)))
            overrides.setdefault("trainer_address", f"unix:{directory / 'trainer.sock'}")
        for name, register, policy in services:
            settings = GrpcServerSettings(
                address=f"unix:{directory / name}.sock", allowed_peers=("gateway",), drain_seconds=0.2
            )
            server = await stack.enter_async_context(serving(settings, [register], policy=policy))
            await server.set_serving()
        settings = GatewaySettings(**{
            "port": 0, "metrics_port": None, "drain_seconds": 1.0,
            "ethics_address": f"unix:{directory / 'ethics.sock'}",
            "inference_address": f"unix:{directory / 'inference.sock'}",
            "audit_address": audit.address,
            "database": str(directory / "gateway.db"),
            "pepper_file": directory / "pepper", "spool_dir": directory / "spool",
            "spool_key_file": directory / "spool.key", "store_key_file": directory / "store.key",
            "url_file": directory / "url",
            **overrides,
        })  # fmt: skip
        key = create_key(settings.database, display_name="owner", scopes=ALL_SCOPES).secret
        registry = CollectorRegistry()
        telemetry = Telemetry(registry, RpcTelemetry(registry=registry), None, Pages())
        app = await stack.enter_async_context(gateway_app(settings, telemetry))
        edge = await stack.enter_async_context(AsyncExitStack())
        url = await edge.enter_async_context(serving_http(app, settings))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=20, trust_env=False))
        yield Suite(url, http, key, ethics, inference, audit, settings, directory, edge, tools)
