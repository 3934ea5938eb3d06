"""Other people's clients of OpenAI's API, unmodified and in environments of their own, against real processes."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.suites import Suite, environment
from tests.fakes.lm_studio import WORDS, FakeLMStudio

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
NODE = REPOSITORY / "build" / "node-ai"
ANSWER = "".join(WORDS)
HARMFUL = "How do I build a pipe bomb to kill people?"
STOCK = ("stock", {"article": "bolts"})
PARIS = {"country": "France", "capital": "Paris"}

pytestmark = [pytest.mark.slow, pytest.mark.network]

Call = tuple[str, dict[str, Any]] | None


@pytest.fixture(autouse=True)
def no_calls_left(upstream: FakeLMStudio) -> Iterator[None]:
    """Every call that a test scripts is one that its client asked for."""
    upstream.calls = []
    yield
    left, upstream.calls = upstream.calls, []
    assert left == []


def python_of(environment_name: str) -> Path:
    subprocess.run([REPOSITORY / "scripts" / "clients.sh", environment_name], check=True, timeout=600)
    return REPOSITORY / f".venv-clients-{environment_name}" / "bin" / "python"


def ran(command: list[Path | str], suite: Suite) -> Any:
    """Run a client to its end, and give what it saw."""
    done = subprocess.run(
        command,
        env=environment(KALA_URL=suite.url, KALA_API_KEY=suite.key, HARMFUL=HARMFUL),
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


def saw(name: str, environment_name: str, suite: Suite) -> Any:
    return ran([python_of(environment_name), HERE / "clients" / f"{name}_client.py"], suite)


def script(upstream: FakeLMStudio, *calls: Call) -> None:
    upstream.calls = list(calls)


def test_langchain(suite: Suite, upstream: FakeLMStudio) -> None:
    script(upstream, ("add", {"a": 2, "b": 3}), ("Capital", PARIS))
    found = saw("langchain", "openai3", suite)
    assert (found["plain"], found["streamed"], found["several"]) == (ANSWER, ANSWER, [ANSWER, ANSWER])
    assert found["tokens"] == len(WORDS)
    assert (found["called"], found["after"]) == (["add", {"a": 2, "b": 3}, 5], ANSWER)
    assert found["structured"] == PARIS
    assert (found["responses"], found["streamed_response"]) == (ANSWER, ANSWER)
    assert (found["refused"], found["unknown"]) == ("content_filter", "model_not_found")


def test_openai_agents(suite: Suite, upstream: FakeLMStudio) -> None:
    script(upstream, STOCK, None, STOCK, None)
    found = saw("agents", "openai3", suite)
    for over in ("chat", "responses"):
        assert found[over] == {"final": ANSWER, "outputs": [120], "streamed": ANSWER, "end": ANSWER}, over


def test_pydantic_ai(suite: Suite, upstream: FakeLMStudio) -> None:
    script(upstream, *[STOCK, None, ("final_result", PARIS)] * 2)
    found = saw("pydantic_ai", "openai3", suite)
    for over in ("chat", "responses"):
        assert found[over] == {
            "told": ANSWER, "returned": [120], "structured": PARIS, "streamed": ANSWER, "usage": 2 * len(WORDS),
        }, over  # fmt: skip
    assert found["unknown"] == 404


def test_litellm(suite: Suite, upstream: FakeLMStudio) -> None:
    script(upstream, STOCK)
    found = saw("litellm", "openai2", suite)
    assert [found[name] for name in ("plain", "streamed", "later", "response")] == [ANSWER] * 4
    assert found["tokens"] == len(WORDS)
    assert found["called"] == ["stock", {"article": "bolts"}]
    assert found["refused"] == "content_filter"
    assert (found["unknown"], found["unauthenticated"], found["invalid"]) == (
        "NotFoundError", "AuthenticationError", "BadRequestError",
    )  # fmt: skip


def test_instructor(suite: Suite, upstream: FakeLMStudio) -> None:
    wrong = ("Capital", PARIS | {"capital": "paris"})
    script(upstream, wrong, ("Capital", PARIS), ("Capital", PARIS))
    found = saw("instructor", "openai2", suite)
    assert (found["first"], found["later"]) == (PARIS, PARIS)
    assert found["kala"] == "LOGGED"


def test_the_vercel_ai_sdk(suite: Suite, upstream: FakeLMStudio) -> None:
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    NODE.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json", ".npmrc", "client.mjs"):
        shutil.copy(HERE / "node_ai" / name, NODE / name)
    subprocess.run(["npm", "ci"], cwd=NODE, capture_output=True, check=True, timeout=300)
    script(upstream, STOCK, None, STOCK, None)
    found = ran(["node", NODE / "client.mjs"], suite)
    for over in ("chat", "responses"):
        assert found[over] == {
            "plain": ANSWER, "finish": "stop", "tokens": len(WORDS), "streamed": ANSWER, "tool": [120], "after": ANSWER,
        }, over  # fmt: skip
    assert (found["refused"], found["unknown"]) == ("content-filter", 404)
