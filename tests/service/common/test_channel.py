"""What a channel adds to every call: a name, a trace, a deadline, balance, and retries where they are safe."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from kala import errors
from services.common.channel import RETRY_ATTEMPTS, open_channel
from services.common.deadlines import SHAVE_SECONDS, fresh_deadline
from services.common.peers import Context
from services.common.status import translated
from services.common.tracing import TraceContext, current_trace, enter_trace
from tests.fakes.echo import CALLER, SAY, WAIT, EchoClient, EchoService, echo_and_client, served_echo


class Flaky(EchoService):
    """Fails the first calls as a part does that is going away."""

    def __init__(self, failing_calls: int) -> None:
        super().__init__()
        self._failing_calls = failing_calls

    async def _answer(self, word: str, context: Context) -> StringValue:
        answer = await super()._answer(word, context)
        if len(self.heard) <= self._failing_calls:
            raise errors.UnavailableError("going away")
        return answer


async def test_an_idempotent_call_is_tried_again_when_the_server_is_unavailable() -> None:
    service = Flaky(2)
    async with (
        served_echo(service) as server,
        open_channel(server.address, peer_name=CALLER, idempotent={SAY}) as channel,
    ):
        assert await EchoClient(channel).say("yes") == "YES"
    assert len(service.heard) == 3


async def test_attempts_are_limited() -> None:
    service = Flaky(100)
    async with (
        served_echo(service) as server,
        open_channel(server.address, peer_name=CALLER, idempotent={SAY}) as channel,
    ):
        with pytest.raises(errors.UnavailableError), translated():
            await EchoClient(channel).say("yes")
    assert len(service.heard) == RETRY_ATTEMPTS


async def test_an_outage_is_not_multiplied_by_the_attempts() -> None:
    service = Flaky(10_000)
    calls = 200
    async with (
        served_echo(service) as server,
        open_channel(server.address, peer_name=CALLER, idempotent={SAY}) as channel,
    ):
        client = EchoClient(channel)
        await asyncio.gather(*(client.say("yes") for _ in range(calls)), return_exceptions=True)
    assert len(service.heard) < calls * 1.5


async def test_rare_failures_never_exhaust_the_attempts() -> None:
    class Tenth(EchoService):
        async def _answer(self, word: str, context: Context) -> StringValue:
            answer = await super()._answer(word, context)
            if len(self.heard) % 10 == 0:
                raise errors.UnavailableError("going away")
            return answer

    async with (
        served_echo(Tenth()) as server,
        open_channel(server.address, peer_name=CALLER, idempotent={SAY}) as channel,
    ):
        client = EchoClient(channel)
        for _ in range(10):
            assert await asyncio.gather(*(client.say("yes") for _ in range(40))) == ["YES"] * 40


async def test_a_call_that_is_not_listed_is_never_sent_twice() -> None:
    service = Flaky(1)
    async with echo_and_client(service) as client:
        with pytest.raises(errors.UnavailableError), translated():
            await client.say("yes")
    assert service.heard == ["yes"]


async def test_an_idempotent_call_is_not_tried_again_for_any_other_error() -> None:
    service = EchoService({"bad": errors.FailedPreconditionError("not yet")})
    async with (
        served_echo(service) as server,
        open_channel(server.address, peer_name=CALLER, idempotent={SAY}) as channel,
    ):
        with pytest.raises(errors.FailedPreconditionError), translated():
            await EchoClient(channel).say("bad")
    assert service.heard == ["bad"]


async def test_calls_are_spread_over_all_servers_that_serve() -> None:
    counts: Counter[int] = Counter()
    async with AsyncExitStack() as stack:
        services = [EchoService() for _ in range(3)]
        servers = [await stack.enter_async_context(served_echo(service)) for service in services]
        target = "ipv4:" + ",".join(server.address for server in servers)
        client = EchoClient(await stack.enter_async_context(open_channel(target, peer_name=CALLER)))
        while not all(service.heard for service in services):  # until all three connections are up
            await client.say("x", wait_for_ready=True)
        await servers[0].set_not_serving()
        while True:
            before = [len(service.heard) for service in services]
            for _ in range(6):
                await client.say("x")
            counts.update(
                {i: len(s.heard) - n for i, (s, n) in enumerate(zip(services, before, strict=True))}
            )
            if len(services[0].heard) == before[0]:
                break
    assert counts[1] > 0
    assert counts[2] > 0


async def test_a_server_that_restarts_is_found_again(private: Path) -> None:
    address = f"unix:{private}/echo.sock"
    async with open_channel(address, peer_name=CALLER) as channel:
        client = EchoClient(channel)
        for _ in range(2):
            async with served_echo(EchoService(), address=address):
                assert await client.say("yes", wait_for_ready=True) == "YES"


async def test_a_part_that_is_down_fails_at_once_and_not_at_the_deadline() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        async with open_channel(address, peer_name=CALLER) as channel:
            with pytest.raises(errors.UnavailableError), translated():
                await asyncio.wait_for(EchoClient(channel).say("yes", timeout=30), 5)


async def test_a_call_without_a_timeout_still_has_a_deadline() -> None:
    service = EchoService()
    async with (
        served_echo(service) as server,
        open_channel(server.address, peer_name=CALLER, default_timeout_seconds=0.1) as channel,
    ):
        with pytest.raises(errors.DeadlineExceededError), translated():
            await EchoClient(channel).say(WAIT)


@pytest.mark.parametrize("own_seconds", [None, 60.0], ids=["default", "longer"])
async def test_a_server_passes_on_what_is_left_of_its_own_deadline(own_seconds: float | None) -> None:
    left = await left_for_the_next_hop(own_seconds=own_seconds)
    # gRPC rounds deadlines of seconds up to hundredths on their way.
    assert 4 < left <= 5 - SHAVE_SECONDS + 0.01


async def test_a_shorter_timeout_of_its_own_stays() -> None:
    # gRPC rounds a deadline up to whole milliseconds on its way; the caller's own is 5 s.
    assert await left_for_the_next_hop(own_seconds=1.0) < 1.5


async def test_work_that_must_outlive_its_caller_can_ask_for_its_own_deadline() -> None:
    assert await left_for_the_next_hop(own_seconds=60.0, is_fresh=True) > 50


async def left_for_the_next_hop(*, own_seconds: float | None, is_fresh: bool = False) -> float:
    """Call a part with 5 s that calls another with `own_seconds`; give the seconds that the other one saw."""

    class Forwarding(EchoService):
        async def _answer(self, word: str, context: Context) -> StringValue:
            if not is_fresh:
                return await next_client.say_call(StringValue(value=word), timeout=own_seconds)
            with fresh_deadline():
                return await next_client.say_call(StringValue(value=word), timeout=own_seconds)

    last = EchoService(answers={"left": lambda context: str(context.time_remaining())})
    async with echo_and_client(last) as next_client, echo_and_client(Forwarding()) as client:
        return float(await client.say("left", timeout=5))


async def test_a_trace_goes_on_through_every_hop() -> None:
    seen: list[TraceContext | None] = []

    class Forwarding(EchoService):
        async def _answer(self, word: str, context: Context) -> StringValue:
            seen.append(current_trace())
            return await next_client.say_call(StringValue(value=word))

    last = EchoService(answers={"x": lambda _context: seen.append(current_trace()) or "done"})
    async with echo_and_client(last) as next_client, echo_and_client(Forwarding()) as client:
        enter_trace(TraceContext("ab" * 16, "cd" * 8, sampled=False))
        await client.say("x")
    assert [trace and trace.trace_id for trace in seen] == ["ab" * 16] * 2
    assert len({trace and trace.span_id for trace in seen} | {"cd" * 8}) == 3


@pytest.mark.parametrize(
    "address", ["10.0.0.5:50051", "ethics.kala:50051", "dns:///ethics:50051", "ipv4:127.0.0.1:1,10.0.0.5:1"]
)
async def test_nothing_goes_to_another_machine_in_the_clear(address: str) -> None:
    with pytest.raises(errors.FailedPreconditionError, match="needs TLS files"):
        open_channel(address, peer_name=CALLER)


async def test_a_channel_needs_a_deadline_and_a_usable_address() -> None:
    with pytest.raises(errors.InvalidArgumentError, match="deadline"):
        open_channel("127.0.0.1:1", peer_name=CALLER, default_timeout_seconds=0)
    with pytest.raises(errors.InvalidArgumentError, match="address"):
        open_channel("nowhere", peer_name=CALLER)
    with pytest.raises(errors.InvalidArgumentError, match=r"/package\.Service/Method"):
        open_channel("127.0.0.1:1", peer_name=CALLER, idempotent={"Say"})
