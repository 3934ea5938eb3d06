"""The bridge to the tools: guarded runs and writes, and what is read is checked before it leaves."""

from __future__ import annotations

import base64
import json

import pytest

from kala.tools.v1 import execution_pb2
from tests.fakes.gateway_suite import Suite
from tests.fakes.scripted_ethics import FORBIDDEN
from tests.fakes.scripted_tools import RUN, WORKSPACE, artifact, ended, needing_approval, started, wrote

pytestmark = pytest.mark.asyncio(loop_scope="session")

FILES = f"/kala/v1/tools/{WORKSPACE}/files"
CALL = {"tool": "shell", "arguments_json": '{"command":"ls"}'}


async def test_a_run_comes_as_its_events_with_a_receipt(tool_suite: Suite) -> None:
    left = artifact("out/a.txt", b"a")
    tool_suite.tools.script = lambda _: [started(), wrote(b"hi\n"), ended({"ok": True}, artifacts=[left])]
    response = await tool_suite.post("/kala/v1/tools/execute", CALL)
    assert response.status_code == 200, response.text
    first, output, last = (json.loads(line) for line in response.text.splitlines())
    assert first["started"]["run"] == RUN
    assert base64.b64decode(output["output"]["data"]) == b"hi\n"
    assert last["exit"]["status"] == "RUN_STATUS_OK"
    leaf = await tool_suite.receipt(response.headers["x-kala-receipt"])
    assert leaf.value["type"] == "execute.outcome"
    assert dict(leaf.value["attributes"])["run.artifacts"] == "1"
    assert dict(leaf.value["attributes"])["result.released_form"] == "run"


async def test_what_a_person_must_approve_is_no_error_and_is_logged_as_not_run(tool_suite: Suite) -> None:
    tool_suite.tools.script = lambda _: needing_approval()
    response = await tool_suite.post("/kala/v1/tools/execute", CALL)
    assert response.json()["exit"]["status"] == "RUN_STATUS_APPROVAL_REQUIRED"
    (outcome,) = await tool_suite.leaves(kind="execute.outcome")
    assert (outcome["result"]["status"], outcome["result"]["code"]) == ("refused", "APPROVAL_REQUIRED")


async def test_a_run_whose_events_break_off_is_an_error(tool_suite: Suite) -> None:
    tool_suite.tools.script = lambda _: [started()]
    response = await tool_suite.post("/kala/v1/tools/execute", CALL)
    assert (response.status_code, response.json()["error"]["details"][0]["reason"]) == (503, "RUN_STREAM_CUT")


async def test_a_refused_action_reaches_no_tool(tool_suite: Suite) -> None:
    refused = {"tool": "shell", "arguments_json": '{"command":"please refuse"}'}
    assert (await tool_suite.post("/kala/v1/tools/execute", refused)).status_code == 403
    assert tool_suite.tools.executed == []


async def test_a_write_is_guarded_and_read_back(tool_suite: Suite) -> None:
    body = {
        "workspace": WORKSPACE,
        "path": "a.txt",
        "data": base64.b64encode(b"hello").decode(),
        "mode": "WRITE_MODE_CREATE",
    }
    assert (await tool_suite.post("/kala/v1/tools/files:write", body)).status_code == 200
    assert [leaf["type"] for leaf in await tool_suite.leaves()] == ["write_file.intent", "write_file.outcome"]
    read = await tool_suite.get(f"{FILES}/a.txt")
    assert base64.b64decode(read.json()["data"]) == b"hello"
    assert tool_suite.tools.principals[-1].id.startswith("keys/")


async def test_a_file_that_is_not_fit_does_not_leave_and_leaves_a_record(tool_suite: Suite) -> None:
    tool_suite.tools.files = {"a.txt": f"well {FORBIDDEN}".encode()}
    response = await tool_suite.get(f"{FILES}/a.txt")
    assert response.status_code == 403
    assert "data" not in response.json()
    assert response.json()["kala"]["decision"]["stage"] == "output"
    (leaf,) = await tool_suite.leaves()
    assert leaf["type"] == "read_file.refused"
    assert f"rcpt_{leaf['idempotency_key']}" == response.headers["x-kala-receipt"]


async def test_a_word_across_two_parts_is_found_with_the_second(tool_suite: Suite) -> None:
    border = 10_000
    content = b"a" * (border - 6) + FORBIDDEN.encode()
    tool_suite.tools.files = {"a.txt": content}
    assert (await tool_suite.get(f"{FILES}/a.txt?max_bytes={border}")).status_code == 200
    assert (await tool_suite.get(f"{FILES}/a.txt?offset={border}")).status_code == 403
    assert (await tool_suite.get(f"{FILES}/a.txt?offset={border + 6000}")).status_code == 200


async def test_names_of_files_are_checked_too(tool_suite: Suite) -> None:
    tool_suite.tools.files = {"fine.txt": b""}
    assert (await tool_suite.get(FILES)).status_code == 200
    tool_suite.tools.files = {f"{FORBIDDEN}.txt": b""}
    assert (await tool_suite.get(FILES)).status_code == 403


async def test_a_list_of_runs_tells_no_names_that_their_results_were_withheld_for(tool_suite: Suite) -> None:
    run = execution_pb2.Run(name=RUN, reason="fine", artifacts=[artifact("out/fine.txt", b"")])
    tool_suite.tools.runs = [execution_pb2.Run(name=RUN), run]
    listed = await tool_suite.get("/kala/v1/tools/runs")
    assert (listed.status_code, len(listed.json()["runs"])) == (200, 2)
    for named in (artifact(f"out/{FORBIDDEN}", b""), artifact("a", b"")):
        named.content.name = f"out/{FORBIDDEN}"
        tool_suite.tools.runs = [run, execution_pb2.Run(name=RUN, artifacts=[named])]
        refused = await tool_suite.get("/kala/v1/tools/runs")
        assert (refused.status_code, FORBIDDEN in refused.text) == (403, False)
    tool_suite.tools.runs = [execution_pb2.Run(name=RUN, reason=FORBIDDEN)]
    assert (await tool_suite.get("/kala/v1/tools/runs")).status_code == 403


async def test_nothing_is_read_while_nobody_can_judge_it(tool_suite: Suite) -> None:
    tool_suite.tools.files = {"a.txt": b"hello"}
    tool_suite.ethics.dies_after_chunks = 1
    response = await tool_suite.get(f"{FILES}/a.txt")
    assert response.status_code == 503
    assert response.json()["error"]["details"][0]["reason"] == "ETHICS_UNAVAILABLE"
