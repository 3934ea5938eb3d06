"""The examples for other people's frameworks, unmodified frameworks in an environment of their own, against a running suite."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.suites import Suite, environment
from tests.fakes.lm_studio import WORDS, FakeLMStudio

REPOSITORY = Path(__file__).parents[2]
ANSWER = "".join(WORDS)

pytestmark = [pytest.mark.slow, pytest.mark.network]

STOCK = ("stock", {"article": "bolts"})


@pytest.fixture(scope="session")
def python() -> Path:
    """The interpreter that has the frameworks; the script installs them once."""
    subprocess.run([REPOSITORY / "scripts" / "clients.sh", "openai3"], check=True, timeout=600)
    return REPOSITORY / ".venv-clients-openai3" / "bin" / "python"


@pytest.mark.parametrize(
    ("name", "call", "says"),
    [
        ("langchain_chat", ("add", {"a": 2, "b": 3}), ["tool:   add{'a': 2, 'b': 3} = 5", "[receipt rcpt_"]),
        ("pydantic_ai_agent", STOCK, ["tool:    stock said 120"]),
        ("openai_agents_team", STOCK, ["tool:   stock said 120", "[answered by desk]"]),
    ],
    ids=["LangChain", "pydantic-ai", "openai-agents"],
)
def test_an_example_talks_streams_and_uses_a_tool_of_its_own(
    name: str,
    call: tuple[str, dict[str, Any]],
    says: list[str],
    python: Path,
    suite: Suite,
    upstream: FakeLMStudio,
) -> None:
    upstream.calls = [call]
    done = subprocess.run(
        [python, REPOSITORY / "examples" / f"{name}.py"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment(KALA_URL=suite.url, KALA_API_KEY=suite.key),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert upstream.calls == []
    assert f"stream: {ANSWER}" in done.stdout.replace("  ", " ")
    for words in says:
        assert words in done.stdout
