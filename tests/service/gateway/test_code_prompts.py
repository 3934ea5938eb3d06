"""GenerateCode over REST: the gateway builds the prompt with hints, has it judged, and clears it for tools alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kala.common.v1.clearance_pb2 import ClearanceClaims
from kala.inference.v1 import inference_pb2
from services.common.sealing import unpack_strictly
from tests.fakes.gateway_suite import running_suite

pytestmark = pytest.mark.asyncio(loop_scope="session")

PATH = "/kala/v1/tools/code:generate"
ASKED = {"task": "Read a YAML file.", "language": "LANGUAGE_PYTHON", "frameworks": ["flask"], "repair": True}


async def test_the_prompt_is_built_judged_and_cleared_for_tools(tmp_path: Path) -> None:
    async with running_suite(tmp_path, has_tools=True) as suite:
        response = await suite.post(PATH, ASKED)
        assert response.status_code == 200, response.text
        assert response.json()["accepted"] is True
        assert "clearance" not in response.text
        (action,) = suite.tools.generated
        prompt = unpack_strictly(action.generation.action, inference_pb2.ChatAction)
        claims = ClearanceClaims.FromString(action.generation.clearance.claims)
        assert claims.presenter == "local:tools"
        assert claims.audience == "/kala.inference.v1.InferenceService/Chat"
        system, user = prompt.messages
        assert "Mind the hints for: Read a YAML file." in system.content[0].text
        assert "```python" in system.content[0].text
        assert user.content[0].text == ASKED["task"]
        assert [request.presenter for request in suite.ethics.actions] == ["tools", ""]
        kinds = [leaf["type"] for leaf in await suite.leaves()]
        assert kinds == ["generate_code.intent", "generate_code.outcome"]


async def test_a_prompt_that_is_not_allowed_stops_all_of_it(tmp_path: Path) -> None:
    async with running_suite(tmp_path, has_tools=True) as suite:
        response = await suite.post(PATH, {**ASKED, "task": "please refuse this"})
        assert response.status_code == 403, response.text
        assert not suite.tools.generated
        assert [leaf["type"] for leaf in await suite.leaves()] == ["chat.refused"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"generation": {"clearance": {"key_id": "x"}}},
        {"generation": {}},
        {"language": "LANGUAGE_UNSPECIFIED"},
    ],
)
async def test_a_client_brings_no_prompt_of_its_own(tmp_path: Path, wrong: dict[str, object]) -> None:
    async with running_suite(tmp_path, has_tools=True) as suite:
        response = await suite.post(PATH, {**ASKED, **wrong})
        assert response.status_code == 400, response.text
        assert next(iter(wrong)) in json.dumps(response.json())
        assert not suite.ethics.actions
        assert not suite.tools.generated
