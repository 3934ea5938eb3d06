"""`kala init` writes where LM Studio is, so that every part reads it, and keeps the rest of the file."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from kala.adapters.settings import lm_studio_settings
from kala.cli import main


@pytest.fixture
def env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / ".env"


def test_what_is_written_is_what_is_read(env_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--lm-studio-url", "http://192.168.1.65:1234", "--model", "qwen/qwen3-4b"]) == 0
    assert capsys.readouterr().out == f"wrote {env_file}\n"
    settings = lm_studio_settings({}, cwd=env_file.parent)
    assert (settings.base_url, settings.model, settings.is_enabled) == (
        "http://192.168.1.65:1234",
        "qwen/qwen3-4b",
        True,
    )
    assert stat.S_IMODE(env_file.stat().st_mode) == 0o600


def test_the_rest_of_the_file_stays_and_no_setting_has_two_values(env_file: Path) -> None:
    env_file.write_text(
        "# mine\nOPENAI_API_KEY=x\nLMSTUDIO_API_URL=http://old:1\nexport LM_STUDIO_BASE_URL=http://older:1\n"
    )
    env_file.chmod(0o644)
    assert main(["init", "--lm-studio-url", "box:1234"]) == 0
    assert (
        env_file.read_text()
        == "# mine\nOPENAI_API_KEY=x\nLMSTUDIO_API_URL=http://box:1234\nUSE_LM_STUDIO=1\n"
    )
    assert stat.S_IMODE(env_file.stat().st_mode) == 0o644


def test_doing_without_switches_it_off(env_file: Path) -> None:
    env_file.write_text("LMSTUDIO_ENABLED=true\n")
    assert main(["init", "--lm-studio-url", "none"]) == 0
    assert env_file.read_text() == "LMSTUDIO_ENABLED=0\n"


def test_it_asks_and_takes_the_usual_place(env_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.prompt", lambda _text, default, **_: default)
    assert main(["init"]) == 0
    assert "LM_STUDIO_BASE_URL=http://localhost:1234/v1" in env_file.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--lm-studio-url", "ftp://x"], "must look like"),
        (["--lm-studio-url", "http://"], "must look like"),
        (["--lm-studio-url", "http://box/$(reboot)"], "without spaces, quotes"),
        (["--lm-studio-url", "none", "--model", "a\nB=1"], "without spaces, quotes"),
    ],
    ids=["scheme", "no host", "special", "two lines"],
)
def test_what_could_be_read_otherwise_is_not_written(
    env_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(["init", *arguments]) == 1
    assert says in capsys.readouterr().err
    assert not env_file.exists()


def test_a_file_that_is_no_text_is_left_alone(env_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env_file.write_bytes(b"\xff\xfe")
    assert main(["init", "--lm-studio-url", "none"]) == 1
    assert "cannot be read as text" in capsys.readouterr().err
    assert env_file.read_bytes() == b"\xff\xfe"
