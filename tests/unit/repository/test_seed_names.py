"""What RFC-080 promises by name is there under that name."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from kala.adapters import lm_studio

ROOT = Path(__file__).resolve().parents[3]


def test_the_smoke_task_asks_lm_studio_s_health_and_one_question() -> None:
    make = shutil.which("make")
    assert make is not None
    told = subprocess.run(
        [make, "-n", "lm_studio.smoke"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert "kala health lm" in told
    assert "kala chat" in told


@pytest.mark.parametrize("name", ["LM_STUDIO_BASE_URL", "LM_STUDIO_MODEL", "LM_STUDIO_TIMEOUT_SECONDS"])
def test_the_runbook_explains_each_setting_and_each_has_its_function(name: str) -> None:
    assert name in (ROOT / "docs" / "runbooks" / "LM_STUDIO_SETUP.md").read_text()
    assert callable(getattr(lm_studio, f"get_{name.lower().removesuffix('_seconds')}"))
