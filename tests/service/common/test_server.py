"""A server's life: where it listens, what it says of its health, and how it ends."""

from __future__ import annotations

import asyncio
import socket
import stat
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from kala import errors
from services.common.channel import open_channel
from services.common.peers import PEER_METADATA_KEY
from services.common.server import serving
from services.common.settings import GrpcServerSettings
from services.common.status import translated
from tests.fakes.echo import CALLER, SERVICE, WAIT, EchoClient, EchoService, register, served_echo

Health = health_pb2.HealthCheckResponse


@pytest.mark.parametrize("service", ["", SERVICE], ids=["whole", "by-name"])
async def test_health_is_not_serving_until_the_service_says_so(service: str) -> None:
    request = health_pb2.HealthCheckRequest(service=service)
    async with (
        serving(GrpcServerSettings(), [partial(register, EchoService())]) as server,
        grpc.aio.insecure_channel(server.address) as channel,  # ours would wait for SERVING itself
    ):
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(request, timeout=5)
        assert (await watch.read()).status == Health.NOT_SERVING
        await server.set_serving()
        assert (await watch.read()).status == Health.SERVING
        assert (await health.Check(request)).status == Health.SERVING
        await server.set_not_serving()
        assert (await watch.read()).status == Health.NOT_SERVING


async def test_health_knows_only_its_own_services() -> None:
    request = health_pb2.HealthCheckRequest(service="kala.other.v1.OtherService")
    async with (
        served_echo(EchoService()) as server,
        open_channel(server.address, peer_name=CALLER) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(errors.NotFoundError), translated():
            await health.Check(request)
        assert (await health.Watch(request).read()).status == Health.SERVICE_UNKNOWN


async def test_a_withheld_service_is_not_ready_while_its_calls_still_come() -> None:
    async with (
        served_echo(EchoService()) as server,
        open_channel(server.address, peer_name=CALLER) as channel,
    ):
        await server.set_serving(withheld=[SERVICE])
        health = health_pb2_grpc.HealthStub(channel)
        by_name = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert by_name.status == Health.NOT_SERVING
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == Health.SERVING
        assert await EchoClient(channel).say("why?") == "WHY?"


async def test_reflection_lists_the_services() -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async with (
        served_echo(EchoService()) as server,
        open_channel(server.address, peer_name=CALLER) as channel,
    ):
        replies = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
        reply = await replies.read()
    names = {service.name for service in reply.list_services_response.service}
    assert names == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def test_a_running_call_ends_well_while_new_ones_are_refused() -> None:
    service = EchoService()
    async with AsyncExitStack() as stack:
        server_stack = await stack.enter_async_context(AsyncExitStack())
        server = await server_stack.enter_async_context(
            served_echo(service, drain_seconds=5, balancer_wait_seconds=0.1)
        )
        client = EchoClient(await stack.enter_async_context(open_channel(server.address, peer_name=CALLER)))
        late = EchoClient(await stack.enter_async_context(open_channel(server.address, peer_name=CALLER)))
        assert await late.say("early") == "EARLY"
        running = asyncio.create_task(client.say(WAIT))
        await asyncio.wait_for(service.waiting.wait(), 5)
        drain = asyncio.create_task(server_stack.aclose())
        assert isinstance(await late.first_failure(), errors.UnavailableError)
        assert not drain.done()
        service.release.set()
        assert await running == "WAIT"
        await asyncio.wait_for(drain, 2)


async def test_a_client_that_does_not_watch_health_is_told_to_go_elsewhere() -> None:
    service = EchoService()
    async with AsyncExitStack() as stack:
        server_stack = await stack.enter_async_context(AsyncExitStack())
        server = await server_stack.enter_async_context(served_echo(service, drain_seconds=5))
        client = EchoClient(await stack.enter_async_context(open_channel(server.address, peer_name=CALLER)))
        plain = EchoClient(await stack.enter_async_context(grpc.aio.insecure_channel(server.address)))
        running = asyncio.create_task(client.say(WAIT))
        await asyncio.wait_for(service.waiting.wait(), 5)
        drain = asyncio.create_task(server_stack.aclose())
        refusal = await plain.first_failure(metadata=((PEER_METADATA_KEY, CALLER),))
        assert (type(refusal), refusal.reason) == (errors.UnavailableError, "STOPPING")
        service.release.set()
        assert await running == "WAIT"
        await drain


async def test_a_call_that_outlasts_the_drain_is_cancelled() -> None:
    service = EchoService()
    async with AsyncExitStack() as stack:
        server_stack = await stack.enter_async_context(AsyncExitStack())
        server = await server_stack.enter_async_context(served_echo(service, drain_seconds=0.1))
        client = EchoClient(await stack.enter_async_context(open_channel(server.address, peer_name=CALLER)))
        running = asyncio.create_task(client.say(WAIT))
        await asyncio.wait_for(service.waiting.wait(), 5)
        await asyncio.wait_for(server_stack.aclose(), 3)
        assert service.unwound.is_set()
        with pytest.raises((errors.UnavailableError, errors.CancelledError)), translated():
            await running


async def test_an_open_health_watch_does_not_use_the_whole_drain() -> None:
    async with AsyncExitStack() as stack:
        server_stack = await stack.enter_async_context(AsyncExitStack())
        server = await server_stack.enter_async_context(served_echo(EchoService(), drain_seconds=60))
        channel = await stack.enter_async_context(open_channel(server.address, peer_name=CALLER))
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert (await watch.read()).status == Health.SERVING
        await asyncio.wait_for(server_stack.aclose(), 3)
        assert (await watch.read()).status == Health.NOT_SERVING


async def test_a_socket_is_for_its_owner_only_and_gone_afterwards(private: Path) -> None:
    path = private / "echo.sock"
    async with served_echo(EchoService(), address=f"unix:{path}") as server:
        assert server.address == f"unix:{path}"
        assert server.port is None
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


async def test_a_stale_socket_is_replaced(private: Path) -> None:
    path = private / "echo.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with (
        served_echo(EchoService(), address=f"unix:{path}") as server,
        open_channel(server.address, peer_name=CALLER) as channel,
    ):
        assert await EchoClient(channel).say("yes") == "YES"


