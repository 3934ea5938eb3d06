"""The OpenAPI document of a gateway with all its features: valid, with examples, and complete."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.routing import ApiRoute, routes_of
from tests.fakes.gateway_suite import running_suite
from tests.fakes.openapi_document import operations_of, problems_of

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_every_route_is_described_with_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    routes: list[ApiRoute] = []

    def remember(api: Sequence[ApiRoute], telemetry: Any) -> Any:
        routes.extend(api)
        return routes_of(api, telemetry)

    monkeypatch.setattr("gateway.app.routes_of", remember)
    async with running_suite(tmp_path) as suite:
        document = (await suite.get("/openapi.json")).json()
    described = {(verb, path) for verb, path, _ in operations_of(document)}
    served = {(route.method, route.path.replace(":path}", "}")) for route in routes}
    assert served - described == set()
    assert problems_of(document) == []
