"""The pages beside /metrics may be open to the world: strangers who hold connections hold up nobody for long."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from prometheus_client import CollectorRegistry

from services.common import pages
from services.common.telemetry import metrics_server

# Far above what is needed: reached only when something hangs.
PATIENCE_SECONDS = 20.0


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def hold(stack: ExitStack, port: int) -> None:
    """A connection that begins a request and never ends it."""
    held = stack.enter_context(closing(socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)))
    held.sendall(b"GET /met")


@pytest.mark.parametrize("bound", ["IDLE_SECONDS", "LONGEST_SECONDS"])
def test_whoever_holds_every_place_loses_it(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(pages, "PLACES", 2)
    monkeypatch.setattr(pages, "IDLE_SECONDS", 3_600.0)
    monkeypatch.setattr(pages, bound, 1.0)
    port = stack.enter_context(metrics_server(CollectorRegistry(), host="127.0.0.1", port=0))
    threads = threading.active_count()
    for _ in range(10):
        hold(stack, port or 0)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_SECONDS) as page:
        assert page.status == 200
    assert threading.active_count() < threads + 10


def test_a_server_whose_places_are_all_held_still_stops(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "PLACES", 1)
    running = ExitStack()
    port = running.enter_context(metrics_server(CollectorRegistry(), host="127.0.0.1", port=0))
    for _ in range(3):
        hold(stack, port or 0)
    stop = threading.Thread(target=running.close, daemon=True)
    stop.start()
    stop.join(PATIENCE_SECONDS)
    assert not stop.is_alive()
