"""Puts one gateway together from its settings; everything opened is closed in reverse order."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.app import build_app
from gateway.background import Background
from gateway.bridge import Bridge, LocalHandler
from gateway.bridge_routes import Binding, Routes, bindings_of, contract_files
from gateway.chat import ChatCompletions, ChatLimits
from gateway.chat_tools import ChatTools
from gateway.checkpoint_pin import CheckpointPin, load_verifiers
from gateway.completions import Completions
from gateway.connection_test import ConnectionTest
from gateway.destination import Destinations
from gateway.erasure import Eraser, Erasures, spool_eraser
from gateway.gate import Gate
from gateway.guarded import GuardedCalls
from gateway.health import Health
from gateway.identity import Pseudonyms
from gateway.intake import Desk
from gateway.judge import EthicsClient
from gateway.key_ring import KeyRing
from gateway.key_store import KeyStore
from gateway.keys_service import KeysService
from gateway.ledger import Ledger
from gateway.log_mirror import LogMirror
from gateway.models import Models
from gateway.moderations import Moderations
from gateway.openapi import OpenApi
from gateway.part_erasers import tools_eraser, trainer_eraser
from gateway.pipeline import Pipeline
from gateway.readings import Readings
from gateway.text_tasks import EMBEDDINGS, RERANK, Method, Request, TextTask, TextTasks
from gateway.tool_loop import LoopLimits
from gateway.tool_runs import EXECUTE_RPC, ToolRuns
from kala.audit.v1.audit_pb2_grpc import AuditPrivacyServiceStub, AuditReadServiceStub
from kala.errors import InvalidArgumentError
from kala.ethics.v1.ethics_pb2_grpc import EthicsServiceStub
from kala.inference.v1.inference_pb2_grpc import InferenceServiceStub
from kala.tools.v1.tools_pb2_grpc import ToolsServiceStub
from services.common.audit_client import AuditWriter
from services.common.channel import open_channel
from services.common.peers import AUDIT, ETHICS, GATEWAY, INFERENCE, TOOLS, TRAINER
from services.common.secret_keys import load_or_create_secret_key
from services.common.spool import Spool

if TYPE_CHECKING:
    import grpc
    from fastapi import FastAPI

    from gateway.config import GatewaySettings
    from kala.inference.v1.inference_pb2_grpc import InferenceServiceAsyncStub
    from services.common.telemetry import Telemetry

DISTRIBUTION: Final = "kala-suite"

IDEMPOTENT: Final = {
    ETHICS: ("/kala.ethics.v1.EthicsService/CheckAction", "/kala.ethics.v1.EthicsService/Score"),
    INFERENCE: (
        "/kala.inference.v1.InferenceService/ListModels",
        "/kala.inference.v1.InferenceService/ListBackends",
    ),
}
"""Calls that may be tried again, for they have no effect. An append is not among them: its writer has a spool."""


@asynccontextmanager
async def gateway_app(settings: GatewaySettings, telemetry: Telemetry) -> AsyncIterator[FastAPI]:
    """Open a gateway's database, spool and channels, and give its application while they are open."""
    async with AsyncExitStack() as stack:
        channels = {
            part: await stack.enter_async_context(
                open_channel(
                    address, peer_name=GATEWAY, tls=settings.tls, idempotent=IDEMPOTENT.get(part, ())
                )
            )
            for part, address in _addresses(settings).items()
        }
        store = KeyStore(settings.database)
        stack.callback(store.close)
        pseudonyms = Pseudonyms(_secret(settings.pepper_file))
        writer = await stack.enter_async_context(_writer(settings, channels[AUDIT], stack))
        ledger = Ledger(writer)
        background = Background()
        stack.push_async_callback(background.drain)
        if (pin := _pin(settings, channels[AUDIT], writer)) is not None:
            stack.callback(background.keep(pin.follow()).cancel)
        ring = KeyRing(store, cache_seconds=settings.key_cache_seconds, clock=time.monotonic, now=_now)
        gate = Gate(
            ring=ring,
            pseudonyms=pseudonyms,
            ledger=ledger,
            max_concurrent=settings.max_concurrent_requests,
            clock=time.monotonic,
        )
        erasures = Erasures(
            AuditPrivacyServiceStub(channels[AUDIT]), pseudonyms, _erasers(settings, channels, writer)
        )
        keys = KeysService(
            store=store,
            ring=ring,
            ledger=ledger,
            pseudonyms=pseudonyms,
            now=_now,
            randomness=secrets.token_bytes,
        )
        own = keys.handlers | erasures.handlers
        yield _app(settings, telemetry, channels, gate=gate, ledger=ledger, own=own, background=background)


