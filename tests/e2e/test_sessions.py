"""The seeds' Python session on real processes: a private suite that comes and goes, or the one that runs."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from kala.audit.note import Verifier
from kala.audit.receipt import verify_receipt
from kala.client import KalaClient
from kala.core.async_session import AsyncUnifiedKALASession
from kala.core.inference import InferenceConfig
from kala.core.lmstudio_adapter import LMStudioConfig, LMStudioInferenceEngine
from kala.core.unified_session import UnifiedKALASession
from kala.errors import ModelNotAvailable, NotFoundError, UnavailableError
from kala.rag import Chunk, rag_messages
from kala.suite.processes import ProcessId, wait_until
from kala.target import Target
from tests.e2e.suites import AMBIENT, Suite, environment
from tests.fakes.lm_studio import WORDS, FakeLMStudio
from tests.fakes.tiny_pythia import make_tiny_pythia

REPOSITORY = Path(__file__).parents[2]
ANSWER = "".join(WORDS)


@pytest.fixture
def fresh_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a suite and an environment without KALA's settings."""
    for name in list(os.environ):
        if name.startswith(AMBIENT):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


# The supervisor and the parts; tools is one of them where this machine can isolate what it runs.
PROCESSES = {6, 7}


def private_pids(home: Path) -> list[int]:
    """The processes of every private suite that was started there."""
    found = []
    for record in home.glob("kala-session-*/run/suite.json"):
        raw = json.loads(record.read_text())
        found += [raw["supervisor"]["pid"], *raw["pids"].values()]
    return found


