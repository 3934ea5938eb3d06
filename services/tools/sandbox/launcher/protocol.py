"""Messages between the service and its launcher: one JSON object and its descriptors per packet of a unix socket."""

from __future__ import annotations

import array
import errno
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from services.tools.sandbox.model import Limits, Usage

# One packet; everything that is larger goes through pipes.
MAX_PACKET_BYTES: Final = 32 * 1024
# stdin, stdout, stderr, the code pipe, the workspace and a descriptor of the first process.
MAX_DESCRIPTORS: Final = 6

_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)

# A message is a JSON object: its values are strings, numbers, booleans, null and objects of them.
Message = dict[str, Any]


class ClosedError(Exception):
    """The other side is gone."""


class CrowdedError(Exception):
    """Too many descriptors of this user are on their way through sockets; a sandbox's programs can see to that."""


def send(channel: socket.socket, message: Message, descriptors: Sequence[int] = ()) -> None:
    """Send one message.

    Raises:
        BlockingIOError: the other side does not read.
        ClosedError: it is gone.
        CrowdedError: the descriptors cannot be sent now.
    """
    data = json.dumps(message, separators=(",", ":")).encode()
    try:
        if descriptors:
            socket.send_fds(channel, [data], list(descriptors))
        else:
            channel.send(data)
    except (BrokenPipeError, ConnectionError) as error:
        raise ClosedError from error
    except OSError as error:
        if error.errno == errno.ETOOMANYREFS:
            raise CrowdedError from error
        raise


def receive(channel: socket.socket) -> tuple[Message, list[int]]:
    """Receive one message; the caller owns the descriptors, which no child inherits.

    Raises:
        BlockingIOError: nothing is there.
        ClosedError: the other side is gone, or sent what is no message.
    """
    try:
        # socket.recv_fds forgets its flags, and with them that no child may inherit what arrives.
        data, ancillary, flags, _ = channel.recvmsg(
            MAX_PACKET_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionError as error:
        raise ClosedError from error
    descriptors = [number for level, kind, content in ancillary for number in _numbers(level, kind, content)]
    try:
        message = json.loads(data) if data and not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) else None
    except ValueError:
        message = None
    if not isinstance(message, dict):
        for descriptor in descriptors:
            os.close(descriptor)
        raise ClosedError
    return message, descriptors


def _numbers(level: int, kind: int, content: bytes) -> array.array[int]:
    numbers = array.array("i")
    if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
        numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
    return numbers


def limits_to_message(limits: Limits) -> Message:
    """Write limits as a message's part."""
    return asdict(limits)


def limits_from_message(message: Message) -> Limits:
    """Read what `limits_to_message` wrote."""
    return Limits(**message)


def usage_to_message(usage: Usage) -> Message:
    """Write a usage as a message's part."""
    return asdict(usage)


def usage_from_message(message: Message) -> Usage:
    """Read what `usage_to_message` wrote."""
    return Usage(**message)
