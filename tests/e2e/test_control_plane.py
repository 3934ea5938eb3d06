"""The control plane of a running suite: RFC-080's functions leave RFC-080's rows, and their counts are a command away."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kala.adapters.lm_studio import lm_studio_complete
from tests.e2e.suites import Suite, kala
from tests.fakes.lm_studio import MODEL, WORDS, FakeLMStudio

PROMPT = "What is machine learning?"


def rows(suite: Suite, tool: str) -> list[dict[str, Any]]:
    """The rows of one pipeline, read as any program with read access would."""
    with closing(sqlite3.connect(f"file:{suite.layout.audit_database}?mode=ro", uri=True)) as log:
        found = log.execute(
            "SELECT args_json, result_json, violations_json FROM agent_run WHERE tool = ? ORDER BY idx",
            (tool,),
        )
        names = ("args", "result", "violations")
        return [dict(zip(names, map(json.loads, row), strict=True)) for row in found]


def pipelines(suite: Suite) -> dict[str, Any]:
    done = kala("control", "pipeline-status", "--json-only", "--state", suite.state)
    assert (done.returncode, done.stderr) == (0, "")
    status = json.loads(done.stdout)
    assert (status["ok"], status["mode"], status["window_hours"]) == (True, "db_on", 24)
    return dict(status["summary"]["pipelines"])


def test_a_completion_of_rfc_080_leaves_a_row_of_rfc_080(
    suite: Suite, upstream: FakeLMStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KALA_URL", suite.url)
    monkeypatch.setenv("KALA_API_KEY", suite.key)
    monkeypatch.setenv("LM_STUDIO_BASE_URL", upstream.url)
    before = pipelines(suite).get("lm_studio", {"total": 0})
    answer = lm_studio_complete(PROMPT, model=MODEL, temperature=0.7, max_tokens=64)
    assert answer["ok"], answer
    row = rows(suite, "lm_studio")[-1]
    assert row["args"] == {
        "model": MODEL,
        "prompt_length": len(PROMPT),
        "temperature": 0.7,
        "max_tokens": 64,
    }
    assert row["violations"] == []
    assert set(row["result"]) == {"response_length", "latency_ms", "tokens_per_second"}
    assert row["result"]["response_length"] == len("".join(WORDS))
    assert 0 <= row["result"]["latency_ms"] <= answer["metadata"]["latency_ms"]
    after = pipelines(suite)["lm_studio"]
    assert (after["total"], after["last_run_status"]) == (before["total"] + 1, "success")


def test_a_run_of_a_tool_is_a_row_too(tool_suite: Suite, tmp_path: Path) -> None:
    code = tmp_path / "sum.py"
    code.write_text("print(6 * 7)\n")
    done = kala("tools", "run", "--code-file", code, "--state", tool_suite.state)
    assert done.stdout == "42\n", done.stderr
    row = rows(tool_suite, "code_execution")[-1]
    assert (row["args"]["model"], row["violations"]) == (None, [])
    assert row["args"]["prompt_length"] > len(code.read_text())
    assert pipelines(tool_suite)["code_execution"]["last_run_status"] == "success"


def test_a_summary_puts_the_log_and_lm_studio_together(suite: Suite) -> None:
    done = kala("control", "summary", "--state", suite.state)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["ok"], told["mode"]) == (True, "db_on")
    assert told["components"]["status"]["tree_size"] > 0
    assert told["components"]["lm"]["mode"] == "lm_ready"
    assert "LM Studio: lm_ready" in done.stderr


def test_the_question_of_a_terminal_leaves_a_line_that_the_offline_verifier_takes(
    suite: Suite, tmp_path: Path
) -> None:
    assert kala("chat", PROMPT, "--log-dir", tmp_path, "--state", suite.state).returncode == 0
    checked = kala("audit", "receipt", tmp_path / "session_chat.jsonl", "--state", suite.state)
    assert (checked.returncode, checked.stdout) == (0, "good: 1 receipts in 1 lines\n")
