"""An inference service whose answers a test writes; it verifies clearances as the real one does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from kala.common.v1 import usage_pb2
from kala.errors import KalaError, UnavailableError
from kala.inference.v1 import inference_pb2 as pb
from kala.inference.v1 import inference_pb2_grpc
from services.common.clearance import ClearanceVerifier, current_clearance
from services.common.peers import Context
from services.common.sealing import unpack_strictly
from services.common.status import abort
from services.inference.config import InferenceSettings
from services.inference.live_settings import LiveSettings
from services.inference.setting_rpc import apply_settings

BACKEND = "backends/fake"
MODEL = "fake-model"
REPLY = "The capital of France is Paris."

Step = pb.ChatResponse | KalaError | asyncio.Event | float
"""A message to send, an error to end with, an event to wait for, or seconds to wait."""


def route(*, attempts: Sequence[pb.Attempt] = ()) -> pb.ChatResponse:
    tried = [*attempts, pb.Attempt(backend=BACKEND, model=MODEL)]
    return pb.ChatResponse(
        route=pb.RouteInfo(backend=BACKEND, kind="fake", model=MODEL, attempts=tried, base_digest=b"b" * 32)
    )


def text(words: str) -> pb.ChatResponse:
    return pb.ChatResponse(delta=pb.ChatDelta(text=words))


def finish(reason: pb.FinishReason.ValueType = pb.FINISH_REASON_STOP) -> pb.ChatResponse:
    return pb.ChatResponse(
        finish=pb.ChatFinish(
            reason=reason,
            usage=usage_pb2.Usage(input_tokens=7, output_tokens=5),
            attempts=[pb.Attempt(backend=BACKEND, model=MODEL)],
        )
    )


def saying(*pieces: str) -> list[Step]:
    return [route(), *map(text, pieces), finish()]


@dataclass
class ScriptedInference(inference_pb2_grpc.InferenceServiceServicer):
    """Plays `script` for every Chat."""

    script: Callable[[pb.ChatAction], Sequence[Step]] = lambda _action: saying(REPLY)
    count: Callable[[pb.CountTokensRequest], pb.CountTokensResponse | KalaError] = lambda request: (
        pb.CountTokensResponse(tokens=9, fitted=request.messages, fitted_tokens=9, backend=BACKEND)
    )
    count_waits: asyncio.Event | None = None
    """What every CountTokens waits for before it answers; None lets it answer at once."""
    verifier: ClearanceVerifier | None = None
    trailers: tuple[tuple[str, bytes], ...] = ()
    chats: list[pb.ChatAction] = field(default_factory=list)
    counts: list[pb.CountTokensRequest] = field(default_factory=list)
    completes: list[pb.CompleteAction] = field(default_factory=list)
    embeds: list[pb.EmbedAction] = field(default_factory=list)
    reranks: list[pb.RerankAction] = field(default_factory=list)
    task_error: KalaError | None = None
    """What every Embed and Rerank ends with; None lets them answer."""
    vectors: Sequence[Sequence[float]] = ((0.5, 1.0),)
    """What texts become, over and over."""
    degraded: bool = False
    lm_studio: pb.CheckBackendResponse | None = None
    """What a test of LM Studio finds; None means that there is no LM Studio."""
    pull_seconds: float = 0.0
    """How long the newest PullModel was given."""
    checks: list[pb.CheckBackendRequest] = field(default_factory=list)
    live: LiveSettings = field(
        default_factory=lambda: LiveSettings(InferenceSettings(), {"mlx_url": "flag"}, lambda _: None)
    )
    """The real ones, which nobody follows."""
    began: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def Chat(  # noqa: N802 - the contract's name
        self, request: pb.ChatRequest, context: Context
    ) -> AsyncIterator[pb.ChatResponse]:
        action = unpack_strictly(current_clearance().action, pb.ChatAction)
        self.chats.append(action)
        self.began.set()
        try:
            async for step in self._steps(action, context):
                yield step
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def _steps(self, action: pb.ChatAction, context: Context) -> AsyncIterator[pb.ChatResponse]:
        for step in self.script(action):
            match step:
                case pb.ChatResponse():
                    yield step
                case KalaError():
                    context.set_trailing_metadata(self.trailers)
                    await abort(context, step)
                case asyncio.Event():
                    await step.wait()
                case _:
                    await asyncio.sleep(step)

    async def ApplySettings(  # noqa: N802 - the contract's name
        self, request: pb.ApplySettingsRequest, context: Context
    ) -> pb.ApplySettingsResponse:
        try:
            return apply_settings(self.live, request)
        except KalaError as error:
            await abort(context, error)
            raise

    async def CountTokens(  # noqa: N802 - the contract's name
        self, request: pb.CountTokensRequest, context: Context
    ) -> pb.CountTokensResponse:
        self.counts.append(request)
        if self.count_waits is not None:
            self.began.set()
            try:
                await self.count_waits.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        counted = self.count(request)
        if isinstance(counted, KalaError):
            await abort(context, counted)
        return counted

    async def Embed(  # noqa: N802 - the contract's name
        self, request: pb.EmbedRequest, context: Context
    ) -> pb.EmbedResponse:
        action = unpack_strictly(current_clearance().action, pb.EmbedAction)
        self.embeds.append(action)
        await self._fail_if_told(context)
        return pb.EmbedResponse(
            embeddings=[
                pb.Embedding(index=i, values=self.vectors[i % len(self.vectors)])
                for i, _ in enumerate(action.inputs)
            ],
            route=route().route,
            usage=usage_pb2.Usage(input_tokens=3),
        )

    async def Rerank(  # noqa: N802 - the contract's name
        self, request: pb.RerankRequest, context: Context
    ) -> pb.RerankResponse:
        action = unpack_strictly(current_clearance().action, pb.RerankAction)
        self.reranks.append(action)
        await self._fail_if_told(context)
        order = sorted(range(len(action.documents)), key=lambda i: -len(action.documents[i]))
        wanted = action.top_n if action.HasField("top_n") else len(order)
        return pb.RerankResponse(
            results=[pb.RerankResult(index=i, score=float(len(action.documents[i]))) for i in order[:wanted]],
            degraded=self.degraded,
            route=route().route,
            usage=usage_pb2.Usage(input_tokens=3),
        )

    async def _fail_if_told(self, context: Context) -> None:
        if self.task_error is not None:
            context.set_trailing_metadata(self.trailers)
            await abort(context, self.task_error)

    async def Complete(  # noqa: N802 - the contract's name
        self, request: pb.CompleteRequest, context: Context
    ) -> AsyncIterator[pb.CompleteResponse]:
        action = unpack_strictly(current_clearance().action, pb.CompleteAction)
        self.completes.append(action)
        self.began.set()
        try:
            async for step in self._steps(pb.ChatAction(), context):
                yield pb.CompleteResponse(
                    route=step.route if step.HasField("route") else None,
                    text=step.delta.text,
                    finish=step.finish if step.HasField("finish") else None,
                )
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def ListModels(  # noqa: N802 - the contract's name
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        ids = ["fake-model", "org/other-model"]
        start = int(request.page_token or 0)
        return pb.ListModelsResponse(
            models=[pb.Model(id=ids[start], backend=BACKEND, backend_model=ids[start], demo=False)],
            next_page_token=str(start + 1) if start + 1 < len(ids) else "",
        )

    async def GetBackend(  # noqa: N802 - the contract's name
        self, request: pb.GetBackendRequest, context: Context
    ) -> pb.GetBackendResponse:
        return pb.GetBackendResponse(backend=pb.Backend(name=request.name, kind="fake"))

    async def ListBackends(  # noqa: N802
        self, request: pb.ListBackendsRequest, context: Context
    ) -> pb.ListBackendsResponse:
        if self.lm_studio is not None:
            return pb.ListBackendsResponse(backends=[pb.Backend(name=BACKEND), self.lm_studio.backend])
        return pb.ListBackendsResponse(backends=[pb.Backend(name=f"backends/{request.page_size}")])

    async def CheckBackend(  # noqa: N802
        self, request: pb.CheckBackendRequest, context: Context
    ) -> pb.CheckBackendResponse:
        self.checks.append(request)
        return self.lm_studio or pb.CheckBackendResponse()

    async def PullModel(  # noqa: N802
        self, request: pb.PullModelRequest, context: Context
    ) -> AsyncIterator[pb.PullModelResponse]:
        self.pull_seconds = context.time_remaining() or 0.0
        if request.source == "nothing":
            return
        if request.source == "fail early":
            await abort(context, UnavailableError("the source does not answer"))
        yield pb.PullModelResponse(file="a", received_bytes=1)
        if request.source == "fail late":
            await abort(context, UnavailableError("the source went away"))
        yield pb.PullModelResponse(file="b", received_bytes=2)
