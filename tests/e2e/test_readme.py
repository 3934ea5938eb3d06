"""The README's commands and programs run as they stand, against a running suite."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.suites import Suite, environment
from tests.fakes.lm_studio import FakeLMStudio

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SHELL = [body for language, body in BLOCKS if language == "sh"]
PYTHON = [body for language, body in BLOCKS if language == "python"]
SET_UP = next(body for body in SHELL if "KALA_API_KEY=" in body)


def adapted(text: str, suite: Suite, upstream: FakeLMStudio) -> str:
    """The text with the places of a fresh machine replaced by those of the test's suite; nothing else changes."""
    return (
        text.replace("http://127.0.0.1:8800", suite.url)
        .replace("~/.local/state/kala", str(suite.state))
        .replace(". .venv/bin/activate", ":")
        .replace("http://localhost:1234/v1", upstream.url)
    )


def bash(script: str, suite: Suite, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=cwd,
        env=environment(PATH=path, KALA_STATE=str(suite.state)),
    )


def in_a_suite(body: str) -> bool:
    """Whether a block talks to the running suite alone: not the set-up commands, not its end, not a public hub."""
    return not body.startswith(("make ", "kala down", "kala models pull")) and body is not SET_UP


@pytest.mark.parametrize(
    "body", [body for body in SHELL if in_a_suite(body)], ids=lambda body: body[:40].strip()
)
def test_every_command_runs(body: str, suite: Suite, upstream: FakeLMStudio, tmp_path: Path) -> None:
    done = bash(adapted(SET_UP + body, suite, upstream), suite, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_curl_gets_an_answer_with_a_receipt(suite: Suite, upstream: FakeLMStudio, tmp_path: Path) -> None:
    body = next(body for body in SHELL if body.startswith("curl"))
    done = bash(adapted(SET_UP + body, suite, upstream), suite, tmp_path)
    assert " 200 " in done.stdout.splitlines()[0]
    assert "x-kala-receipt: rcpt_" in done.stdout.lower()


@pytest.mark.parametrize("body", PYTHON, ids=lambda body: body.strip().splitlines()[0])
def test_every_program_runs(body: str, suite: Suite, upstream: FakeLMStudio, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(adapted(body, suite, upstream))
    done = bash(adapted(SET_UP, suite, upstream) + f"python {program}", suite, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "learning" in done.stdout


def test_the_two_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    made = {
        line.removeprefix("make ") for body in SHELL for line in body.splitlines() if line.startswith("make ")
    }
    assert made == {"run", "test"}
    assert made <= targets


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (REPOSITORY / target).exists(), target
