"""What the log says of a call in numbers, from which the control plane's rows are made."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from gateway.call_facts import tool_of
from kala.inference.v1 import inference_pb2 as pb
from kala.tools.v1 import tools_pb2
from services.common.sealing import TYPE_URL_PREFIX
from services.tools.policy.loading import TOOL_NAMES
from tests.fakes.gateway_suite import Suite
from tests.fakes.scripted_inference import finish, route, saying, text
from tests.fakes.scripted_tools import WORKSPACE

pytestmark = pytest.mark.asyncio(loop_scope="session")

FAILED = pb.Attempt(backend="backends/lmstudio", model="m", reason="CONNECTION_REFUSED")


async def facts(suite: Suite, kind: str = "chat.outcome") -> dict[str, Any]:
    (outcome,) = await suite.leaves(kind=kind)
    found = dict(outcome["attributes"])
    return {name.removeprefix("call."): found[name] for name in sorted(found) if name.startswith("call.")}


async def test_a_chat_leaves_how_it_was_asked_and_how_much_came(suite: Suite) -> None:
    suite.inference.script = lambda _: saying("Twelve chars")
    body = {
        "model": "auto",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Größe?"}],
        "temperature": 0.7,
        "max_tokens": 256,
    }
    assert (await suite.post("/v1/chat/completions", body)).status_code == 200
    found = await facts(suite)
    (latency,) = json.loads(found.pop("latency_ms"))
    assert found == {
        "prompt_length": "15",
        "temperature": "0.7",
        "max_tokens": "256",
        "response_length": "12",
    }
    assert 0 <= latency < 60_000


async def test_what_the_caller_left_to_the_backend_is_not_made_up(suite: Suite) -> None:
    await suite.chat("Hi")
    assert set(await facts(suite)) == {"prompt_length", "response_length", "latency_ms"}


async def test_each_attempt_has_its_own_time(suite: Suite) -> None:
    slow = pb.Attempt(backend="backends/mlx", model="m", reason="TIMEOUT")
    slow.elapsed.FromMilliseconds(5)
    end = finish()
    end.finish.ClearField("attempts")
    end.finish.attempts.extend([FAILED, slow, pb.Attempt(backend="backends/fake", model="fake-model")])
    suite.inference.script = lambda _: [route(), text("Hello."), end]
    await suite.chat("Hi")
    latencies = json.loads((await facts(suite))["latency_ms"])
    assert latencies[:2] == [0, 5]
    assert len(latencies) == 3


async def test_the_bridge_and_completions_count_the_same(suite: Suite) -> None:
    suite.inference.script = lambda _: saying("Hello", " there")
    chat = {"messages": [{"role": "ROLE_USER", "content": [{"text": "Hi"}]}], "sampling": {"temperature": 0}}
    assert (await suite.post("/kala/v1/inference/chat", chat)).status_code == 200
    found = await facts(suite)
    assert (found["prompt_length"], found["temperature"], found["response_length"]) == ("2", "0.0", "11")


async def test_vectors_have_no_length_in_characters(suite: Suite) -> None:
    response = await suite.post("/v1/embeddings", {"model": "auto", "input": ["one", "three"]})
    assert response.status_code == 200
    found = await facts(suite, "embed.outcome")
    assert (found["prompt_length"], "response_length" in found) == ("8", False)


async def test_what_never_ran_has_no_numbers(suite: Suite) -> None:
    await suite.chat("please refuse")
    assert await facts(suite, "chat.refused") == {}


async def test_a_run_of_a_tool_names_it_from_intent_to_outcome(tool_suite: Suite) -> None:
    arguments = {"tool": "code_execution", "arguments_json": '{"code":"1"}'}
    assert (await tool_suite.post("/kala/v1/tools/execute", arguments)).status_code == 200
    leaves = await tool_suite.leaves()
    assert [leaf["action"]["tool"] for leaf in leaves] == ["code_execution"] * 2
    found = await facts(tool_suite, "execute.outcome")
    assert found["prompt_length"] == "12"
    assert int(found["response_length"]) > 0
    assert len(json.loads(found["latency_ms"])) == 1


@pytest.mark.parametrize("name", ["my neighbour, Mr Smith", "mr_smith", "lm_studio", "x\u0000y"])
async def test_a_name_that_no_tool_has_stays_out_of_the_log(tool_suite: Suite, name: str) -> None:
    await tool_suite.post("/kala/v1/tools/execute", {"tool": name, "arguments_json": "{}"})
    leaves = await tool_suite.leaves()
    assert leaves
    assert all(leaf["action"]["tool"] is None for leaf in leaves)


async def test_every_tool_of_the_tools_service_has_a_name() -> None:
    for name in TOOL_NAMES:
        action = tools_pb2.ExecuteAction(tool=name)
        type_url = f"{TYPE_URL_PREFIX}{action.DESCRIPTOR.full_name}"
        assert tool_of(AnyMessage(type_url=type_url, value=action.SerializeToString())) == name


async def test_files_that_are_written_and_code_that_is_made_are_runs_of_tools_too(tool_suite: Suite) -> None:
    body = {
        "workspace": WORKSPACE,
        "path": "b.txt",
        "data": base64.b64encode(b"hello").decode(),
        "mode": "WRITE_MODE_CREATE",
    }
    assert (await tool_suite.post("/kala/v1/tools/files:write", body)).status_code == 200
    task = {"task": "Read a file.", "language": "LANGUAGE_PYTHON"}
    assert (await tool_suite.post("/kala/v1/tools/code:generate", task)).status_code == 200
    tools = [leaf["action"]["tool"] for leaf in await tool_suite.leaves()]
    assert tools == ["write_file", "write_file", "generate_code", "generate_code"]
    assert set(await facts(tool_suite, "write_file.outcome")) == {"latency_ms"}
    assert (await facts(tool_suite, "generate_code.outcome"))["prompt_length"] == "12"