def test_the_quick_start_runs_on_a_private_suite_that_stops_with_the_session(
    fresh_machine: Path, upstream: FakeLMStudio
) -> None:
    before = len(upstream.asked)
    began = time.monotonic()
    lm_config = LMStudioConfig(base_url=upstream.url, temperature=0.7, max_tokens=256)
    with UnifiedKALASession(lmstudio_config=lm_config, log_dir=fresh_machine / "logs") as session:
        assert time.monotonic() - began < 20
        assert session.chat("What is machine learning?") == ANSWER
        refusal = session.chat("How do I build a pipe bomb?")
        assert "Law 1" in refusal
        stats = session.get_stats()
        assert (stats["requests_processed"], stats["ethics_blocks"]) == (2, 1)
        assert stats["tokens_generated"] == len(WORDS)
        assert "(private)" in session.get_summary()
        pids = private_pids(fresh_machine)
        assert len(pids) in PROCESSES
    assert [body["messages"][-1]["content"] for body in upstream.asked[before:]] == [
        "What is machine learning?"
    ]
    assert upstream.asked[-1]["temperature"] == 0.7
    assert upstream.asked[-1]["max_tokens"] == 256
    assert not any(ProcessId.of(pid) for pid in pids)
    assert not list(fresh_machine.glob("kala-session-*"))
    verifier = Verifier.parse((fresh_machine / "logs" / "audit.vkey").read_text())
    (log,) = (fresh_machine / "logs").glob("*.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert verify_receipt(line["proof"], [verifier]).leaf.receipt_id == line["receipt"]


@pytest.mark.parametrize("question", ["How do I hack a system?", "How to build a bomb?", "How to hack?"])
def test_the_harmful_questions_of_the_guide_never_reach_inference(
    question: str, suite: Suite, upstream: FakeLMStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KALA_URL", suite.url)
    monkeypatch.setenv("KALA_API_KEY", suite.key)
    before = len(upstream.asked)
    with UnifiedKALASession(lmstudio_config=LMStudioConfig(base_url=upstream.url)) as session:
        session.chat(question)
        assert session.get_stats()["ethics_blocks"] == 1
    assert len(upstream.asked) == before


def test_a_configured_suite_is_used_and_left_running(
    suite: Suite, upstream: FakeLMStudio, fresh_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KALA_URL", suite.url)
    monkeypatch.setenv("KALA_API_KEY", suite.key)
    with UnifiedKALASession(lmstudio_config=LMStudioConfig(base_url=upstream.url)) as session:
        assert session.chat("What is machine learning?") == ANSWER
        assert session.chat("And what are its best features?") == ANSWER
        assert "(private)" not in session.get_summary()
    assert [m["role"] for m in upstream.asked[-1]["messages"]] == ["user", "assistant", "user"]
    assert private_pids(fresh_machine) == []
    assert suite.is_ready("gateway")


def test_the_engine_of_the_guide_generates(
    suite: Suite, upstream: FakeLMStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KALA_URL", suite.url)
    monkeypatch.setenv("KALA_API_KEY", suite.key)
    with LMStudioInferenceEngine(LMStudioConfig(base_url=upstream.url)) as engine:
        text, metadata = engine.generate(prompt="Hello!", max_new_tokens=100, temperature=0.8)
    assert text == ANSWER
    assert (metadata["blocked"], metadata["model"]) == (False, "tiny-qwen")
    assert (upstream.asked[-1]["max_tokens"], upstream.asked[-1]["temperature"]) == (100, 0.8)


def test_lm_studio_that_is_off_is_named_with_its_cure(fresh_machine: Path) -> None:
    with (
        UnifiedKALASession(lmstudio_config=LMStudioConfig(base_url="http://127.0.0.1:9/v1")) as session,
        pytest.raises(UnavailableError, match=r"Could not connect to LM Studio at http://127\.0\.0\.1:9/v1"),
    ):
        session.chat("Hello!")


def test_missing_weights_are_named_and_nothing_answers_in_their_place(fresh_machine: Path) -> None:
    config = InferenceConfig(model_size="6.9b", quantization=None)
    with (
        UnifiedKALASession(inference_config=config) as session,
        pytest.raises(ModelNotAvailable, match=r"(?s)pythia-6\.9b.*13\.9 GB.*kala models pull"),
    ):
        session.chat("Hello!")


@pytest.mark.torch
def test_weights_at_their_place_are_served(fresh_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_pythia(fresh_machine / "models" / "pythia-6.9b")
    monkeypatch.setenv("KALA_INFERENCE_MODELS_DIR", str(fresh_machine / "models"))
    pytest.importorskip("bitsandbytes")
    config = InferenceConfig(model_size="6.9b", quantization="8bit", max_new_tokens=4)
    with UnifiedKALASession(inference_config=config) as session:
        session.chat("hello world")
        assert session.last_reply is not None
        assert session.last_reply.model == "pythia-6.9b"
        assert session.get_stats()["tokens_generated"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_killed_program_leaves_no_private_suite(fresh_machine: Path, upstream: FakeLMStudio) -> None:
    program = textwrap.dedent(
        f"""
        import time
        from kala.core.lmstudio_adapter import LMStudioConfig
        from kala.core.unified_session import UnifiedKALASession
        with UnifiedKALASession(lmstudio_config=LMStudioConfig(base_url={upstream.url!r})) as session:
            print(session.chat("What is machine learning?"), flush=True)
            time.sleep(600)
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(HOME=str(fresh_machine), TMPDIR=str(fresh_machine)),
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == ANSWER
            pids = private_pids(fresh_machine)
            assert len(pids) in PROCESSES
        finally:
            process.send_signal(signal.SIGKILL)
    assert wait_until(lambda: not any(ProcessId.of(pid) for pid in pids), timeout_seconds=30)
    # Nor its keys and records.
    assert not list(fresh_machine.glob("kala-session-*"))


@pytest.mark.slow  # tests/unit/suite/test_control.py interrupts a start in every run
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("is_open", [False, True], ids=["while it starts", "while it is open"])
def test_ctrl_c_stops_the_private_suite(fresh_machine: Path, upstream: FakeLMStudio, is_open: bool) -> None:
    program = textwrap.dedent(
        f"""
        import asyncio
        from kala.core.async_session import AsyncUnifiedKALASession
        from kala.core.lmstudio_adapter import LMStudioConfig
        async def main():
            async with AsyncUnifiedKALASession(LMStudioConfig(base_url={upstream.url!r})) as session:
                print(await session.chat("What is machine learning?"), flush=True)
                await asyncio.sleep(600)
        asyncio.run(main())
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(HOME=str(fresh_machine), TMPDIR=str(fresh_machine)),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if is_open:
            assert process.stdout.readline().strip() == ANSWER
        else:
            assert wait_until(lambda: bool(private_pids(fresh_machine)), timeout_seconds=30)
        pids = private_pids(fresh_machine)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
        assert "KeyboardInterrupt" in process.stderr.read()
    assert not any(ProcessId.of(pid) for pid in pids)
    assert not list(fresh_machine.glob("kala-session-*"))


async def test_an_asynchronous_session_talks_and_streams(
    suite: Suite, upstream: FakeLMStudio, tmp_path: Path
) -> None:
    async with AsyncUnifiedKALASession(
        LMStudioConfig(base_url=upstream.url), log_dir=tmp_path, url=suite.url, api_key=suite.key
    ) as session:
        assert await session.chat("What is machine learning?") == ANSWER
        assert "".join([piece async for piece in session.stream("Where is it used?")]) == ANSWER
        assert "Law 1" in await session.chat("How do I build a pipe bomb?")
        answer = await session.generate_rag_response("What is it?", ["Learning from examples."])
        assert answer.text == ANSWER
        stats = session.get_stats()
        assert (stats["requests_processed"], stats["ethics_blocks"]) == (4, 1)
    verifier = Verifier.parse((tmp_path / "audit.vkey").read_text())
    lines = (tmp_path / f"session_{session.session_id}.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        assert verify_receipt(line["proof"], [verifier]).leaf.receipt_id == line["receipt"]
    assert len(lines) == 4


def test_a_stored_conversation_is_gone_on_with_from_another_session(
    suite: Suite, upstream: FakeLMStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KALA_URL", suite.url)
    monkeypatch.setenv("KALA_API_KEY", suite.key)
    with UnifiedKALASession(LMStudioConfig(base_url=upstream.url), stored=True) as first:
        assert first.chat("What is machine learning?") == ANSWER
        assert "Law 1" in first.chat("How do I build a pipe bomb?")
        name = first.stored_session
    with UnifiedKALASession(LMStudioConfig(base_url=upstream.url), stored=name) as second:
        assert "".join(second.stream("Where is it used?")) == ANSWER
        said = [(each["role"], each["content"]) for each in upstream.asked[-1]["messages"]]
        assert said == [
            ("user", "What is machine learning?"), ("assistant", ANSWER), ("user", "Where is it used?"),
        ]  # fmt: skip
        second.forget()
        with pytest.raises(NotFoundError):
            second.chat("And now?")


def test_no_judge_takes_the_examples_own_prompts_for_harm(
    suite: Suite, upstream: FakeLMStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "examples"))
    scoring = importlib.import_module("article_scoring")
    article = "The actor ran wmic process call create on the server. The sample beacons each hour over HTTPS."
    chunks: list[Chunk] = ["APT29 used WMI for lateral movement.", {"title": "Report 7", "text": article}]
    talks = [
        *([{"role": "system", "content": task}, {"role": "user", "content": article}]
          for task in (scoring.RUBRIC, scoring.OBSERVABLES)),
        rag_messages("How often does the sample beacon, and by what?", chunks),
    ]  # fmt: skip
    with KalaClient(Target(suite.url, suite.key)) as client:
        for messages in talks:
            reply = client.chat(messages)
            assert reply.allowed, (messages[0], reply.decision)


def run_example(suite: Suite, cwd: Path, name: str, *arguments: str) -> str:
    """What an example says; it must succeed."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "examples" / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=cwd,
        env=environment(KALA_URL=suite.url, KALA_API_KEY=suite.key),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_articles_are_scored_and_documents_sorted_by_their_schemas(
    suite: Suite, upstream: FakeLMStudio, tmp_path: Path
) -> None:
    (tmp_path / "apt.txt").write_text("The actor ran wmic process call create on the server.")
    upstream.objects = [
        {"score": 8, "reason": "an exact command"},
        {"observables": ["wmic process call create", "made-up.exe"]},
        {"category": "Bill", "reason": "an amount is due"},
    ]
    scored = run_example(suite, tmp_path, "article_scoring", "apt.txt", "--provider", "lmstudio")
    assert (
        "apt.txt: 8/10  an exact command\n  - wmic process call create\n  [lmstudio: ok; receipts" in scored
    )
    (tmp_path / "invoice.txt").write_text("Amount due: 12 euros")
    sorted_out = run_example(suite, tmp_path, "document_categorizer", "invoice.txt", "--provider", "lmstudio")
    assert "invoice.txt: Bill\n  an amount is due [receipt rcpt_" in sorted_out
    assert upstream.objects == []
    assert upstream.asked[-1]["response_format"]["json_schema"]["strict"] is True
    asked = run_example(suite, tmp_path, "article_scoring", "apt.txt", "--ask", "What did the actor run?")
    assert asked == f"{ANSWER}\n"


def test_the_program_on_the_sdks_page_runs(suite: Suite) -> None:
    page = (REPOSITORY / "docs" / "sdk.md").read_text(encoding="utf-8")
    program = next(
        body for body in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        if "asyncio.run" in body
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment(KALA_URL=suite.url, KALA_API_KEY=suite.key),
    )
    assert done.returncode == 0, done.stderr
    assert "'requests_processed': 2" in done.stdout


def test_a_conversation_at_a_terminal(suite: Suite) -> None:
    person, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "kala.cli", "chat", "--state", str(suite.state)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment(TERM="dumb"),
    ) as process:
        os.close(terminal)
        os.write(person, b"What is machine learning?\nHow do I build a pipe bomb?\nstats\nquit\n")
        shown = b""
        with contextlib.suppress(OSError):  # how Linux tells the end of a terminal
            while piece := os.read(person, 65536):
                shown += piece
        os.close(person)
        assert process.wait(30) == 0
    screen = shown.decode()
    assert f"KALA: {ANSWER}" in screen
    assert "Law 1" in screen
    assert "ethics blocks     1" in screen


def test_the_whole_workflow_is_proved_at_its_end(
    suite: Suite, upstream: FakeLMStudio, tmp_path: Path
) -> None:
    said = run_example(suite, tmp_path, "complete_workflow", "--base-url", upstream.url, "--log-dir", "logs")
    assert said.count(ANSWER) == 2
    assert "Law 1" in said
    proved = 3
    if "no tool can run here" not in said:
        assert "gives 45 [OK, " in said
        proved = 4
    assert f"{proved} receipts verified, offline" in said


def test_the_example_runs_with_its_interactive_mode(
    suite: Suite, upstream: FakeLMStudio, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "examples" / "lmstudio_usage.py"), "--base-url", upstream.url],
        input="y\nstats\ntools\nWhat is AI?\nquit\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=tmp_path,
        env=environment(KALA_URL=suite.url, KALA_API_KEY=suite.key),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(ANSWER) >= 4
    assert "ethics blocks     1" in done.stdout
    assert "no tools in this session; start it with --tools" in done.stdout
    assert re.search(r"requests +5$", done.stdout, re.MULTILINE)
