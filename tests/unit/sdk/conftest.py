"""A scripted gateway in place of every suite that a session may find or start."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from kala.client import KalaClient
from kala.client_async import AsyncKalaClient
from kala.core import connection as connection_module
from kala.core.connection import Connection
from kala.target import Target
from tests.fakes.gateway import FakeGateway


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeGateway], FakeGateway]:
    """Let every connection, private ones included, reach a scripted gateway."""

    def install(gateway: FakeGateway) -> FakeGateway:
        def client(target: Target, **_: object) -> KalaClient:
            return KalaClient(target, gateway.transport, lambda _: None)

        async def at_once(_: float) -> None:
            pass

        def asynchronous(connection: Connection) -> AsyncKalaClient:
            return AsyncKalaClient(connection.client.target, gateway.transport, at_once)

        @contextlib.contextmanager
        def private(wanted: object, environ: object) -> Iterator[KalaClient]:
            with client(Target("http://private", "k")) as opened:
                yield opened

        monkeypatch.setattr(connection_module, "KalaClient", client)
        monkeypatch.setattr(Connection, "asynchronous", asynchronous)
        monkeypatch.setattr(connection_module, "_private_client", private)
        monkeypatch.setattr(connection_module, "_running_client", lambda *_: None)
        return gateway

    return install
