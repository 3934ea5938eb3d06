"""The inference RPCs: messages in, values through, messages out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kala.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    KalaError,
    NotFoundError,
)
from kala.inference.v1 import inference_pb2 as pb
from kala.inference.v1 import inference_pb2_grpc
from services.common.clearance import VerifiedClearance, current_clearance
from services.common.sealing import unpack_strictly
from services.inference import answers
from services.inference.adapters.desk import AdapterDesk
from services.inference.adapters.trust import Trust, TrustFiles
from services.inference.attempts import Attempt
from services.inference.backend import Capability
from services.inference.context.counting import count
from services.inference.context.rpc import action_of, counted_response, first_of, strategy_of
from services.inference.conversion import chat_call, wanted
from services.inference.dispatch import Dispatch
from services.inference.live_settings import LiveSettings
from services.inference.model_loading import ModelLoading
from services.inference.pages import page
from services.inference.protection.protection import Protection
from services.inference.pull.pulling import Pulling
from services.inference.roles import Routing
from services.inference.router import TASKS, Route, Wanted, choose, explain
from services.inference.setting_rpc import apply_settings
from services.inference.task_rpcs import Tasks

if TYPE_CHECKING:
    from services.common.peers import Context
    from services.inference.registry.registry import Entry, Registry

ATTEMPTS_METADATA_KEY: Final = "kala-attempts-bin"
"""Trailing metadata of a failed act: a serialised ChatFinish that holds the attempts, the digest of what was added, and nothing else."""

_NEEDS: Final = {number: capability for capability, number in answers.CAPABILITIES.items()}


@dataclass(frozen=True, slots=True)
class Service:
    """What the servicer works with."""

    registry: Registry
    recheck: Callable[[VerifiedClearance], None]
    max_act_seconds: float
    routing: Routing = field(default_factory=Routing)
    protection: Protection = field(default_factory=Protection)
    pulling: Pulling = field(default_factory=Pulling)
    wall_clock: Callable[[], float] = time.time
    adapters: AdapterDesk | None = None
    """None where no adapter can be verified."""
    live: LiveSettings | None = None
    """None where nothing changes while the process runs."""


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Serves every RPC of the contract."""

    def __init__(self, service: Service) -> None:
        self._registry = service.registry
        self._recheck = service.recheck
        self._max_act_seconds = service.max_act_seconds
        self._routing = service.routing
        self._protection = service.protection
        self._pulling = service.pulling
        self._wall_clock = service.wall_clock
        self._adapters = service.adapters or AdapterDesk(service.registry, Trust(TrustFiles()), Path())
        self._live = service.live
        self._loading = ModelLoading(service.registry, service.max_act_seconds)
        self._tasks = Tasks(
            service.registry,
            service.protection,
            service.routing,
            service.recheck,
            choose=self._choose,
            explain=self._explain,
        )

    def reroute(self, routing: Routing) -> None:
        """Route requests that come from now on by other rules."""
        self._routing = routing
        self._tasks = replace(self._tasks, routing=routing)

    async def ApplySettings(
        self,
        request: pb.ApplySettingsRequest,
        context: Context,  # noqa: ARG002 - the contract names it
    ) -> pb.ApplySettingsResponse:
        """Take changed settings, or say only what would be in force."""
        if self._live is None:
            raise FailedPreconditionError("this process takes no changes of its settings")
        return apply_settings(self._live, request)

    async def Chat(self, request: pb.ChatRequest, context: Context) -> AsyncIterator[pb.ChatResponse]:  # noqa: ARG002 - the contract names it
        """Generate one answer; the clearance was verified by the guard and is asked again before each attempt."""
        clearance = current_clearance()
        action = unpack_strictly(clearance.action, pb.ChatAction)
        role = self._routing.role(action.role)
        call = chat_call(action).filled(role.sampling)
        destination = self._routing.settle(wanted(action, call), role)
        async with _at_most(self._max_act_seconds):
            await self._adapters.require(call.adapters, clearance.claims)
            route = await self._choose(destination)
            dispatch = Dispatch(
                self._registry,
                call,
                route,
                recheck=lambda: self._recheck(clearance),
                protection=self._protection,
            )
            try:
                async with aclosing(dispatch.run()) as steps:
                    async for response in answers.together(steps, is_whole=not call.stream):
                        yield response
            except KalaError:
                _tell_attempts(context, dispatch.attempts, dispatch.derived_digest)
                raise

    async def Complete(
        self,
        request: pb.CompleteRequest,  # noqa: ARG002 - the guard has read it
        context: Context,
    ) -> AsyncIterator[pb.CompleteResponse]:
        """Continue a text."""
        told = partial(_tell_attempts, context)
        async with (
            _at_most(self._max_act_seconds),
            aclosing(self._tasks.complete(current_clearance(), told)) as responses,
        ):
            async for response in responses:
                yield response

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:  # noqa: ARG002 - as above
        """Turn texts into vectors."""
        async with _at_most(self._max_act_seconds):
            return await self._tasks.embed(current_clearance(), partial(_tell_attempts, context))

    async def Rerank(self, request: pb.RerankRequest, context: Context) -> pb.RerankResponse:  # noqa: ARG002 - as above
        """Order documents by their bearing on a query."""
        async with _at_most(self._max_act_seconds):
            return await self._tasks.rerank(current_clearance(), partial(_tell_attempts, context))

    async def CountTokens(
        self,
        request: pb.CountTokensRequest,
        context: Context,  # noqa: ARG002 - the contract names it
    ) -> pb.CountTokensResponse:
        """Count a prompt for the model that would be tried first, and fit it to its context if asked."""
        strategy, action = strategy_of(request), action_of(request)
        call = chat_call(action)
        destination = self._routing.settle(wanted(action, call), self._routing.role(action.role))
        candidate = first_of(await self._choose(destination))
        entry = self._entry(answers.NAME_PREFIX + candidate.backend, "model")
        counted = await count(
            entry.backend,
            call,
            candidate.model,
            strategy=strategy,
            reserved_tokens=request.reserve_output_tokens,
        )
        return counted_response(counted, candidate)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:  # noqa: ARG002 - the contract names it
        """List what can be asked for now."""
        await self._registry.ready()
        listed = answers.models(self._registry.entries())
        if request.backend:
            self._entry(request.backend, "backend")
            listed = [model for model in listed if model.backend == request.backend]
        chosen, following = page(
            listed,
            key=lambda model: f"{model.backend}\n{model.id}",
            rpc="ListModels",
            filters=request.backend,
            size=request.page_size,
            token=request.page_token,
            now=self._wall_clock(),
        )
        return pb.ListModelsResponse(models=chosen, next_page_token=following)

    async def GetBackend(self, request: pb.GetBackendRequest, context: Context) -> pb.GetBackendResponse:  # noqa: ARG002 - the contract names it
        """Show one backend as last seen."""
        await self._registry.ready()
        return pb.GetBackendResponse(backend=self._backend(self._entry(request.name, "name")))

    async def ListBackends(
        self,
        request: pb.ListBackendsRequest,
        context: Context,  # noqa: ARG002 - the contract names it
    ) -> pb.ListBackendsResponse:
        """Show the chain."""
        await self._registry.ready()
        chosen, following = page(
            [answers.backend(entry, position) for position, entry in enumerate(self._registry.entries())],
            key=lambda backend: backend.name,
            rpc="ListBackends",
            filters="",
            size=request.page_size,
            token=request.page_token,
            now=self._wall_clock(),
        )
        return pb.ListBackendsResponse(backends=chosen, next_page_token=following)

    async def CheckBackend(
        self,
        request: pb.CheckBackendRequest,
        context: Context,  # noqa: ARG002 - the contract names it
    ) -> pb.CheckBackendResponse:
        """Test one backend now."""
        await self._registry.ready()
        entry = self._entry(request.name, "name")
        async with _at_most(self._max_act_seconds):
            steps = await entry.backend.diagnose(request.model)
        await self._registry.look(entry)
        return pb.CheckBackendResponse(backend=self._backend(entry), checks=answers.checks(steps))

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:  # noqa: ARG002 - the contract names it
        """Load a model into a backend's memory; the clearance is asked again right before."""
        clearance = current_clearance()
        action = unpack_strictly(clearance.action, pb.LoadModelAction)
        await self._registry.ready()
        entry = self._entry(action.backend, "backend")
        if action.files:
            problem = (
                "must be empty: a backend loads its own files, which cannot be held against digests here"
            )
            raise InvalidArgumentError("files", problem)
        context_tokens = action.context_tokens if action.HasField("context_tokens") else None
        loaded = await self._loading.load(
            entry, action.model, context_tokens, partial(self._recheck, clearance)
        )
        return pb.LoadModelResponse(
            model=answers.model(self._registry.entries(), entry, loaded.model),
            elapsed=answers.duration(loaded.elapsed_seconds),
        )

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:  # noqa: ARG002 - the contract names it
        """Take a model out of a backend's memory."""
        await self._registry.ready()
        entry = self._entry(request.backend, "backend")
        unloaded = await self._loading.unload(entry, request.model)
        return pb.UnloadModelResponse(model=answers.model(self._registry.entries(), entry, unloaded.model))

    async def PullModel(
        self,
        request: pb.PullModelRequest,
        context: Context,  # noqa: ARG002 - the contract names it
    ) -> AsyncIterator[pb.PullModelResponse]:
        """Get a model's files onto this machine; the caller's leaving stops it."""
        entry = self._entry(request.backend, "backend") if request.backend else None
        async with aclosing(
            self._pulling.pull(request, None if entry is None else entry.backend)
        ) as responses:
            async for response in responses:
                yield response
        self._registry.look_soon()

    async def LoadAdapter(self, request: pb.LoadAdapterRequest, context: Context) -> pb.LoadAdapterResponse:  # noqa: ARG002 - the contract names it
        """Verify a signed, gated adapter and let it serve; the clearance is asked again right before."""
        clearance = current_clearance()
        action = unpack_strictly(clearance.action, pb.LoadAdapterAction)
        await self._registry.ready()
        async with _at_most(self._max_act_seconds):
            elapsed = await self._adapters.load(
                self._entry(action.backend, "backend"),
                action,
                clearance.claims,
                partial(self._recheck, clearance),
            )
        return pb.LoadAdapterResponse(adapter=action.adapter, elapsed=answers.duration(elapsed))

    async def UnloadAdapter(
        self,
        request: pb.UnloadAdapterRequest,
        context: Context,  # noqa: ARG002 - the contract names it
    ) -> pb.UnloadAdapterResponse:
        """Take an adapter out of service."""
        entries = [self._entry(request.backend, "backend")] if request.backend else self._registry.entries()
        await self._adapters.unload(entries, request.adapter)
        return pb.UnloadAdapterResponse(adapter=request.adapter)

    async def ExplainRoute(
        self,
        request: pb.ExplainRouteRequest,
        context: Context,  # noqa: ARG002 - the contract names it
    ) -> pb.ExplainRouteResponse:
        """Say where a request would go."""
        await self._registry.ready()
        needs = frozenset(_NEEDS[number] for number in request.needs if number in _NEEDS)
        task = next((need for need in TASKS if need in needs), Capability.CHAT)
        role = self._routing.role(request.role)
        asked = Wanted(request.model, request.provider, needs, task, allow_remote=request.allow_remote)
        route = explain(self._routing.settle(asked, role), self._registry.views(), self._routing.chain)
        route = self._protection.explained(route, self._registry.get, task)
        return pb.ExplainRouteResponse(candidates=answers.candidates(route))

    async def _choose(self, destination: Wanted) -> Route:
        await self._registry.ready()
        try:
            route = choose(destination, self._registry.views(), self._routing.chain)
        except KalaError:
            # The last look may be seconds old: a server may have been started or a model loaded since.
            if not await self._registry.recheck():
                raise
            route = choose(destination, self._registry.views(), self._routing.chain)
        return self._protection.arranged(route, self._registry.get)

    def _explain(self, destination: Wanted) -> Route:
        route = explain(destination, self._registry.views(), self._routing.chain)
        return self._protection.arranged(route, self._registry.get)

    def _entry(self, name: str, field: str) -> Entry:
        if not name.startswith(answers.NAME_PREFIX):
            raise InvalidArgumentError(field, "must be backends/<name>")
        entry = self._registry.get(name.removeprefix(answers.NAME_PREFIX))
        if entry is None:
            known = ", ".join(
                answers.NAME_PREFIX + entry.backend.identity.name for entry in self._registry.entries()
            )
            raise NotFoundError(f"there is no {name}; there are: {known or 'none'}")
        return entry

    def _backend(self, entry: Entry) -> pb.Backend:
        return answers.backend(entry, self._registry.entries().index(entry))


def inference_servicer(service: Service) -> InferenceServicer:
    """Make the servicer of one process."""
    return InferenceServicer(service)


@asynccontextmanager
async def _at_most(seconds: float) -> AsyncIterator[None]:
    """End an act that lasts longer; raises DeadlineExceededError then."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceededError(
            f"the generation was ended after {seconds:g} s", reason="MAX_ACT_SECONDS"
        ) from None


def _tell_attempts(context: Context, tried: list[Attempt], derived_digest: bytes = b"") -> None:
    if tried:
        finish = pb.ChatFinish(attempts=answers.attempts(tried), derived_digest=derived_digest)
        context.set_trailing_metadata(((ATTEMPTS_METADATA_KEY, finish.SerializeToString()),))
