"""Models in OpenAI's shape, and what probes see."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI, AuthenticationError, BadRequestError, NotFoundError
from openai.types import Model

from tests.fakes.certificates import TestAuthority
from tests.fakes.gateway_suite import Suite, eventually, running_suite
from tests.fakes.scripted_inference import REPLY, saying

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_models_are_listed_over_all_pages_with_the_alias_first(suite: Suite) -> None:
    response = await suite.get("/v1/models")
    models = [Model.model_validate(each) for each in response.json()["data"]]
    assert [model.id for model in models] == ["auto", "fake-model", "org/other-model"]


async def test_one_model_is_found_by_an_id_with_slashes(suite: Suite) -> None:
    assert (await suite.get("/v1/models/org/other-model")).json()["id"] == "org/other-model"
    assert (await suite.get("/v1/models/auto")).json()["id"] == "auto"
    missing = await suite.get("/v1/models/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_an_unmodified_openai_client_works(suite: Suite) -> None:
    async with AsyncOpenAI(base_url=f"{suite.url}/v1", api_key=suite.key, max_retries=0) as client:
        answer = await client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "Hi"}]
        )
        assert answer.choices[0].message.content == REPLY
        suite.inference.script = lambda _: saying("a", "b", "c")
        stream = await client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "abc"
        assert [model.id async for model in client.models.list()] == ["auto", "fake-model", "org/other-model"]
        with pytest.raises(BadRequestError, match="at least 1"):
            await client.chat.completions.create(model="auto", messages=[], max_tokens=5)
        with pytest.raises(NotFoundError):
            await client.models.retrieve("nothing")
    async with AsyncOpenAI(base_url=f"{suite.url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(AuthenticationError):
            await client.models.list()


async def test_probes_need_no_key(suite: Suite) -> None:
    assert (await suite.http.get("/healthz")).json() == {"status": "ok"}
    assert (await suite.http.head("/healthz")).content == b""
    ready = await suite.http.get("/readyz")
    assert (ready.status_code, ready.json()["parts"]) == (200, {"ethics": "ok", "audit": "ok"})
    metrics = await suite.http.get("/metrics")
    assert 'kala_rpc_handled_total{code="200",method="HTTP GET /healthz"}' in metrics.text


async def test_readiness_follows_the_log_only_where_there_is_no_spool(tmp_path: Path) -> None:
    async with running_suite(tmp_path, audit_policy="fail_closed") as suite:
        assert (await suite.http.get("/readyz")).status_code == 200
        await suite.audit.stop()
        assert (await suite.chat()).status_code == 503
        assert (await suite.http.get("/readyz")).json()["parts"]["audit"] == "unavailable"
        await suite.audit.start()
        assert (await suite.chat()).status_code == 200
        assert (await suite.http.get("/readyz")).status_code == 200


async def test_the_url_is_published_while_the_gateway_serves(tmp_path: Path) -> None:
    async with running_suite(tmp_path) as suite:
        assert (tmp_path / "url").read_text() == suite.url + "\n"
    assert not (tmp_path / "url").exists()


async def test_with_certificates_the_edge_speaks_https(tmp_path: Path) -> None:
    files = TestAuthority(tmp_path).issue("kala.test", dns_names=("kala.test",))
    context = ssl.create_default_context(cafile=files.ca_file)
    context.check_hostname = False
    async with (
        running_suite(tmp_path, http_cert_file=files.cert_file, http_key_file=files.key_file) as suite,
        httpx.AsyncClient(base_url=suite.url, verify=context, trust_env=False) as http,
    ):
        assert suite.url.startswith("https://")
        assert (await http.get("/v1/models", headers=suite.bearer())).status_code == 200


async def test_a_running_stream_is_finished_when_the_gateway_stops(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    async with AsyncExitStack() as stack:
        suite = await stack.enter_async_context(running_suite(tmp_path, drain_seconds=5))
        suite.inference.script = lambda _: [
            *saying("A first part that is long enough. ")[:2],
            go_on,
            *saying("end")[1:],
        ]
        body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=suite.url, trust_env=False))
        response = await stack.enter_async_context(
            client.stream("POST", "/v1/chat/completions", json=body, headers=suite.bearer())
        )
        lines = response.aiter_lines()
        await anext(lines)
        stopping = asyncio.create_task(suite.stop_http())
        await eventually(lambda: asyncio.sleep(0, result=not (tmp_path / "url").exists()))
        go_on.set()
        assert [line async for line in lines if line][-1] == "data: [DONE]"
        await stopping
