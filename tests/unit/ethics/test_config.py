from __future__ import annotations

from pathlib import Path

import pytest

from kala.errors import InvalidArgumentError
from kala.ethics.constitution import TrustMode
from services.common.settings import load, settings_table
from services.ethics import config
from services.ethics.config import SECTION, EthicsSettings, default_constitution_dir
from services.ethics.guard.formats import PromptKind
from services.ethics.guard.judge import DEADLINE_SECONDS


def settings(tmp_path: Path, **environ: str) -> EthicsSettings:
    return load(
        EthicsSettings,
        section=SECTION,
        argv=[],
        environ={f"KALA_ETHICS_{name}": value for name, value in environ.items()},
        cwd=tmp_path,
    )


def test_trust_is_pinned_by_default(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    assert chosen.constitution_trust.mode is TrustMode.PINNED
    assert chosen.unjudged_parts == "refuse"
    assert chosen.reverify_seconds == 300


def test_pinned_keys_come_from_the_environment(tmp_path: Path) -> None:
    chosen = settings(tmp_path, TRUSTED_KEY_FILES="/a.pem,/b.pem")
    assert chosen.constitution_trust.key_files == (Path("/a.pem"), Path("/b.pem"))


def test_development_trusts_no_further_keys(tmp_path: Path) -> None:
    assert settings(tmp_path, TRUST="development").constitution_trust.mode is TrustMode.DEVELOPMENT
    with pytest.raises(InvalidArgumentError, match="development trusts no other key"):
        settings(tmp_path, TRUST="development", TRUSTED_KEY_FILES="/a.pem")


def test_the_threshold_comes_from_the_environment_and_a_majority_without_it(tmp_path: Path) -> None:
    assert settings(tmp_path, TRUSTED_KEY_FILES="/a.pem").constitution_trust.threshold is None
    chosen = settings(tmp_path, TRUSTED_KEY_FILES="/a.pem,/b.pem", TRUSTED_KEY_THRESHOLD="1")
    assert chosen.constitution_trust.threshold == 1


def test_a_threshold_beyond_the_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="not be more than the 1 trusted_key_files"):
        settings(tmp_path, TRUSTED_KEY_FILES="/a.pem", TRUSTED_KEY_THRESHOLD="2")
    with pytest.raises(InvalidArgumentError, match="development trusts one key"):
        settings(tmp_path, TRUST="development", TRUSTED_KEY_THRESHOLD="1")


def test_trusted_keys_must_not_lie_in_the_archive(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="must not lie in the archive_dir"):
        settings(tmp_path, TRUSTED_KEY_FILES="/archive/v1/a.pem", ARCHIVE_DIR="/archive")
    assert settings(tmp_path, TRUSTED_KEY_FILES="/a.pem", ARCHIVE_DIR="/archive").archive_dir == Path(
        "/archive"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRUST", "none"),
        ("REVERIFY_SECONDS", "0"),
        ("TRUSTED_KEY_THRESHOLD", "0"),
        ("UNJUDGED_PARTS", "maybe"),
        ("SPOOL_DIR", "/x"),
        ("LAWS", "x"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(
        InvalidArgumentError, match=name.lower() if name == "SPOOL_DIR" else f"KALA_ETHICS_{name}"
    ):
        settings(tmp_path, **{name: value})


def test_the_packaged_constitution_comes_before_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "PACKAGED_CONSTITUTION", tmp_path / "missing")
    assert default_constitution_dir() == config.REPOSITORY_CONSTITUTION
    monkeypatch.setattr(config, "PACKAGED_CONSTITUTION", tmp_path)
    assert default_constitution_dir() == tmp_path


def test_a_directory_of_ones_own_comes_before_both(tmp_path: Path) -> None:
    assert settings(tmp_path, CONSTITUTION_DIR=str(tmp_path)).constitution == tmp_path


def test_the_readme_lists_every_setting() -> None:
    readme = (Path(config.__file__).parent / "README.md").read_text()
    assert settings_table(EthicsSettings, section=SECTION) in readme


GUARD = {"GUARD_MODEL": "lmstudio/llama-guard-3-8b", "GUARD_FORMAT": "llama-guard-3"}


def test_a_guard_model_comes_from_the_environment_or_the_file(tmp_path: Path) -> None:
    chosen = settings(
        tmp_path, **GUARD, INFERENCE_ADDRESS="unix:/i.sock", GUARD_PROMPT="whole", GUARD_CONCURRENCY="2"
    )
    assert chosen.guard_model == "lmstudio/llama-guard-3-8b"
    assert (chosen.guard_prompt, chosen.guard_concurrency) == (PromptKind.WHOLE, 2)
    assert chosen.guard_deadline_seconds == DEADLINE_SECONDS
    (tmp_path / "kala.yaml").write_text(
        "ethics:\n  guard_model: ollama/qwen3guard\n  guard_format: qwen3guard\n  inference_address: unix:/i.sock\n"
    )
    assert settings(tmp_path).guard_format == "qwen3guard"


def test_without_a_guard_model_there_is_no_guard(tmp_path: Path) -> None:
    assert settings(tmp_path, INFERENCE_ADDRESS="unix:/i.sock").guard_model is None


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"GUARD_MODEL": "lmstudio/x", "INFERENCE_ADDRESS": "unix:/i.sock"}, "needs guard_format"),
        (GUARD, "needs guard_format and inference_address"),
        ({"GUARD_FORMAT": "llama-guard-3"}, "are for a guard_model"),
        ({"GUARD_PROMPT": "whole"}, "are for a guard_model"),
        (GUARD | {"GUARD_MODEL": "auto"}, "must name one model"),
        (GUARD | {"GUARD_MODEL": "local-model"}, "must name one model"),
        ({"GUARD_DEADLINE_SECONDS": "0"}, "GUARD_DEADLINE_SECONDS"),
        ({"GUARD_CONCURRENCY": "0"}, "GUARD_CONCURRENCY"),
        ({"GUARD_PROMPT": "mine"}, "GUARD_PROMPT"),
    ],
)
def test_half_a_guard_is_refused(tmp_path: Path, values: dict[str, str], problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem):
        settings(tmp_path, **values)
