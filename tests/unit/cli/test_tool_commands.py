"""`kala tools` against a scripted gateway."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import kala.client
from kala.cli import main
from kala.cli.tool_words import call_words, printable, size
from kala.client import KalaClient
from kala.target import Target
from tests.fakes.gateway import RECEIPT_ID, FakeGateway, failure

AT = ("--url", "http://127.0.0.1:8800", "--key", "kala_x")
Use = Callable[[FakeGateway], FakeGateway]
APPROVAL = "approvals/0." + "b" * 32
ISOLATION = {"tier": "ISOLATION_TIER_BUBBLEWRAP", "strength": "ISOLATION_STRENGTH_STANDARD"}


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Let commands reach a scripted gateway instead of the network."""

    def install(gateway: FakeGateway) -> FakeGateway:
        def client(target: Target, **_: object) -> KalaClient:
            return KalaClient(target, gateway.transport, lambda _: None)

        monkeypatch.setattr(kala.client, "KalaClient", client)
        return gateway

    return install


def answering(value: dict[str, Any]) -> FakeGateway:
    return FakeGateway([httpx.Response(200, json=value)])


def ran(stdout: str = "", stderr: str = "", **ended: Any) -> FakeGateway:
    """A run's events as the bridge sends them."""
    pieces = {"OUTPUT_STREAM_STDOUT": stdout, "OUTPUT_STREAM_STDERR": stderr}
    events: list[dict[str, Any]] = [
        {"output": {"stream": stream, "data": base64.b64encode(text.encode()).decode()}}
        for stream, text in pieces.items()
        if text
    ]
    exit_event = {"status": "RUN_STATUS_OK", "exit_code": 0, "isolation": ISOLATION, **ended}
    events.append({"exit": exit_event})
    content = "".join(json.dumps(event) + "\n" for event in events).encode()
    return FakeGateway([httpx.Response(200, content=content, headers={"x-kala-receipt": RECEIPT_ID})])


