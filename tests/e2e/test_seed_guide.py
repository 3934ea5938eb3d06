"""The code of the KALA + LM Studio guide runs as it stands, against real processes, with LM Studio at its usual port."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.suites import AMBIENT, Suite, running_suite
from tests.fakes.lm_studio import WORDS, FakeLMStudio, lm_studio
from tests.tools_runtime import unprivileged_directory

REPOSITORY = Path(__file__).parents[2]
GUIDE = REPOSITORY.parent / "shared" / "seeds" / "000_304954a89d05759a.txt"
PORT = 1234
ANSWER = "".join(WORDS)
HARMFUL = ("hack", "bomb")

pytestmark = pytest.mark.skipif(not GUIDE.is_file(), reason="the guide is not beside this checkout")


def blocks(language: str = "python") -> list[str]:
    text = GUIDE.read_text(encoding="utf-8") if GUIDE.is_file() else ""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def block(mark: str) -> str:
    """The block that holds this."""
    (found,) = (body for body in blocks() if mark in body)
    return found


SETTING_UP = """
from kala.core.unified_session import UnifiedKALASession
from kala.core.lmstudio_adapter import LMStudioConfig
lm_config = config = LMStudioConfig(base_url="http://localhost:1234/v1")
user_request = "What is machine learning?"
"""
"""What the guide's reader has done before a block that stands alone."""


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(SETTING_UP + code, "guide", "exec"), names)
    return names


@pytest.fixture(scope="module")
def studio() -> Iterator[FakeLMStudio]:
    try:
        with lm_studio(PORT) as fake:
            yield fake
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        pytest.skip(f"something else listens on port {PORT}")


@pytest.fixture(scope="module")
def guided(studio: FakeLMStudio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    state = tmp_path_factory.mktemp("guided") / "state"
    with running_suite(state, KALA_INFERENCE_LMSTUDIO_URL=f"http://localhost:{PORT}/v1") as running:
        yield running


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Somebody with an empty home, in an empty directory."""
    for name in list(os.environ):
        if name.startswith(AMBIENT):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return monkeypatch


@pytest.fixture
def at_home(reader: pytest.MonkeyPatch, guided: Suite) -> None:
    """The same, with a suite that runs already."""
    reader.setenv("KALA_URL", guided.url)
    reader.setenv("KALA_API_KEY", guided.key)


TALKS = {
    "# Try a harmful request (will be blocked)": 1,
    "# Safe conversation": 1,
    "# Turn 2 (maintains context)": 3,
    'session.chat("How to hack?")  # Blocked': 2,
    "\nconfig = LMStudioConfig(base_url=": 1,
    'log_dir=Path("logs/production")': 1,
    "# Override max_tokens for this request": 1,
    "# Direct generation": 2,
    "print(session.get_summary())": 0,
}
"""Each block that talks, by a mark of it, with how many questions reach the model."""


@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize(("mark", "questions"), TALKS.items(), ids=range(len(TALKS)))
def test_every_block_that_talks_runs_and_no_harmful_question_reaches_the_model(
    mark: str, questions: int, studio: FakeLMStudio, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = len(studio.asked)
    names = run(block(mark))
    asked = [str(body["messages"][-1]["content"]) for body in studio.asked[before:]]
    assert len(asked) == questions, asked
    assert not any(word in text for text in asked for word in HARMFUL)
    printed = capsys.readouterr().out
    if "will be blocked" in mark or "Safe" in mark:
        assert printed.startswith(f"{ANSWER}\n")
        assert "Law 1" in printed
    elif "Turn 2" in mark:
        assert len(studio.asked[-1]["messages"]) == 5
    elif "How to hack?" in mark:
        assert "Requests: 3\nEthics Blocks: 1\n" in printed
    elif "log_dir" in mark:
        assert len(list((tmp_path / "logs" / "production").glob("session_*.jsonl"))) == 1
    elif "Override" in mark:
        assert studio.asked[-1]["max_tokens"] == 1024
    elif "Direct" in mark:
        assert (names["text"], names["response"]) == (ANSWER, ANSWER)
        assert studio.asked[before]["temperature"] == 0.8
        names["engine"].close()
    elif "summary" in mark:
        assert f"KALA session {names['stats']['session_id']}" in printed


def test_no_block_is_left_out() -> None:
    configurations = [body for body in blocks() if "session" not in body and "engine" not in body]
    assert len(configurations) == 4
    for body in configurations:
        exec(compile(SETTING_UP + body, "guide", "exec"), {})
    others = ("# Execute shell command", 'model_size="6.9b"')
    assert len(blocks()) == len(configurations) + len(TALKS) + len(others)
    for mark in (*TALKS, *others):
        assert block(mark)
    assert all("examples/lmstudio_usage.py" in body for body in blocks("bash"))


@pytest.mark.slow  # a private suite of its own; test_tools.py has one in every run
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_the_tools_of_the_guide_work_where_its_reader_stands(
    reader: pytest.MonkeyPatch, studio: FakeLMStudio, capsys: pytest.CaptureFixture[str]
) -> None:
    with unprivileged_directory() as here:
        (here / "kala").mkdir()
        (here / "kala" / "core.py").write_text("")
        for path in (here / "kala", here / "kala" / "core.py"):
            path.chmod(0o755)
        reader.chdir(here)
        run(block("# Execute shell command"))
    printed = capsys.readouterr().out
    assert re.search(r"^d.* kala$", printed, re.MULTILINE), printed
    assert "core.py" in printed


@pytest.mark.slow
@pytest.mark.torch
def test_pythia_answers_from_the_weights_at_their_place(
    reader: pytest.MonkeyPatch, studio: FakeLMStudio, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    from tests.fakes.tiny_pythia import make_tiny_pythia

    make_tiny_pythia(tmp_path / "models" / "pythia-6.9b")
    reader.setenv("KALA_INFERENCE_MODELS_DIR", str(tmp_path / "models"))
    names = run(block('model_size="6.9b"'))
    assert names["session"].last_reply.model == "pythia-6.9b"