async def test_a_socket_that_is_served_is_not_taken_over(private: Path) -> None:
    address = f"unix:{private}/echo.sock"
    async with served_echo(EchoService(), address=address) as server:
        with pytest.raises(errors.FailedPreconditionError, match="another process already serves"):
            async with served_echo(EchoService(), address=address):
                pass
        async with open_channel(server.address, peer_name=CALLER) as channel:
            assert await EchoClient(channel).say("yes") == "YES"


async def test_a_file_in_the_way_is_kept(private: Path) -> None:
    path = private / "echo.sock"
    path.write_text("precious")
    with pytest.raises(errors.FailedPreconditionError, match="not a socket"):
        async with served_echo(EchoService(), address=f"unix:{path}"):
            pass
    assert path.read_text() == "precious"


@pytest.mark.parametrize("mode", [0o755, 0o701, 0o770], ids=oct)
async def test_a_directory_that_others_may_enter_is_refused(private: Path, mode: int) -> None:
    await asyncio.to_thread(private.chmod, mode)
    with pytest.raises(errors.FailedPreconditionError, match="private to its owner"):
        async with served_echo(EchoService(), address=f"unix:{private}/echo.sock"):
            pass


async def test_a_missing_directory_is_named(private: Path) -> None:
    with pytest.raises(errors.FailedPreconditionError, match="nowhere"):
        async with served_echo(EchoService(), address=f"unix:{private}/nowhere/echo.sock"):
            pass


async def test_a_port_that_is_taken_is_named() -> None:
    async with served_echo(EchoService()) as server:
        with pytest.raises(errors.FailedPreconditionError, match=server.address):
            async with served_echo(EchoService(), address=server.address):
                pass


async def test_the_bound_port_is_told() -> None:
    async with served_echo(EchoService()) as server:
        assert server.port
        assert server.address == f"127.0.0.1:{server.port}"


async def test_settings_that_skipped_their_check_still_open_no_port_to_other_machines() -> None:
    settings = GrpcServerSettings.model_construct(**(dict(GrpcServerSettings()) | {"address": "0.0.0.0:0"}))
    with pytest.raises(errors.FailedPreconditionError, match="TLS"):
        async with serving(settings, []):
            pass
