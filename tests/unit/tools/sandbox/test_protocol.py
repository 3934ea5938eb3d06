"""Messages between service and launcher, over a real socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from services.tools.sandbox.launcher.protocol import (
    ClosedError,
    limits_from_message,
    limits_to_message,
    receive,
    send,
    usage_from_message,
    usage_to_message,
)
from services.tools.sandbox.model import Limits, Usage

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here.setblocking(False)
    there.setblocking(False)
    with here, there:
        yield here, there


def test_messages_arrive_one_by_one_with_their_descriptors(pair: Pair) -> None:
    reader, writer = os.pipe()
    send(pair[0], {"op": "a", "text": "ä"}, [writer])
    send(pair[0], {"op": "b"})
    os.close(writer)
    message, descriptors = receive(pair[1])
    assert message == {"op": "a", "text": "ä"}
    assert len(descriptors) == 1
    assert not os.get_inheritable(descriptors[0])
    os.write(descriptors[0], b"x")
    assert os.read(reader, 1) == b"x"
    os.close(descriptors[0])
    os.close(reader)
    assert receive(pair[1]) == ({"op": "b"}, [])
    with pytest.raises(BlockingIOError):
        receive(pair[1])


@pytest.mark.parametrize(
    "data", [b"{", b"[1]", b"\xff", b"{}" + b" " * 40_000], ids=["cut", "list", "bytes", "long"]
)
def test_what_is_no_message_closes_the_channel_and_leaks_nothing(pair: Pair, data: bytes) -> None:
    reader, writer = os.pipe()
    socket.send_fds(pair[0], [data], [writer])
    os.close(writer)
    with pytest.raises(ClosedError):
        receive(pair[1])
    # The only other end of the pipe is closed.
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_side_that_is_gone_is_told(pair: Pair) -> None:
    pair[1].close()
    with pytest.raises(ClosedError):
        send(pair[0], {"op": "a"})
    with pytest.raises(ClosedError):
        receive(pair[0])


def test_limits_and_usage_come_back_as_they_were() -> None:
    limits = Limits(1.5, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
    assert limits_from_message(limits_to_message(limits)) == limits
    usage = Usage(1.5, None, 3, None, 5, 6, 7)
    assert usage_from_message(usage_to_message(usage)) == usage
