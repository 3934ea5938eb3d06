"""How each model server is started: its program, arguments and environment, and what is missing for that."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

LOOPBACK: Final = "127.0.0.1"

ALL_LAYERS: Final = 999
"""More layers than any model has; older versions of llama-server know no word for all."""

GGUF_MAGIC: Final = b"GGUF"

GET_IT: Final = "get it with `kala models pull` or scripts/setup_local_models.sh"

_SECRET: Final = re.compile(
    r"KALA_.*|(?:.*_)?(?:KEY|TOKEN|SECRET|(?:[A-Z]*)PASSWORD|PASSWD|CREDENTIALS?|DSN|DATABASE_URL)(?:_.*)?"
)
"""Our own settings, and by their names the secrets of others, such as AWS_ACCESS_KEY_ID."""


class MissingError(Exception):
    """Something that the server needs is not on this machine; `reason` is stable, the text holds the cure."""

    def __init__(self, reason: str, problem: str) -> None:
        super().__init__(problem)
        self.reason = reason


class Command(Protocol):
    """The way to start one server."""

    @property
    def model_name(self) -> str:
        """What the model is called here."""
        ...

    def line(self, port: int) -> list[str]:
        """Give program and arguments to listen at this port of 127.0.0.1; raises MissingError."""
        ...


@dataclass(frozen=True, slots=True)
class MlxCommand:
    """mlx_lm.server with a model of a local directory."""

    model: Path
    model_name: str
    has_module: Callable[[str], bool] = lambda name: importlib.util.find_spec(name) is not None
    which: Callable[[str], str | None] = shutil.which

    def line(self, port: int) -> list[str]:
        """See Command.line."""
        if not (self.model / "config.json").is_file():
            raise MissingError(
                "MODEL_NOT_AVAILABLE",
                f"its model {self.model_name} is not where MLX_MODEL_PATH says; {GET_IT}",
            )
        return [*self._program(), "--model", str(self.model), "--host", LOOPBACK, "--port", str(port)]

    def _program(self) -> list[str]:
        if self.has_module("mlx_lm"):
            return [sys.executable, "-m", "mlx_lm", "server"]
        found = self.which("mlx_lm.server")
        if found is None:
            raise MissingError("SERVER_NOT_INSTALLED", "mlx_lm.server is not installed; `pip install mlx-lm`")
        return [found]


@dataclass(frozen=True, slots=True)
class LlamaCppCommand:
    """llama-server with a GGUF file, or llama-cpp-python's server where only that is installed."""

    model: Path
    model_name: str
    program: str | None = None
    gpu_layers: int = -1
    context_tokens: int | None = None
    has_module: Callable[[str], bool] = lambda name: importlib.util.find_spec(name) is not None
    which: Callable[[str], str | None] = shutil.which

    def line(self, port: int) -> list[str]:
        """See Command.line."""
        if not _is_gguf(self.model):
            raise MissingError(
                "MODEL_NOT_AVAILABLE",
                f"its model {self.model_name} is no GGUF file where LLAMACPP_MODEL_PATH says; {GET_IT}",
            )
        found = self.which(self.program or "llama-server")
        if found is not None:
            return [found, *self._arguments(port)]
        if self.program is None and self.has_module("llama_cpp"):
            return [sys.executable, "-m", "llama_cpp.server", *self._python_arguments(port)]
        raise MissingError(
            "SERVER_NOT_INSTALLED",
            f"{self.program or 'llama-server'} is not on PATH; install llama.cpp, set "
            "KALA_INFERENCE_LLAMACPP_PROGRAM, or `pip install 'llama-cpp-python[server]'`",
        )

    def _arguments(self, port: int) -> list[str]:
        layers = ALL_LAYERS if self.gpu_layers < 0 else self.gpu_layers
        context = [] if self.context_tokens is None else ["--ctx-size", str(self.context_tokens)]
        return [
            *("--model", str(self.model), "--alias", self.model_name),
            *("--host", LOOPBACK, "--port", str(port), "--n-gpu-layers", str(layers)),
            *context,
        ]

    def _python_arguments(self, port: int) -> list[str]:
        return [
            *("--model", str(self.model), "--model_alias", self.model_name),
            *("--host", LOOPBACK, "--port", str(port), "--n_gpu_layers", str(self.gpu_layers)),
            # Its own default is 2048; 0 means the model's.
            *("--n_ctx", str(self.context_tokens or 0)),
        ]


def environment(ours: Mapping[str, str], api_key: str) -> dict[str, str]:
    """Give a server's environment: ours without anything secret, the key to ask it with, and no way to the hub."""
    kept = {name: value for name, value in ours.items() if not _SECRET.fullmatch(name)}
    # A model server is given its model; one that fetched another from the hub would be a surprise.
    return {**kept, "LLAMA_API_KEY": api_key, "HF_HUB_OFFLINE": "1"}


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC
    except OSError:
        return False
