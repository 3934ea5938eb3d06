"""The inference process: read the settings, put the parts together, serve until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

from kala.errors import InvalidArgumentError
from kala.inference.v1 import inference_pb2, inference_pb2_grpc
from services.common.audit_channel import open_audit_writer
from services.common.clearance import ClearanceVerifier, guard_for
from services.common.event_loop import run
from services.common.interceptors import CallPolicy
from services.common.keys import load_public_keys
from services.common.peers import INFERENCE
from services.common.server import serving
from services.common.settings import load_with_sources
from services.common.telemetry import process_telemetry
from services.inference.adapters.desk import AdapterDesk
from services.inference.adapters.trust import Trust, TrustFiles
from services.inference.backend import Kind, State
from services.inference.backends.make import ServerFactory, pythia_backends
from services.inference.backends.make_remote import remote_backends
from services.inference.backends.pythia import PythiaBackend
from services.inference.config import SECTION, InferenceSettings
from services.inference.live_settings import LiveSettings
from services.inference.protection.guard import Limits
from services.inference.protection.metrics import AttemptCounter, BackendCollector
from services.inference.protection.probes import Prober
from services.inference.protection.protection import Protection
from services.inference.pull.pulling import Pulling, flags_of
from services.inference.records import ADMINISTRATIVE, Records
from services.inference.registry.discovery import PortScanner
from services.inference.registry.registry import Registry
from services.inference.router import SERVER_STARTING
from services.inference.servicer import Service, inference_servicer
from services.inference.setting_rpc import may_call
from services.inference.started.server import StartedServer


def make_registry(
    settings: InferenceSettings,
    pythia: Sequence[PythiaBackend] = (),
    started: Sequence[StartedServer] = (),
) -> Registry:
    """Put the configured backends, the servers started here, the models in process and the search for others together."""
    servers = ServerFactory(settings)
    finder = (
        PortScanner(settings.discovery_ports, servers.open_kinds(), servers.make)
        if settings.discover
        else None
    )
    return Registry(
        [*(server.backend for server in started), *servers.configured(), *pythia, *remote_backends(settings)],
        finder=finder,
        refresh_seconds=settings.refresh_seconds,
        chain=settings.routing.chain,
        limits=Limits(places=settings.max_in_flight + settings.max_waiting),
        started=frozenset(server.backend.identity.name for server in started),
    )


def follow_settings(settings: InferenceSettings, registry: Registry) -> None:
    """Let the registry have the model servers that changed settings name."""
    servers = ServerFactory(settings)
    finder = (
        PortScanner(settings.discovery_ports, servers.open_kinds(), servers.make)
        if settings.discover
        else None
    )
    registry.replace_servers(servers.configured(), finder=finder, chain=settings.routing.chain)


def adapter_desk(settings: InferenceSettings, registry: Registry) -> AdapterDesk:
    """Make what lets adapters in; raises KalaError where a pinned file does not hold."""
    trust = Trust(
        TrustFiles(
            trainer_keys=settings.trainer_public_keys,
            ethics_keys=settings.ethics_public_keys,
            tools_keys=settings.tools_public_keys,
            log_key=settings.audit_vkey_file,
            profiles=settings.gate_profiles,
            revocations=settings.adapter_revocations,
            allows_demo_profiles=settings.allow_demo_profiles,
        )
    )
    return AdapterDesk(registry, trust, settings.adapters_dir)


def make_prober(settings: InferenceSettings, registry: Registry, protection: Protection) -> Prober:
    """Make what tests the backends in the background."""
    return Prober(
        registry,
        protection,
        idle_looks=settings.idle_test_looks,
        latency_seconds=settings.health_seconds,
        cold_seconds=settings.first_byte_seconds,
    )


async def preload(registry: Registry, pythia: Sequence[PythiaBackend]) -> None:
    """Load the model in process ahead of the first request, if no model server answers; the configured before the demo."""
    await registry.ready()
    others = [view for view in registry.views() if view.identity.kind is not Kind.PYTHIA]
    usable = [backend for backend in pythia if backend.identity.name in ready_names(registry)]
    if usable and not any(view.is_answering or view.status.reason == SERVER_STARTING for view in others):
        await usable[0].preload()
        await registry.refresh()


def ready_names(registry: Registry) -> frozenset[str]:
    """Give the names of the backends that can serve."""
    return frozenset(view.name for view in registry.views() if view.status.state is State.READY)


def call_policy(verifier: ClearanceVerifier, records: Records) -> CallPolicy:
    """Say which calls need a clearance and which are recorded here."""
    return CallPolicy(
        guard_for=guard_for(verifier, [inference_pb2.DESCRIPTOR]),
        administrative=ADMINISTRATIVE,
        on_denied=records.denied,
        on_administrative=records.administrative,
        may_call=may_call,
    )


async def main() -> None:
    """Serve until SIGTERM or SIGINT; a KalaError says in one line why the process cannot start."""
    settings, sources = load_with_sources(InferenceSettings, section=SECTION)
    if not settings.ethics_public_keys:
        raise InvalidArgumentError(
            "KALA_INFERENCE_ETHICS_PUBLIC_KEYS",
            "must name ethics' public key: without it nothing can be cleared",
        )
    verifier = ClearanceVerifier(load_public_keys(settings.ethics_public_keys))
    pythia = pythia_backends(settings)
    started = ServerFactory(settings).started(os.environ)
    registry = make_registry(settings, pythia, started)
    async with AsyncExitStack() as stack:
        telemetry = stack.enter_context(process_telemetry(INFERENCE, settings))
        telemetry.registry.register(BackendCollector(registry.entries))
        protection = Protection(observe=AttemptCounter(telemetry.registry))

        def follow(changed: InferenceSettings) -> None:
            follow_settings(changed, registry)
            servicer.reroute(changed.routing)

        service = Service(
            registry,
            verifier.recheck,
            settings.max_act_seconds,
            settings.routing,
            protection,
            Pulling(flags_of(settings)),
            adapters=adapter_desk(settings, registry),
            live=LiveSettings(settings, sources, follow),
        )
        servicer = inference_servicer(service)
        register = partial(inference_pb2_grpc.add_InferenceServiceServicer_to_server, servicer)
        writer = await open_audit_writer(settings, stack, part=INFERENCE)
        policy = call_policy(verifier, Records(writer))
        stack.push_async_callback(registry.aclose)
        # Before the server, so that they end after it has served its last call.
        for child in started:
            child.changed = registry.look_soon
            stack.push_async_callback(_ended, asyncio.create_task(child.run()))
        server = await stack.enter_async_context(
            serving(settings, [register], policy=policy, telemetry=telemetry.rpc)
        )
        prober = make_prober(settings, registry, protection)
        for background in (registry.run(), prober.run(), preload(registry, pythia)):
            stack.push_async_callback(_ended, asyncio.create_task(background))
        await server.set_serving()
        await server.run_until_signalled()


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    sys.exit(run(main()))