def test_tools_are_listed_with_the_reason_that_none_can_run(
    use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = {
        "name": "shell",
        "risk": "RISK_MEDIUM",
        "description": "Runs a command.",
        "available": False,
        "unavailable_reason": "bubblewrap: no user namespaces",
    }
    use(answering({"tools": [shell]}))
    assert main(["tools", "list", *AT]) == 0
    shown = capsys.readouterr()
    assert "medium" in shown.out
    assert "no user namespaces" in shown.err


def test_the_policy_is_shown_in_words(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    policy = {
        "version": "1",
        "tools": ["shell"],
        "commands": [{"program": "grep", "risk": "RISK_LOW", "refused_arguments": ["-P.*"]}],
        "zones": [{"path": "out", "read": True, "write": True}],
        "approvals": {
            "from_risk": "RISK_HIGH",
            "from_risk_after_untrusted": "RISK_MEDIUM",
            "approver": "APPROVER_OWNER",
        },
        "default_limits": {"wall_time": "30s", "memory_bytes": str(256 * 1024 * 1024)},
        "max_limits": {"memory_bytes": str(1024**3)},
    }
    use(answering({"policy": policy}))
    assert main(["tools", "policy", *AT]) == 0
    shown = capsys.readouterr().out
    assert "approval from high risk, medium after untrusted content, by owner" in shown
    assert "read, write" in shown
    assert "256 MiB" in shown
    assert "1 GiB" in shown


def test_the_self_test_says_which_mechanism_holds_and_why_another_does_not(
    use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    held = {"id": "network", "description": "opens a socket", "held": True, "detail": "refused"}
    broken = {"id": "pids", "description": "sees other processes", "held": False, "detail": "saw 12"}
    mechanisms = [
        {**ISOLATION, "usable": True, "selected": True, "version": "bubblewrap 0.8.0", "cases": [held]},
        {
            "tier": "ISOLATION_TIER_LANDLOCK",
            "strength": "ISOLATION_STRENGTH_WEAK",
            "usable": False,
            "reason": "needs allow_weak",
            "cases": [held, broken],
        },
    ]
    gateway = use(answering({"mechanisms": mechanisms, "ready": True, "host": "Linux"}))
    assert main(["tools", "selftest", "--only", "bubblewrap", "--only", "landlock", *AT]) == 0
    assert json.loads(gateway.seen[0].content) == {
        "tiers": ["ISOLATION_TIER_BUBBLEWRAP", "ISOLATION_TIER_LANDLOCK"]
    }
    shown = capsys.readouterr().out
    assert "landlock: needs allow_weak" in shown
    assert "pids: sees other processes — saw 12" in shown
    assert "1 of 2" in shown
    assert "tools may run" in shown


def test_a_self_test_without_a_mechanism_is_a_failure(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    use(answering({"mechanisms": [], "ready": False}))
    assert main(["tools", "selftest", *AT]) == 1
    assert "nothing may run here" in capsys.readouterr().out


def test_code_runs_and_its_output_is_all_that_is_printed(
    use: Use, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    gateway = use(ran("42\n", "note\n"))
    code = tmp_path / "a.py"
    code.write_text("print(6*7)")
    (tmp_path / "in").write_bytes(b"\x00in")
    asked = [
        "--code-file",
        str(code),
        "--stdin-file",
        str(tmp_path / "in"),
        "--timeout",
        "5",
        *AT,
        "--",
        "-x",
        "1",
    ]
    assert main(["tools", "run", *asked]) == 0
    shown = capsys.readouterr()
    assert shown.out == "42\n"
    assert shown.err.startswith("note\n")
    assert RECEIPT_ID in shown.err
    assert "bubblewrap/standard" in shown.err
    action = json.loads(gateway.seen[0].content)
    assert json.loads(action["arguments_json"]) == {
        "language": "python",
        "code": "print(6*7)",
        "arguments": ["-x", "1"],
    }
    assert base64.b64decode(action["stdin"]) == b"\x00in"
    assert action["limits"] == {"wall_time": "5s"}


def test_the_programs_exit_code_is_the_commands(use: Use, tmp_path: Path) -> None:
    code = tmp_path / "a.sh"
    code.write_text("exit 7")
    use(ran(status="RUN_STATUS_ERROR", exit_code=7))
    assert main(["tools", "run", "--code-file", str(code), *AT]) == 7


def test_a_call_that_needs_a_person_says_how_to_go_on(
    use: Use, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code = tmp_path / "a.py"
    code.write_text("x")
    use(
        ran(
            status="RUN_STATUS_APPROVAL_REQUIRED",
            exit_code=None,
            isolation=None,
            approval=APPROVAL,
            reason="risky",
        )
    )
    assert main(["tools", "run", "--code-file", str(code), *AT]) == 1
    shown = capsys.readouterr().err
    assert f"kala tools approvals approve {APPROVAL}" in shown
    assert "risky" in shown


def test_a_refusal_by_the_laws_is_told_in_their_words(
    use: Use, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code = tmp_path / "a.py"
    code.write_text("x")
    use(FakeGateway([failure(403, "refuse", "I cannot help with that.")]))
    assert main(["tools", "run", "--code-file", str(code), *AT]) == 1
    assert "the Five Laws: I cannot help with that." in capsys.readouterr().err


def test_a_mechanism_that_nobody_knows_is_named(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    use(FakeGateway())
    assert main(["tools", "selftest", "--only", "chroot", *AT]) == 1
    assert "--only" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "says"), [("a.rb", "--language"), ("missing.py", "--code-file")])
def test_code_that_cannot_be_read_or_run_is_named(
    use: Use, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, says: str
) -> None:
    use(FakeGateway())
    if name != "missing.py":
        (tmp_path / name).write_text("x")
    assert main(["tools", "run", "--code-file", str(tmp_path / name), *AT]) == 1
    assert says in capsys.readouterr().err


def test_approvals_are_listed_and_decided(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    waiting = {
        "name": APPROVAL,
        "state": "APPROVAL_STATE_PENDING",
        "tool": "shell",
        "risk": "RISK_HIGH",
        "reason": "deletes",
        "arguments_json": '{"command": "rm \u001b[2J"}',
        "stdin": "YSBiG1sySg==",
        "stdin_bytes": "70000",
        "files": [{"name": "notes\u001b.txt", "bytes": "12"}],
    }
    gateway = use(answering({"approvals": [waiting]}))
    assert main(["tools", "approvals", "list", "--only", "pending", *AT]) == 0
    shown = capsys.readouterr().out
    assert "deletes" in shown
    assert "stdin a b" in shown
    assert "(70000 bytes)" in shown
    assert "12 bytes" in shown
    assert "\u001b" not in shown
    assert gateway.seen[0].url.params["state"] == "APPROVAL_STATE_PENDING"
    for verb, state in (("approve", "APPROVED"), ("deny", "DENIED")):
        gateway = use(answering({"approval": {"state": f"APPROVAL_STATE_{state}"}}))
        assert main(["tools", "approvals", verb, APPROVAL, "--comment", "ok", *AT]) == 0
        assert gateway.seen[0].url.path == f"/kala/v1/tools/{APPROVAL}:decide"
        assert json.loads(gateway.seen[0].content) == {"approve": verb == "approve", "comment": "ok"}
        assert f"is {state.lower()}" in capsys.readouterr().out


def test_code_that_is_not_utf8_is_no_bug(
    use: Use, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(FakeGateway())
    (tmp_path / "a.py").write_bytes(b"x\xff")
    assert main(["tools", "run", "--code-file", str(tmp_path / "a.py"), *AT]) == 1
    assert "--code-file: is not UTF-8 at byte 1" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert main(["tools", "run", "--code-file", "-", "--language", "python", *AT]) == 1
    assert "--code-file: is not UTF-8 at byte 0" in capsys.readouterr().err


def test_a_program_writes_no_control_characters_into_what_is_told_of_it(
    use: Use, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a.py").write_text("x")
    artifact = {"path": "out/\x1b[2Ja.txt", "content": {"bytes": "1"}}
    use(ran(status="RUN_STATUS_ERROR", exit_code=1, reason="\x1b]0;owned\x07", artifacts=[artifact]))
    assert main(["tools", "run", "--code-file", str(tmp_path / "a.py"), *AT]) == 1
    told = capsys.readouterr().err
    assert "\x1b" not in told
    assert "out/\\x1b[2Ja.txt" in told


def test_blanks_and_escapes_hide_no_call_from_the_person_who_decides(
    use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    padded = "{" + "\n" * 99 + " " * 5000 + '"code": "\\u0069mport os\\n# \u202e"}'
    waiting = {"name": APPROVAL, "tool": "code_execution", "arguments_json": padded, "reason": "risk\u2066"}
    use(answering({"approvals": [waiting]}))
    assert main(["tools", "approvals", "list", *AT]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[1:] == [
        "  why   risk\\u2066",
        '  call  {"code": "import os\\n# \\u202e"}',
    ]
    assert call_words("no\nJSON") == "no\\nJSON"


def test_control_characters_are_shown_and_not_sent() -> None:
    assert printable("a\x1b[31mb\x9b\n\tc\U000e0041") == "a\\x1b[31mb\\x9b\n\tc\\U000e0041"


def test_bytes_are_spelled_in_whole_units() -> None:
    assert [size("memory_bytes", value) for value in ("1073741824", "1536", 0, None)] == [
        "1 GiB",
        "1536 B",
        "0 B",
        "",
    ]
    assert size("wall_time", "30s") == "30s"
