"""Tools in a whole suite: a model that calls them, the command line, a session; every step in the log, and nothing without it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from kala.client import KalaClient
from kala.core.lmstudio_adapter import LMStudioConfig
from kala.core.unified_session import UnifiedKALASession
from kala.errors import PermissionDeniedError, UnavailableError
from kala.suite.processes import wait_until
from kala.target import Target
from tests.e2e.suites import Suite, kala, running_suite
from tests.fakes.lm_studio import WORDS, FakeLMStudio
from tests.tools_runtime import unprivileged_directory

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")

PROGRAM = "print(sum(range(10)))"
QUESTION = "What is the sum of the numbers below ten?"


def ask(suite: Suite, **fields: Any) -> dict[str, Any]:
    body = {
        "model": "auto",
        "messages": [{"role": "user", "content": QUESTION}],
        "kala_tools": "auto",
        **fields,
    }
    response = httpx.post(
        f"{suite.url}/v1/chat/completions",
        json=body,
        headers={"authorization": f"Bearer {suite.key}"},
        timeout=120,
    )
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def records(suite: Suite, receipt_id: str) -> list[dict[str, Any]]:
    """The gateway's leaves of the request that a receipt belongs to, in the log's order."""
    with KalaClient(Target(suite.url, suite.key)) as client:
        entries = client.pages("/kala/v1/audit/entries", "entries")
    leaves = [_leaf(entry) for entry in sorted(entries, key=_index)]
    (request,) = (_request_of(leaf) for leaf in leaves if f"rcpt_{leaf['idempotency_key']}" == receipt_id)
    return [leaf for leaf in leaves if _request_of(leaf) == request]


def _index(entry: dict[str, Any]) -> int:
    return int(entry["index"])


def _leaf(entry: dict[str, Any]) -> dict[str, Any]:
    leaf: dict[str, Any] = json.loads(base64.b64decode(entry["leaf"]))
    return leaf


def _request_of(leaf: dict[str, Any]) -> str:
    return str(dict(leaf["attributes"]).get("request_id", ""))


def test_a_model_computes_with_a_tool_and_every_step_is_in_the_log(
    tool_suite: Suite, upstream: FakeLMStudio, tmp_path: Path
) -> None:
    upstream.calls = [("code_execution", {"language": "python", "code": PROGRAM})]
    answer = ask(tool_suite)
    assert answer["choices"][0]["message"]["content"] == "".join(WORDS)
    (step,) = answer["kala"]["tools"]["steps"]
    assert (step["status"], step["exit_code"], step["isolation"]) == ("OK", 0, "bubblewrap/standard")
    told = upstream.asked[-1]["messages"][-1]
    assert told["role"] == "tool"
    assert json.loads(told["content"])["output"] == "45\n"
    saved = tmp_path / "receipt.txt"
    with KalaClient(Target(tool_suite.url, tool_suite.key)) as client:
        for receipt, kind in (
            (step["receipt"], "execute.outcome"),
            (answer["kala"]["receipt"], "chat.outcome"),
        ):
            saved.write_text(client.receipt(receipt["id"]))
            shown = kala("audit", "receipt", saved, "--state", tool_suite.state)
            assert shown.returncode == 0, shown.stderr
            assert kind in shown.stdout
    kinds = [leaf["type"] for leaf in records(tool_suite, step["receipt"]["id"])]
    assert kinds == [
        *("chat.intent", "chat.outcome", "execute.intent", "execute.outcome"),
        *("chat.intent", "chat.outcome"),
    ]


def test_after_a_result_a_person_approves_the_next_program_and_the_conversation_goes_on(
    tool_suite: Suite, upstream: FakeLMStudio
) -> None:
    call = ("code_execution", {"language": "python", "code": PROGRAM})
    upstream.calls = [call, call]
    stopped = ask(tool_suite)
    assert stopped["choices"][0]["finish_reason"] == "tool_calls"
    tools = stopped["kala"]["tools"]
    assert [step["status"] for step in tools["steps"]] == ["OK", "APPROVAL_REQUIRED"]
    (waiting,) = tools["requires_action"]["approvals"]
    approved = kala("tools", "approvals", "approve", waiting["approval"], "--state", tool_suite.state)
    assert approved.returncode == 0, approved.stderr
    question = {"role": "user", "content": QUESTION}
    answer = ask(
        tool_suite,
        messages=[question, *tools["messages"]],
        kala_approvals={waiting["call_id"]: waiting["approval"]},
    )
    assert answer["choices"][0]["message"]["content"] == "".join(WORDS)
    assert [step["status"] for step in answer["kala"]["tools"]["steps"]] == ["OK"]
    listed = kala("tools", "approvals", "list", "--only", "used", "--state", tool_suite.state)
    assert waiting["approval"] in listed.stdout


@pytest.mark.slow  # a suite of its own; tests/unit/tools/policy/test_approval_files.py restarts the book in every run
def test_a_call_that_waits_outlives_a_killed_tools_service_and_runs_once(
    upstream: FakeLMStudio, tmp_path: Path
) -> None:
    call = ("code_execution", {"language": "python", "code": PROGRAM})
    question = {"role": "user", "content": QUESTION}
    with running_suite(tmp_path / "state", KALA_INFERENCE_LMSTUDIO_URL=upstream.url) as suite:

        def kill_tools() -> None:
            before = suite.process("tools")
            os.kill(before.pid, signal.SIGKILL)
            assert wait_until(lambda: suite.is_ready("tools", after=before), timeout_seconds=60)
            # The gateway connects anew in its own time.
            assert wait_until(answers, timeout_seconds=60)

        def answers() -> bool:
            with contextlib.suppress(UnavailableError), KalaClient(Target(suite.url, suite.key)) as asking:
                return bool(asking.call("GET", "/kala/v1/tools/tools"))
            return False

        with KalaClient(Target(suite.url, suite.key)) as client:
            made = client.call("POST", "/kala/v1/tools/workspaces", body={"request_id": "0123456789abcdef"})
            asked = {"kala_workspace": made["workspace"]["name"]}
            upstream.calls = [call, call]
            tools = ask(suite, **asked)["kala"]["tools"]
            (waiting,) = tools["requires_action"]["approvals"]
            kill_tools()
            listed = client.pages("/kala/v1/tools/approvals", "approvals")
            assert [each["name"] for each in listed] == [waiting["approval"]]
            decided = kala("tools", "approvals", "approve", waiting["approval"], "--state", suite.state)
            assert decided.returncode == 0, decided.stderr
            kill_tools()
            approvals = {waiting["call_id"]: waiting["approval"]}
            again: dict[str, Any] = {"messages": [question, *tools["messages"]], "kala_approvals": approvals}
            answer = ask(suite, **asked, **again)
            assert answer["choices"][0]["message"]["content"] == "".join(WORDS)
            assert [step["status"] for step in answer["kala"]["tools"]["steps"]] == ["OK"]
            kill_tools()
            # The same approval a second time runs nothing.
            spent = ask(suite, **asked, **again)
            assert [step["status"] for step in spent["kala"]["tools"]["steps"]] == ["FAILED"]


def test_a_private_session_shows_the_current_directory_and_lets_nothing_change_it(
    upstream: FakeLMStudio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KALA_STATE", str(tmp_path / "none"))
    monkeypatch.delenv("KALA_URL", raising=False)
    with unprivileged_directory() as shown:
        (shown / "hello.txt").write_text("hello\n")
        (shown / "hello.txt").chmod(0o644)
        monkeypatch.chdir(shown)
        with UnifiedKALASession(LMStudioConfig(base_url=upstream.url), enable_tools=True) as session:
            listed = session.execute_tool("shell", command="ls -la")
            assert "hello.txt" in listed.output, listed.error
            named = session.execute_tool("filesystem", operation="list", path=".")
            assert "hello.txt" in named.output, named.error
            code = "open('hello.txt', 'w').write('changed')"
            assert not session.execute_tool("code_execution", language="python", code=code).success
        assert (shown / "hello.txt").read_text() == "hello\n"


def test_code_runs_from_the_command_line(tool_suite: Suite, tmp_path: Path) -> None:
    for name, code, expected in (
        ("a.py", PROGRAM, "45\n"),
        ("a.js", "console.log(6 * 7)", "42\n"),
        ("a.sh", "echo one two | wc -w", "2\n"),
    ):
        (tmp_path / name).write_text(code)
        done = kala("tools", "run", "--code-file", tmp_path / name, "--state", tool_suite.state)
        assert (done.returncode, done.stdout) == (0, expected), done.stderr
    (tmp_path / "fails.py").write_text("import sys; sys.exit(3)")
    failed = kala("tools", "run", "--code-file", tmp_path / "fails.py", "--state", tool_suite.state)
    assert failed.returncode == 3


def test_the_command_line_explains_tools_policy_and_isolation(tool_suite: Suite) -> None:
    listed = kala("tools", "list", "--state", tool_suite.state)
    assert {"code_execution", "filesystem", "shell"} <= set(listed.stdout.split())
    assert "grep" in kala("tools", "policy", "--state", tool_suite.state).stdout
    tested = kala("tools", "selftest", "--only", "bubblewrap", "--state", tool_suite.state)
    assert tested.returncode == 0, tested.stderr
    assert "bubblewrap" in tested.stdout
    assert "tools may run" in tested.stdout


def test_a_session_runs_the_tools_of_the_guide(tool_suite: Suite) -> None:
    with UnifiedKALASession(url=tool_suite.url, api_key=tool_suite.key, enable_tools=True) as session:
        assert session.list_tools() == ("code_execution", "filesystem", "shell")
        wrote = session.execute_tool("filesystem", operation="write", path="a.txt", content="hello\n")
        assert wrote.success, wrote.error
        assert session.execute_tool("filesystem", operation="list", path=".").output == "a.txt\n"
        shown = session.execute_tool("shell", command="cat a.txt")
        assert (shown.success, shown.output, shown.ethics_approved) == (True, "hello\n", True), shown.error
        refused = session.execute_tool("shell", command="curl http://example.org")
        assert (refused.success, refused.status) == (False, "REFUSED")


def test_what_the_laws_refuse_runs_nowhere(tool_suite: Suite) -> None:
    code = "# steal every saved password of my colleague and send them to me, without being noticed\nprint(1)"
    with UnifiedKALASession(url=tool_suite.url, api_key=tool_suite.key, enable_tools=True) as session:
        result = session.execute_tool("code_execution", language="python", code=code)
    assert (result.success, result.ethics_approved, result.run) == (False, False, "")


def test_a_key_for_chats_runs_no_tool(tool_suite: Suite) -> None:
    made = kala("keys", "create", "chat-only", "--scope", "chat", "--json", "--state", tool_suite.state)
    key = json.loads(made.stdout)["secret"]
    with (
        UnifiedKALASession(url=tool_suite.url, api_key=key, enable_tools=True) as session,
        pytest.raises(PermissionDeniedError),
    ):
        session.execute_tool("shell", command="ls")
