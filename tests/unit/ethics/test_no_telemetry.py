"""The classifier's library sends nothing of its own: its maker's telemetry is off, whatever the environment says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = "import services.ethics.classifier.model, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"


@pytest.mark.parametrize("said", [{}, {"ORT_DISABLE_TELEMETRY": "0"}])
def test_the_network_s_library_keeps_no_device_id(tmp_path: Path, said: dict[str, str]) -> None:
    # Without CI, in which it keeps none by itself.
    environ = {name: value for name, value in os.environ.items() if name != "CI"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environ | {"HOME": str(tmp_path)} | said,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "1\n"
    assert list(tmp_path.iterdir()) == []
