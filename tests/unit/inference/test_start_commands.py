"""How servers are started, and what is said when something for it is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from services.inference.started.command import (
    Command,
    LlamaCppCommand,
    MissingError,
    MlxCommand,
    environment,
)


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF and weights")
    return path


@pytest.fixture
def mlx(tmp_path: Path) -> Path:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}")
    return tmp_path / "tiny"


def has(*modules: str) -> dict[str, object]:
    return {"has_module": lambda name: name in modules, "which": lambda _name: None}


def test_mlx_lm_of_this_python_is_taken_first(mlx: Path) -> None:
    line = MlxCommand(mlx, "tiny", has_module=lambda _: True, which=lambda name: f"/bin/{name}").line(5000)
    assert line == [
        *(sys.executable, "-m", "mlx_lm", "server"),
        *("--model", str(mlx), "--host", "127.0.0.1", "--port", "5000"),
    ]
    line = MlxCommand(mlx, "tiny", has_module=lambda _: False, which=lambda name: f"/bin/{name}").line(5000)
    assert line[0] == "/bin/mlx_lm.server"


def test_llama_server_gets_all_layers_unless_told_otherwise(gguf: Path) -> None:
    line = LlamaCppCommand(gguf, "tiny", which=lambda name: f"/bin/{name}").line(5000)
    assert line[0] == "/bin/llama-server"
    assert line[line.index("--n-gpu-layers") + 1] == "999"
    assert "--ctx-size" not in line


@pytest.mark.parametrize(("given", "said"), [(512, "512"), (None, "0")])
def test_llama_cpp_python_stands_in_where_only_it_is_installed(
    gguf: Path, given: int | None, said: str
) -> None:
    line = LlamaCppCommand(gguf, "tiny", context_tokens=given, **has("llama_cpp")).line(5000)
    assert line[:3] == [sys.executable, "-m", "llama_cpp.server"]
    assert line[line.index("--n_gpu_layers") + 1] == "-1"
    assert line[line.index("--n_ctx") + 1] == said


@pytest.mark.parametrize(
    ("kind", "reason", "cure"),
    [
        ("mlx", "SERVER_NOT_INSTALLED", "pip install mlx-lm"),
        ("llamacpp", "SERVER_NOT_INSTALLED", "llama-cpp-python"),
        ("named program", "SERVER_NOT_INSTALLED", "/opt/llama-server is not on PATH"),
        ("no mlx model", "MODEL_NOT_AVAILABLE", "MLX_MODEL_PATH says; get it with"),
        ("no gguf file", "MODEL_NOT_AVAILABLE", "LLAMACPP_MODEL_PATH says; get it with"),
        ("not a gguf file", "MODEL_NOT_AVAILABLE", "is no GGUF file"),
    ],
)
def test_what_is_missing_is_said_with_its_cure(
    tmp_path: Path, gguf: Path, mlx: Path, kind: str, reason: str, cure: str
) -> None:
    text = tmp_path / "text.gguf"
    text.write_text("no weights")
    commands: dict[str, Command] = {
        "mlx": MlxCommand(mlx, "tiny", **has()),
        "llamacpp": LlamaCppCommand(gguf, "tiny", **has()),
        "named program": LlamaCppCommand(gguf, "tiny", program="/opt/llama-server", **has("llama_cpp")),
        "no mlx model": MlxCommand(tmp_path, "tiny", **has("mlx_lm")),
        "no gguf file": LlamaCppCommand(tmp_path / "gone", "tiny", **has("llama_cpp")),
        "not a gguf file": LlamaCppCommand(text, "tiny", **has("llama_cpp")),
    }
    with pytest.raises(MissingError, match=cure) as caught:
        commands[kind].line(5000)
    assert caught.value.reason == reason
    assert str(tmp_path) not in str(caught.value)


def test_a_server_inherits_no_secret() -> None:
    ours = {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "KALA_INFERENCE_SPOOL_KEY_FILE": "x",
        "OPENAI_API_KEY": "x",
        "HF_TOKEN": "x",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "GOOGLE_APPLICATION_CREDENTIALS": "x",
        "DATABASE_URL": "x",
        "PGPASSWORD": "x",
    }
    assert environment(ours, "k") == {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "LLAMA_API_KEY": "k",
        "HF_HUB_OFFLINE": "1",
    }
