"""The core that every endpoint stands on: who may act, the pipeline of one act, and the endpoints others build on."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.background import Background
from gateway.bridge_routes import Binding, bindings_of, contract_files
from gateway.chat import ChatCompletions, ChatLimits
from gateway.chat_runs import ChatRuns
from gateway.chat_tools import ChatTools
from gateway.completions import Completions
from gateway.conversations.session_store import SessionStore
from gateway.conversations.sessions import Sessions
from gateway.destination import Destinations
from gateway.gate import Gate
from gateway.generation import HoldBounds
from gateway.guarded import GuardedCalls
from gateway.identity import Pseudonyms
from gateway.intake import Desk
from gateway.judge import EthicsClient
from gateway.ledger import Ledger
from gateway.payloads import Payloads
from gateway.pipeline import Pipeline
from gateway.text_tasks import EMBEDDINGS, Method, Request, TextTask, TextTasks
from gateway.tool_runs import EXECUTE_RPC, ToolRuns
from gateway.tool_story import LoopLimits
from kala.ethics.v1.ethics_pb2_grpc import EthicsServiceStub
from kala.inference.v1.inference_pb2_grpc import InferenceServiceStub
from kala.tools.v1.tools_pb2_grpc import ToolsServiceStub
from services.common.peers import ETHICS, INFERENCE, TOOLS

if TYPE_CHECKING:
    import grpc
    from sqlalchemy import Engine

    from gateway.config import GatewaySettings
    from gateway.text_tasks_schema import EmbeddingRequest
    from kala.inference.v1.inference_pb2_grpc import InferenceServiceAsyncStub


@dataclass(frozen=True, slots=True)
class Core:
    """What features work with. `stack` closes what they open, in reverse order."""

    settings: GatewaySettings
    stack: AsyncExitStack
    engine: Engine
    """The gateway's database, at its newest schema."""
    payloads: Payloads
    """Seals what is stored of people."""
    pseudonyms: Pseudonyms
    background: Background
    channels: Mapping[str, grpc.aio.Channel]
    desk: Desk
    ethics: EthicsClient
    inference: InferenceServiceAsyncStub
    pipeline: Pipeline
    guarded: GuardedCalls
    bindings: Mapping[str, Binding]
    """By the RPC's full name."""
    chat_runs: ChatRuns
    chat: ChatCompletions
    completions: Completions
    embeddings: TextTasks[EmbeddingRequest]


def build_core(
    settings: GatewaySettings,
    channels: dict[str, grpc.aio.Channel],
    *,
    stack: AsyncExitStack,
    engine: Engine,
    gate: Gate,
    pseudonyms: Pseudonyms,
    ledger: Ledger,
    background: Background,
) -> Core:
    """Build the core of opened resources."""
    inference = InferenceServiceStub(channels[INFERENCE])
    ethics = EthicsClient(
        EthicsServiceStub(channels[ETHICS]),
        timeout_seconds=settings.judge_timeout_seconds,
        max_act_seconds=settings.max_act_seconds,
    )
    pipeline = _pipeline(settings, ethics, inference, ledger, background)
    guarded = GuardedCalls(pipeline=pipeline, ethics=ethics)
    desk = Desk(
        gate,
        ledger,
        Destinations(settings.provider, settings.allow_remote),
        settings.max_body_bytes,
        settings.body_timeout_seconds,
        settings.audit_policy == "spool",
    )
    payloads = Payloads(engine, settings.store_key_file)
    bindings = {binding.rpc: binding for binding in bindings_of(contract_files())}
    runs = ChatRuns(
        inference=inference,
        pipeline=pipeline,
        tools=_chat_tools(settings, guarded, bindings[EXECUTE_RPC], pipeline, channels),
        destinations=desk.destinations,
        may_spool=desk.may_spool,
        mid_stream=settings.mid_stream,
        truncation=settings.truncation,
    )
    return Core(
        settings=settings,
        stack=stack,
        engine=engine,
        payloads=payloads,
        pseudonyms=pseudonyms,
        background=background,
        channels=channels,
        desk=desk,
        ethics=ethics,
        inference=inference,
        pipeline=pipeline,
        guarded=guarded,
        bindings=bindings,
        chat_runs=runs,
        chat=ChatCompletions(
            runs,
            gate=desk.gate,
            ledger=desk.ledger,
            limits=chat_limits(settings),
            sessions=Sessions(SessionStore(engine, payloads)),
        ),
        completions=Completions(desk, pipeline=pipeline),
        embeddings=text_tasks(EMBEDDINGS, settings, desk, guarded, bindings, inference.Embed),
    )


def text_tasks(
    task: TextTask[Request],
    settings: GatewaySettings,
    desk: Desk,
    guarded: GuardedCalls,
    bindings: Mapping[str, Binding],
    method: Method,
) -> TextTasks[Request]:
    """Build the endpoint of one task on texts."""
    return TextTasks(
        task,
        desk,
        guarded=guarded,
        binding=bindings[task.rpc],
        method=method,
        max_act_seconds=settings.max_act_seconds,
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
        hold=HoldBounds(settings.hold_back_characters, settings.hold_back_milliseconds / 1000),
        max_act_seconds=settings.max_act_seconds,
    )


def chat_limits(settings: GatewaySettings) -> ChatLimits:
    """Give what one request with messages may bring."""
    return ChatLimits(settings.max_body_bytes, settings.max_image_body_bytes, settings.body_timeout_seconds)


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
        settings.tool_turns,
        settings.tool_calls,
        settings.tool_result_chars,
        settings.max_act_seconds,
        tokens=settings.tool_tokens,
    )
    return ChatTools(
        runs=runs, pipeline=pipeline, inference=InferenceServiceStub(channels[INFERENCE]), limits=limits
    )
