"""The control plane through the gateway: real runs, one tenant's alone, and what remains while the log is away."""

from __future__ import annotations

from typing import Any

import pytest

from kala.inference.v1 import inference_pb2 as pb
from tests.fakes.gateway_suite import Suite, eventually
from tests.fakes.scripted_inference import finish, route, text

pytestmark = pytest.mark.asyncio(loop_scope="session")

PATH = "/kala/v1/audit/pipelines"


async def pipelines(suite: Suite, key: str | None = None, **params: str) -> dict[str, Any]:
    response = await suite.http.get(PATH, params=params, headers=suite.bearer(key))
    assert response.status_code == 200, response.text
    return {one["name"]: one for one in response.json().get("pipelines", [])}


async def test_what_ran_through_the_gateway_is_counted_by_backend_and_tool(tool_suite: Suite) -> None:
    before = await pipelines(tool_suite)
    end = finish()
    end.finish.ClearField("attempts")
    failed = pb.Attempt(backend="backends/lmstudio", model="m", reason="CONNECTION_REFUSED")
    end.finish.attempts.extend([failed, pb.Attempt(backend="backends/mlx", model="fake-model")])
    tool_suite.inference.script = lambda _: [route(), text("Hello."), end]
    await tool_suite.chat("Hi")
    run = {"tool": "shell", "arguments_json": '{"command":"ls"}'}
    assert (await tool_suite.post("/kala/v1/tools/execute", run)).status_code == 200
    after = await pipelines(tool_suite, window="3600s")

    def more(name: str, ending: str) -> int:
        return int(after[name][ending]) - int(before.get(name, {}).get(ending, 0))

    assert (more("lm_studio", "failed"), more("mlx", "succeeded"), more("shell", "succeeded")) == (1, 1, 1)
    assert (after["lm_studio"]["last_status"], after["shell"]["last_status"]) == ("error", "ok")


async def test_no_client_makes_up_a_run_of_a_backend(tool_suite: Suite) -> None:
    before = await pipelines(tool_suite)
    for name in ("lm_studio", "mlx", "made_up"):
        await tool_suite.post("/kala/v1/tools/execute", {"tool": name, "arguments_json": "{}"})
    assert await pipelines(tool_suite) == before


async def test_a_tenant_sees_its_own_runs_alone(suite: Suite) -> None:
    await suite.chat("Hi")
    assert await pipelines(suite)
    other = suite.new_key("audit.read", tenant="elsewhere")
    assert await pipelines(suite, other) == {}
    response = await suite.http.get(PATH, params={"filter.tenant": "default"}, headers=suite.bearer(other))
    assert response.status_code == 403


async def test_while_the_log_is_away_chats_go_on_and_their_runs_are_counted_later(own_suite: Suite) -> None:
    suite = own_suite
    await suite.audit.stop()
    assert (await suite.chat("Hi")).status_code == 200
    assert (await suite.http.get(PATH, headers=suite.bearer())).status_code == 503
    await suite.audit.start()

    async def counted() -> list[dict[str, Any]]:
        # The gateway finds the log again in its own time, and the spool drains in its.
        response = await suite.http.get(PATH, headers=suite.bearer())
        return list(response.json()["pipelines"]) if response.status_code == 200 else []

    (pipeline,) = await eventually(counted)
    assert (pipeline["name"], int(pipeline["succeeded"])) == ("fake", 1)