def _app(
    settings: GatewaySettings,
    telemetry: Telemetry,
    channels: dict[str, grpc.aio.Channel],
    *,
    gate: Gate,
    ledger: Ledger,
    own: Mapping[str, LocalHandler],
    background: Background,
) -> FastAPI:
    ethics_stub = EthicsServiceStub(channels[ETHICS])
    inference_stub = InferenceServiceStub(channels[INFERENCE])
    ethics = EthicsClient(
        ethics_stub, timeout_seconds=settings.judge_timeout_seconds, max_act_seconds=settings.max_act_seconds
    )
    pipeline = _pipeline(settings, ethics, inference_stub, ledger, background)
    limits = ChatLimits(settings.max_body_bytes, settings.max_image_body_bytes, settings.body_timeout_seconds)
    may_spool = settings.audit_policy == "spool"
    bindings = bindings_of(contract_files())
    guarded = GuardedCalls(pipeline=pipeline, ethics=ethics)
    destinations = Destinations(settings.provider, settings.allow_remote)

    desk = Desk(gate, ledger, destinations, settings.max_body_bytes, settings.body_timeout_seconds, may_spool)
    by_rpc = {binding.rpc: binding for binding in bindings}

    def tasks(task: TextTask[Request], method: Method) -> TextTasks[Request]:
        return TextTasks(
            task,
            desk,
            guarded=guarded,
            binding=by_rpc[task.rpc],
            method=method,
            max_act_seconds=settings.max_act_seconds,
        )

    return build_app(
        chat=_chat(
            settings,
            desk,
            limits,
            pipeline=pipeline,
            inference=inference_stub,
            tools=_chat_tools(settings, guarded, by_rpc[EXECUTE_RPC], pipeline, channels),
        ),
        completions=Completions(desk, pipeline=pipeline),
        embeddings=tasks(EMBEDDINGS, inference_stub.Embed),
        reranks=tasks(RERANK, inference_stub.Rerank),
        moderations=_moderations(settings, desk, limits, ethics=ethics, background=background),
        models=Models(gate=gate, inference=inference_stub, started_at=int(time.time())),
        connections=ConnectionTest(gate=gate, inference=inference_stub),
        health=Health(
            ethics=channels[ETHICS], ledger=ledger, registry=telemetry.registry, clock=time.monotonic
        ),
        bridge=_bridge(
            settings,
            desk,
            bindings,
            guarded=guarded,
            readings=Readings(ethics=ethics, ledger=ledger),
            channels=channels,
            own=own,
        ),
        mirror=LogMirror(gate=gate, audit=AuditReadServiceStub(channels[AUDIT])),
        openapi=OpenApi(bindings, version=_version()),
        telemetry=telemetry.rpc,
    )


def _pipeline(
    settings: GatewaySettings,
    ethics: EthicsClient,
    inference: InferenceServiceAsyncStub,
    ledger: Ledger,
    background: Background,
) -> Pipeline:
    return Pipeline(
        ethics=ethics,
        inference=inference,
        ledger=ledger,
        background=background,
        hold_seconds=settings.hold_back_milliseconds / 1000,
        max_act_seconds=settings.max_act_seconds,
    )


def _chat(
    settings: GatewaySettings,
    desk: Desk,
    limits: ChatLimits,
    *,
    pipeline: Pipeline,
    inference: InferenceServiceAsyncStub,
    tools: ChatTools,
) -> ChatCompletions:
    return ChatCompletions(
        gate=desk.gate,
        inference=inference,
        ledger=desk.ledger,
        pipeline=pipeline,
        tools=tools,
        limits=limits,
        may_spool=desk.may_spool,
        destinations=desk.destinations,
        mid_stream=settings.mid_stream,
        truncation=settings.truncation,
    )


