"""The scripts that the seeds name call the commands that do the work, with what `.env` says."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


@pytest.fixture
def called(tmp_path: Path) -> Path:
    """A `kala` that only writes down how it was called."""
    stub = tmp_path / "kala"
    stub.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/called"\n')
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    return tmp_path / "called"


def run(script: str, *arguments: str, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("LMSTUDIO", "LM_STUDIO"))
    }
    return subprocess.run(
        ["bash", str(SCRIPTS / script), *arguments],
        env={**inherited, "KALA_COMMAND": str(cwd / "kala"), **changes},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_configured_model_is_loaded_with_its_context(called: Path, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        '# LMSTUDIO_MODEL=no\nLMSTUDIO_MODEL="qwen/qwen3-4b-2507"\nLMSTUDIO_MAX_CONTEXT=16384 # tokens\n'
    )
    assert run("load_lmstudio_model.sh", cwd=tmp_path).returncode == 0
    assert called.read_text() == "models load qwen/qwen3-4b-2507 --backend lmstudio --context 16384\n"


def test_the_environment_and_the_argument_win(called: Path, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("LMSTUDIO_MODEL=file\n")
    run("load_lmstudio_model.sh", cwd=tmp_path, LMSTUDIO_MODEL="environment")
    run("load_lmstudio_model.sh", "argument", "--json", cwd=tmp_path, LMSTUDIO_MODEL="environment")
    assert called.read_text().splitlines() == [
        "models load environment --backend lmstudio",
        "models load argument --backend lmstudio --json",
    ]


def test_without_a_model_nothing_is_loaded(called: Path, tmp_path: Path) -> None:
    done = run("load_lmstudio_model.sh", cwd=tmp_path)
    assert (done.returncode, called.exists()) == (2, False)
    assert "LMSTUDIO_MODEL" in done.stderr


def test_nothing_in_env_file_is_executed(called: Path, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"LMSTUDIO_MODEL=$(touch {tmp_path}/owned)\n")
    run("load_lmstudio_model.sh", cwd=tmp_path)
    assert not (tmp_path / "owned").exists()


def test_models_are_pulled_where_the_settings_expect_them(called: Path, tmp_path: Path) -> None:
    done = run(
        "setup_local_models.sh", "--with-mlx", "--with-llamacpp", "llama-3.2-1b-instruct", cwd=tmp_path
    )
    assert done.returncode == 1  # this `kala` made no folder to link into
    (tmp_path / "models" / "mlx").mkdir(parents=True)
    (tmp_path / "models" / "gguf").mkdir(parents=True)
    done = run(
        "setup_local_models.sh", "--with-mlx", "--with-llamacpp", "llama-3.2-1b-instruct", cwd=tmp_path
    )
    assert done.stdout.splitlines() == [
        "MLX_MODEL_PATH=models/mlx/llama-3.2-1b-instruct",
        "LLAMACPP_MODEL_PATH=models/gguf/llama-3.2-1b-instruct.gguf",
    ]
    assert called.read_text().splitlines()[-2:] == [
        "models pull mlx-community/Llama-3.2-1B-Instruct-4bit --to models/mlx",
        "models pull bartowski/Llama-3.2-1B-Instruct-GGUF/Llama-3.2-1B-Instruct-Q4_K_M.gguf --to models/gguf",
    ]
    link = tmp_path / "models" / "mlx" / "llama-3.2-1b-instruct"
    assert link.readlink() == Path("Llama-3.2-1B-Instruct-4bit")


def test_all_models_are_both(called: Path, tmp_path: Path) -> None:
    (tmp_path / "models" / "mlx").mkdir(parents=True)
    run("setup_local_models.sh", "--with-mlx", "--all-models", cwd=tmp_path)
    assert len(called.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "arguments", [[], ["--with-mlx"], ["--all-models"], ["--with-mlx", "nonsense"]], ids=str
)
def test_what_is_not_understood_is_explained(arguments: list[str], called: Path, tmp_path: Path) -> None:
    done = run("setup_local_models.sh", *arguments, cwd=tmp_path)
    assert (done.returncode, called.exists()) == (2, False)
    assert "usage:" in done.stderr


@pytest.mark.parametrize("script", ["benchmark_llm_providers.py", "benchmark_providers.py"])
def test_the_benchmark_scripts_are_the_command(script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "bench providers" in done.stdout
