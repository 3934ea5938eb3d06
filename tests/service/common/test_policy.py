"""Who may call what, what is guarded, and what is written down about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from kala import errors
from kala.inference.v1 import inference_pb2_grpc
from services.common.channel import open_channel
from services.common.interceptors import CallPolicy
from services.common.peers import Context, Peer, peer_of
from services.common.server import serving
from services.common.settings import GrpcServerSettings
from services.common.status import translated
from tests.fakes.echo import METHODS, SAY, EchoClient, EchoService, echo_and_client, served_echo

KINDS = pytest.mark.parametrize("kind", list(METHODS))


@dataclass
class Ledger:
    """Keeps what the hooks of a policy are told."""

    failure: Exception | None = None
    denials: list[tuple[str, str | None, str]] = field(default_factory=list)
    acts: list[tuple[str, str, bool]] = field(default_factory=list)

    async def on_denied(self, method: str, peer: Peer | None, error: errors.KalaError) -> None:
        self.denials.append((method, peer and peer.name, error.reason))
        if self.failure is not None:
            raise self.failure

    async def on_administrative(self, method: str, peer: Peer, ok: bool) -> None:
        self.acts.append((method, peer.name, ok))
        if self.failure is not None:
            raise self.failure

    def policy(self, **options: Any) -> CallPolicy:
        return CallPolicy(on_denied=self.on_denied, on_administrative=self.on_administrative, **options)


async def guard_against_bad(request: StringValue, peer: Peer, context: Context) -> None:
    assert peer == peer_of(context)
    if request.value == "bad":
        raise errors.ClearanceError("signed for other bytes", reason="CLEARANCE_DIGEST")


@KINDS
async def test_a_peer_that_is_not_on_the_list_reaches_no_handler(kind: str) -> None:
    service, ledger = EchoService(), Ledger()
    async with echo_and_client(service, policy=ledger.policy(), allowed_peers=("trainer",)) as client:
        with pytest.raises(errors.PermissionDeniedError, match="local:gateway may not call"), translated():
            await client.call(kind, "yes")
    assert service.heard == []
    assert ledger.denials == [(METHODS[kind], "local:gateway", "PEER_NOT_ALLOWED")]


async def test_an_empty_list_allows_nobody() -> None:
    async with echo_and_client(EchoService(), allowed_peers=()) as client:
        with pytest.raises(errors.PermissionDeniedError), translated():
            await client.say("yes")


async def test_a_caller_without_a_name_is_unauthenticated() -> None:
    ledger = Ledger()
    async with (
        served_echo(EchoService(), policy=ledger.policy()) as server,
        open_channel(server.address, peer_name="") as channel,
    ):
        with pytest.raises(errors.UnauthenticatedError), translated():
            await EchoClient(channel).say("yes")
    assert ledger.denials == [(SAY, None, "UNAUTHENTICATED")]


async def test_a_method_can_be_closed_to_a_peer_that_may_call_others() -> None:
    policy = CallPolicy(may_call=lambda method, peer: method != SAY or peer.part == "trainer")
    async with echo_and_client(EchoService(), policy=policy) as client:
        assert await client.call("bidi", "yes") == ["YES"]
        with pytest.raises(errors.PermissionDeniedError), translated():
            await client.say("yes")


@KINDS
async def test_a_guard_stops_a_request_before_its_handler(kind: str) -> None:
    service, ledger = EchoService(), Ledger()
    async with echo_and_client(
        service, policy=ledger.policy(guard_for=lambda _method: guard_against_bad)
    ) as client:
        with pytest.raises(errors.ClearanceError) as caught, translated():
            await client.call(kind, "bad")
    assert caught.value.reason == "CLEARANCE_DIGEST"
    assert service.heard == []
    assert ledger.denials == [(METHODS[kind], "local:gateway", "CLEARANCE_DIGEST")]


@KINDS
async def test_what_a_guard_lets_through_arrives_whole(kind: str) -> None:
    policy = CallPolicy(guard_for=lambda _method: guard_against_bad)
    words = "yes" if kind == "unary" else "one two three"
    async with echo_and_client(EchoService(), policy=policy) as client:
        assert await client.call(kind, words) == words.upper().split()


@pytest.mark.parametrize("kind", ["client-stream", "bidi"])
async def test_a_guarded_stream_without_a_message_is_refused(kind: str) -> None:
    service = EchoService()
    policy = CallPolicy(guard_for=lambda _method: guard_against_bad)
    async with echo_and_client(service, policy=policy) as client:
        with pytest.raises(errors.ClearanceError), translated():
            await client.call(kind, "")


async def test_a_guard_that_breaks_lets_nothing_through() -> None:
    async def broken(_request: StringValue, _peer: Peer, _context: Context) -> None:
        raise ZeroDivisionError

    service = EchoService()
    async with echo_and_client(service, policy=CallPolicy(guard_for=lambda _method: broken)) as client:
        with pytest.raises(errors.InternalError), translated():
            await client.say("yes")
    assert service.heard == []


async def test_a_denial_stands_when_it_cannot_be_recorded() -> None:
    ledger = Ledger(failure=errors.UnavailableError("audit is down"))
    async with echo_and_client(EchoService(), policy=ledger.policy(), allowed_peers=()) as client:
        with pytest.raises(errors.PermissionDeniedError), translated():
            await client.say("yes")
    assert len(ledger.denials) == 1


@KINDS
async def test_an_administrative_call_is_recorded_with_its_outcome(kind: str) -> None:
    ledger = Ledger()
    service = EchoService({"bad": errors.NotFoundError("no such word")})
    policy = ledger.policy(administrative=frozenset(METHODS.values()))
    async with echo_and_client(service, policy=policy) as client:
        await client.call(kind, "yes")
        with pytest.raises(errors.NotFoundError), translated():
            await client.call(kind, "bad")
    assert ledger.acts == [(METHODS[kind], "local:gateway", True), (METHODS[kind], "local:gateway", False)]
    assert ledger.denials == []


@KINDS
async def test_an_administrative_call_that_cannot_be_recorded_fails(kind: str) -> None:
    ledger = Ledger(failure=errors.UnavailableError("audit is down"))
    policy = ledger.policy(administrative=frozenset(METHODS.values()))
    async with echo_and_client(EchoService(), policy=policy) as client:
        with pytest.raises(errors.UnavailableError, match="audit log") as caught, translated():
            await client.call(kind, "yes")
    assert caught.value.reason == "AUDIT_UNAVAILABLE"


@KINDS
async def test_the_bytes_of_a_stranger_are_not_even_parsed(kind: str) -> None:
    ledger = Ledger()
    async with echo_and_client(EchoService(), policy=ledger.policy(), allowed_peers=("trainer",)) as client:
        with pytest.raises(errors.PermissionDeniedError), translated():
            await client.send_garbage(kind)
    assert ledger.denials == [(METHODS[kind], "local:gateway", "PEER_NOT_ALLOWED")]


@KINDS
async def test_bytes_that_are_no_message_are_the_callers_fault(kind: str) -> None:
    service = EchoService()
    async with echo_and_client(service) as client:
        with (
            pytest.raises(errors.InvalidArgumentError, match=f"not a message of {METHODS[kind]}"),
            translated(),
        ):
            await client.send_garbage(kind)
    assert service.heard == []


async def test_a_guarded_call_is_not_served_without_its_guard() -> None:
    register = partial(
        inference_pb2_grpc.add_InferenceServiceServicer_to_server,
        inference_pb2_grpc.InferenceServiceServicer(),
    )
    with pytest.raises(errors.InternalError, match="InferenceService/Chat needs a clearance"):
        async with serving(GrpcServerSettings(), [register]):
            pass