def _chat_tools(
    settings: GatewaySettings,
    guarded: GuardedCalls,
    execute: Binding,
    pipeline: Pipeline,
    channels: dict[str, grpc.aio.Channel],
) -> ChatTools:
    runs = ToolRuns(
        guarded=guarded,
        binding=execute,
        tools=ToolsServiceStub(channels[TOOLS]) if TOOLS in channels else None,
        max_act_seconds=settings.max_act_seconds,
    )
    limits = LoopLimits(
        settings.tool_turns, settings.tool_calls, settings.tool_result_chars, settings.max_act_seconds
    )
    return ChatTools(
        runs=runs, pipeline=pipeline, inference=InferenceServiceStub(channels[INFERENCE]), limits=limits
    )


def _moderations(
    settings: GatewaySettings, desk: Desk, limits: ChatLimits, *, ethics: EthicsClient, background: Background
) -> Moderations:
    return Moderations(
        gate=desk.gate,
        ledger=desk.ledger,
        ethics=ethics,
        background=background,
        limits=limits,
        allows_unjudged=settings.unjudged_parts == "allow",
        may_spool=desk.may_spool,
    )


def _bridge(
    settings: GatewaySettings,
    desk: Desk,
    bindings: Sequence[Binding],
    *,
    guarded: GuardedCalls,
    readings: Readings,
    channels: dict[str, grpc.aio.Channel],
    own: Mapping[str, LocalHandler],
) -> Bridge:
    return Bridge(
        routes=Routes(bindings),
        gate=desk.gate,
        ledger=desk.ledger,
        guarded=guarded,
        readings=readings,
        channels=channels,
        local=own,
        body_timeout_seconds=settings.body_timeout_seconds,
        max_act_seconds=settings.max_act_seconds,
        may_spool=desk.may_spool,
    )


def _addresses(settings: GatewaySettings) -> dict[str, str]:
    addresses = {
        ETHICS: settings.ethics_address,
        INFERENCE: settings.inference_address,
        AUDIT: settings.audit_address,
        TOOLS: settings.tools_address,
        TRAINER: settings.trainer_address,
    }
    return {part: address for part, address in addresses.items() if address is not None}


def _writer(settings: GatewaySettings, channel: grpc.aio.Channel, stack: AsyncExitStack) -> AuditWriter:
    spool = None
    if settings.audit_policy == "spool":
        settings.spool_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        spool = Spool(
            settings.spool_dir, _secret(settings.spool_key_file), max_bytes=settings.spool_max_bytes
        )
        stack.callback(spool.close)
    # Answers name their receipts; a proof is fetched by its id.
    return AuditWriter(channel, producer_id=settings.producer_id, spool=spool, with_proof=False)


def _erasers(
    settings: GatewaySettings, channels: dict[str, grpc.aio.Channel], writer: AuditWriter
) -> dict[str, Eraser]:
    """The parts that keep something of a person, beside the log."""
    parts = {"gateway": spool_eraser(writer)}
    if settings.tools_address is not None:
        parts[TOOLS] = tools_eraser(settings.tools_address, settings.tls)
    if TRAINER in channels:
        parts[TRAINER] = trainer_eraser(channels[TRAINER])
    return parts


def _pin(settings: GatewaySettings, channel: grpc.aio.Channel, writer: AuditWriter) -> CheckpointPin | None:
    if settings.checkpoint_file is None:
        return None
    if settings.audit_vkey_file is None:
        raise InvalidArgumentError("KALA_GATEWAY_AUDIT_VKEY_FILE", "is needed to pin the log's checkpoints")
    return CheckpointPin(
        settings.checkpoint_file,
        trusted=load_verifiers(settings.audit_vkey_file),
        log=AuditReadServiceStub(channel),
        seen=lambda: writer.checkpoint,
    )


def _secret(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return load_or_create_secret_key(path)


def _now() -> datetime:
    return datetime.now(UTC)


def _version() -> str:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0.0.0"
