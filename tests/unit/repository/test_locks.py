"""Lock files are for everybody: no index, host or path in them, and no torch, which set-up installs first."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LOCKS = sorted((ROOT / "locks").glob("*.txt"))
# In environments of their own.
PROGRAMS = {"semgrep", "clients-openai2", "clients-openai3"}
PIN = re.compile(r"[a-z0-9.-]+==[A-Za-z0-9.!+]+(; sys_platform == '(linux|darwin)')?")


def test_every_image_and_set_up_has_a_lock() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {lock.stem for lock in LOCKS} == set(extras) - {"runtime"} | PROGRAMS


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_holds_exact_versions_and_nothing_else(lock: Path) -> None:
    lines = [line for line in lock.read_text().splitlines() if not line.startswith("#")]
    assert lines
    assert [line for line in lines if not PIN.fullmatch(line)] == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_omits_torch_and_local_builds(lock: Path) -> None:
    assert not re.search(r"^(torch|triton|nvidia-|cuda-)", lock.read_text(), re.MULTILINE)
    assert "+" not in lock.read_text()


def test_no_private_key_but_the_development_one_is_in_the_repository() -> None:
    marker = "PRIVATE " + "KEY-----"
    tracked = [
        path for path in ROOT.rglob("*.pem") if ".venv" not in path.parts and "build" not in path.parts
    ]
    tracked += [
        path for path in ROOT.rglob("*.key") if ".venv" not in path.parts and "build" not in path.parts
    ]
    holders = {
        path.relative_to(ROOT).parts[:2] for path in tracked if marker in path.read_text(errors="replace")
    }
    assert holders <= {("constitution", "dev")}
