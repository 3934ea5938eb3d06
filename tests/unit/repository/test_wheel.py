"""The wheel holds what a service needs to start alone, and not the development key."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    with zipfile.ZipFile(next(out.glob("*.whl"))) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist() if not name.endswith("/")}


def test_the_wheel_holds_the_whole_signed_constitution(contents: dict[str, bytes]) -> None:
    source = ROOT / "constitution"
    expected = {
        path.relative_to(source).as_posix(): path.read_bytes()
        for path in source.rglob("*")
        if path.is_file() and "dev" not in path.relative_to(source).parts
    }
    prefix = "services/ethics/constitution/"
    assert {
        name.removeprefix(prefix): data for name, data in contents.items() if name.startswith(prefix)
    } == expected


def test_the_wheel_holds_no_private_key(contents: dict[str, bytes]) -> None:
    marker = b"BEGIN PRIVATE " + b"KEY"
    assert [name for name, data in contents.items() if marker in data] == []


def test_the_wheel_holds_types_migrations_and_the_embedded_model(contents: dict[str, bytes]) -> None:
    wanted = ("kala/py.typed", "services/inference/embedded/model/model.safetensors")
    assert [name for name in wanted if name not in contents] == []
    assert any(name.startswith("services/audit/migrations/") for name in contents)


def test_the_wheel_holds_the_rules_for_semgrep(contents: dict[str, bytes]) -> None:
    wanted = {f"services/tools/code/semgrep_rules/{name}.yaml" for name in ("python", "javascript")}
    assert wanted <= set(contents)
