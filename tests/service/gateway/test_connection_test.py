"""`POST /api/test-lmstudio`: the connection test under the name that the seed gives it."""

from __future__ import annotations

import httpx
import pytest

from kala.inference.v1 import inference_pb2 as pb
from tests.fakes.gateway_suite import Suite

pytestmark = pytest.mark.asyncio(loop_scope="session")

WORKS = pb.BackendCheck(step="answer", passed=True, detail="tiny generates")
FAILS = pb.BackendCheck(step="models", passed=False, detail="no model is loaded", cure="load one")


def found(*checks: pb.BackendCheck) -> pb.CheckBackendResponse:
    backend = pb.Backend(
        name="backends/lmstudio",
        kind="lmstudio",
        url="http://127.0.0.1:1234",
        detail="answers and has a model",
    )
    return pb.CheckBackendResponse(backend=backend, checks=checks)


async def ask(suite: Suite, body: bytes = b"", *, key: str | None = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {key or suite.key}"}
    return await suite.http.post("/api/test-lmstudio", content=body, headers=headers)


async def test_a_working_lm_studio_is_a_success(suite: Suite) -> None:
    suite.inference.lm_studio = found(WORKS)
    response = await ask(suite, b'{"model": "tiny"}')
    assert response.status_code == 200
    body = response.json()
    assert (body["success"], body["message"], body["cure"]) == (True, "answers and has a model", "")
    assert (body["backend"], body["url"]) == ("backends/lmstudio", "http://127.0.0.1:1234")
    assert (suite.inference.checks[-1].name, suite.inference.checks[-1].model) == (
        "backends/lmstudio",
        "tiny",
    )


async def test_what_is_wrong_is_told_with_its_cure(suite: Suite) -> None:
    suite.inference.lm_studio = found(WORKS, FAILS)
    body = (await ask(suite)).json()
    assert (body["success"], body["message"], body["cure"]) == (False, "no model is loaded", "load one")
    assert [(check["step"], check["passed"]) for check in body["checks"]] == [
        ("answer", True),
        ("models", False),
    ]


async def test_without_lm_studio_it_says_how_to_start_one(suite: Suite) -> None:
    suite.inference.lm_studio = None
    body = (await ask(suite)).json()
    assert (body["success"], body["message"]) == (False, "no LM Studio is configured or found")
    assert "lms server start" in body["cure"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"url": "http://x"}', "url: is not a parameter"),
        (b'{"model": 1}', "model: must be a text"),
        (b"[", "body"),
    ],
    ids=["unknown", "type", "json"],
)
async def test_what_is_not_understood_is_named(suite: Suite, body: bytes, says: str) -> None:
    response = await ask(suite, body)
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]


async def test_only_an_administrator_may_test(suite: Suite) -> None:
    assert (await ask(suite, key="kala_wrong")).status_code == 401
    assert (await ask(suite, key=suite.new_key("chat"))).status_code == 403
    assert (await suite.http.get("/api/test-lmstudio", headers=suite.bearer())).status_code == 405
