"""A suite of real processes, driven the way a user does: through the `kala` command."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kala.suite.layout import StateLayout
from kala.suite.processes import ProcessId
from kala.suite.record import Condition, SuiteRecord, read_record

UP_SECONDS = 90
HERMETIC = {"KALA_INFERENCE_DISCOVER": "false"}
"""A model server that happens to run on the machine must not answer a test."""

AMBIENT = (
    *("KALA_", "LM_STUDIO", "LMSTUDIO", "USE_LM_STUDIO", "OLLAMA", "MLX_", "LLAMACPP", "LLM_PROVIDER"),
    *("OPENAI_", "ANTHROPIC_"),
)


def environment(**changes: str) -> dict[str, str]:
    """The environment of a test: the machine's own settings for KALA left out."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(AMBIENT)}
    return {**inherited, **HERMETIC, **changes}


def kala(
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout: float = UP_SECONDS,
) -> subprocess.CompletedProcess[str]:
    """Run one `kala` command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "kala.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        input=stdin,
        env=dict(env) if env is not None else environment(),
    )


@dataclass(frozen=True, slots=True)
class Suite:
    """A running suite."""

    layout: StateLayout
    url: str
    key: str
    started: Mapping[str, Any]
    """The JSON that `kala up` printed."""

    @property
    def state(self) -> Path:
        """Its state directory."""
        return self.layout.root

    def record(self) -> SuiteRecord:
        """What runs now."""
        found = read_record(self.layout)
        assert found is not None
        return found

    def process(self, part: str) -> ProcessId:
        """The process of a part, now."""
        found = self.record().parts[part].process
        assert found is not None
        return found

    def is_ready(self, part: str, *, after: ProcessId | None = None) -> bool:
        """Whether a part is ready, in another process than `after`."""
        now = self.record().parts[part]
        return now.condition is Condition.READY and now.process != after


@contextlib.contextmanager
def running_suite(state: Path, **changes: str) -> Iterator[Suite]:
    """Start a suite with `kala up --detach --json`, and stop it with `kala down`."""
    done = kala("up", "--detach", "--json", "--state", state, "--port", "0", env=environment(**changes))
    assert done.returncode == 0, done.stderr
    started = json.loads(done.stdout)
    try:
        yield Suite(StateLayout.at(state), started["gateway_url"], started["api_key"], started)
    finally:
        stopped = kala("down", "--state", state)
        assert stopped.returncode == 0, stopped.stderr
