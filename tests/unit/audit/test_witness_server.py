"""The witness's HTTP: strangers who hold its connections hold up neither its stop nor those who wait for a place."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http import HTTPStatus
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path

import pytest

from services.audit.witness import server
from services.audit.witness.add_checkpoint import Reply
from services.audit.witness.server import ADD_CHECKPOINT, serving_witness
from services.common.addresses import TcpAddress
from tests.fakes.certificates import TestAuthority

# Far above what is needed: reached only when something hangs.
PATIENCE_SECONDS = 20.0
# The beginning of a request, and that of a TLS handshake whose rest is 16 KiB.
BEGINNING = b"POST /add-"
HANDSHAKE = b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def serve(stack: ExitStack, tls: tuple[Path, Path] | None = None) -> int:
    answer = Reply(HTTPStatus.OK, "cosigned\n")
    return stack.enter_context(serving_witness(TcpAddress("127.0.0.1", 0), lambda _: answer, tls=tls))


def hold(stack: ExitStack, port: int, beginning: bytes = BEGINNING) -> socket.socket:
    """A connection that begins something and never ends it."""
    held = stack.enter_context(closing(socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)))
    held.sendall(beginning)
    return held


def ask(connection: HTTPConnection) -> str | None:
    """What the answer says about the connection."""
    connection.request("POST", ADD_CHECKPOINT, b"old 0\n\n")
    answer = connection.getresponse()
    assert answer.read() == b"cosigned\n"
    return answer.getheader("Connection")


def test_a_witness_whose_places_are_all_held_still_stops(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 1)
    monkeypatch.setattr(server, "IDLE_SECONDS", 3_600.0)
    running = ExitStack()
    port = serve(running)
    hold(stack, port)
    hold(stack, port)
    stop = threading.Thread(target=running.close, daemon=True)
    stop.start()
    stop.join(PATIENCE_SECONDS)
    assert not stop.is_alive()


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
def test_who_sends_a_byte_now_and_then_gives_the_place_up(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, is_tls: bool
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 1)
    monkeypatch.setattr(server, "CONNECTION_SECONDS", 0.1)
    monkeypatch.setattr(server, "IDLE_SECONDS", 1.0)
    files = TestAuthority(tmp_path).issue("witness", dns_names=("localhost",)) if is_tls else None
    port = serve(stack, None if files is None else (files.cert_file, files.key_file))
    held = hold(stack, port, HANDSHAKE if is_tls else BEGINNING)
    done = threading.Event()

    def drip() -> None:
        while not done.wait(0.1):
            try:
                held.sendall(b"x")
            except OSError:
                return

    dripping = threading.Thread(target=drip, daemon=True)
    dripping.start()
    try:
        with closing(
            HTTPConnection("localhost", port, timeout=PATIENCE_SECONDS)
            if files is None
            else HTTPSConnection(
                "localhost",
                port,
                timeout=PATIENCE_SECONDS,
                context=ssl.create_default_context(cafile=files.ca_file),
            )
        ) as honest:
            ask(honest)
    finally:
        done.set()
        dripping.join()


def test_a_connection_is_closed_after_the_answer_when_others_may_wait(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = serve(stack)
    with closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)) as young:
        assert ask(young) is None
        assert ask(young) is None
    monkeypatch.setattr(server, "CONNECTION_SECONDS", 0.0)
    with closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)) as old:
        assert ask(old) == "close"
