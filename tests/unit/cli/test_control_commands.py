"""`kala control`: the JSON that RFC-080's readers know, with the log and without it, and always exit code 0."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import kala.client
from kala.cli import main
from kala.client import KalaClient
from kala.target import Target
from tests.fakes.gateway import FakeGateway, failure

AT = ("--url", "http://127.0.0.1:8800", "--key", "kala_x")
LAST = "2026-01-15T14:30:00Z"
PIPELINES = {
    "pipelines": [
        {
            "name": "lm_studio",
            "succeeded": "6",
            "failed": "2",
            "last_run_at": LAST,
            "last_status": "ok",
        },
        {"name": "shell", "succeeded": "0", "failed": "1", "last_run_at": LAST, "last_status": "error"},
    ]
}
SUMMARY = {
    "tree_size": "30",
    "types": [{"label": "chat.outcome", "count": "8"}],
    "outcomes": [],
    "laws": [{"label": "1", "count": "2"}],
    "models": [],
}
LM = {"name": "backends/lmstudio", "kind": "lmstudio", "state": "BACKEND_STATE_READY", "latency": "0.004s"}
DENIED = {"error": {"code": 403, "status": "PERMISSION_DENIED", "message": "lacks audit.read", "details": []}}
AWAY = {"error": {"code": 503, "status": "UNAVAILABLE", "message": "the log is away", "details": []}}
Use = Callable[..., FakeGateway]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Let commands reach a scripted gateway instead of the network."""
    for name in ("USE_LM_STUDIO", "LMSTUDIO_ENABLED", "LM_STUDIO_BASE_URL"):
        monkeypatch.delenv(name, raising=False)

    def install(*answers: dict[str, Any], backends: tuple[dict[str, Any], ...] = ()) -> FakeGateway:
        script = [httpx.Response(one.get("error", {}).get("code", 200), json=one) for one in answers]
        gateway = FakeGateway(script, backends=backends)

        def client(target: Target, **_: object) -> KalaClient:
            return KalaClient(target, gateway.transport, lambda _: None)

        monkeypatch.setattr(kala.client, "KalaClient", client)
        return gateway

    return install


def test_a_pipeline_status_has_the_documented_json(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    gateway = use(PIPELINES)
    assert main(["control", "pipeline-status", "--window-hours", "48", *AT]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {
        "ok": True,
        "mode": "db_on",
        "reason": None,
        "window_hours": 48,
        "summary": {
            "total_runs": 9,
            "pipelines": {
                "lm_studio": {
                    "total": 8,
                    "by_status": {"success": 6, "failed": 2, "running": 0, "other": 0},
                    "last_run_started_at": LAST,
                    "last_run_at": LAST,
                    "last_run_status": "success",
                },
                "shell": {
                    "total": 1,
                    "by_status": {"success": 0, "failed": 1, "running": 0, "other": 0},
                    "last_run_started_at": LAST,
                    "last_run_at": LAST,
                    "last_run_status": "failed",
                },
            },
        },
    }
    assert printed.err == "db_on: 9 runs in 48 h; lm_studio 6 ok 2 failed, shell 0 ok 1 failed\n"
    assert dict(gateway.seen[0].url.params) == {"window": "172800s"}


@pytest.mark.parametrize("answer", [AWAY, {"error": {**AWAY["error"], "code": 504}}], ids=["away", "late"])
def test_with_the_database_off_the_exit_code_is_0(
    use: Use, capsys: pytest.CaptureFixture[str], answer: dict[str, Any]
) -> None:
    use(answer, answer, answer)
    assert main(["control", "pipeline-status", *AT]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told == {
        "ok": False,
        "mode": "db_off",
        "reason": "the log is away",
        "window_hours": 24,
        "summary": {"total_runs": 0, "pipelines": {}},
    }
    assert printed.err == "db_off: the log is away\n"


@pytest.mark.parametrize("command", ["pipeline-status", "summary"])
def test_without_any_suite_the_exit_code_is_0(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["control", command, "--json-only", "--state", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert (told["ok"], told["mode"], printed.err) == (False, "db_off", "")
    assert "kala up" in told["reason"]


@pytest.mark.parametrize("command", ["pipeline-status", "summary"])
def test_a_key_that_may_not_read_is_no_database_that_is_off(
    use: Use, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    use(DENIED)
    assert main(["control", command, *AT]) == 1
    assert "lacks audit.read" in capsys.readouterr().err


def test_a_summary_puts_log_pipelines_and_lm_studio_together(
    use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    use(SUMMARY, PIPELINES, backends=(LM,))
    assert main(["control", "summary", *AT]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["mode"], told["reason"], told["window_hours"]) == (True, "db_on", None, 24)
    assert set(told["components"]) == {"status", "lm", "pipeline_status"}
    assert told["components"]["status"]["tree_size"] == 30
    assert told["components"]["status"]["laws"] == {"1": 2}
    assert told["components"]["lm"]["mode"] == "lm_ready"
    assert told["components"]["pipeline_status"]["summary"]["total_runs"] == 9


def test_a_summary_of_a_suite_whose_log_is_away_still_tells_lm_studio(
    use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    use(*[AWAY] * 6, backends=(LM,))
    assert main(["control", "summary", *AT]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["mode"]) == (False, "db_off")
    assert told["components"]["lm"]["mode"] == "lm_ready"


def test_looking_at_lm_studio_makes_it_do_nothing(use: Use) -> None:
    gateway = use(SUMMARY, PIPELINES, backends=(LM,))
    assert main(["control", "summary", *AT]) == 0
    assert {request.method for request in gateway.seen} == {"GET"}


@pytest.mark.parametrize("hours", ["0", "-3", "1.5", "99999999"])
def test_a_window_that_is_none_is_refused(hours: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["control", "pipeline-status", "--window-hours", hours, *AT]) == 2
    assert "--window-hours" in capsys.readouterr().err


def test_a_failure_that_says_nothing_about_the_log_is_not_hidden(
    use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = use()
    gateway.script.append(failure(500, "internal_error", "internal error"))
    assert main(["control", "pipeline-status", *AT]) == 1
    assert "internal error" in capsys.readouterr().err
