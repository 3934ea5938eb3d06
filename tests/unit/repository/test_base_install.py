"""What users import needs the base dependencies alone: no service, no gRPC, no protobuf, no pydantic."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
DISTRIBUTION = "kala-suite"
# `kala/<part>/v1` is generated for the services and needs their extra.
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "kala").rglob("*.py")
    if "v1" not in path.parts and path.name != "__main__.py"
)
# Typer brings it along and reads its own arguments with it; what is ours must not rely on that.
TYPERS_OWN = "pydantic"
HIDE_THE_REST = """
import sys
from importlib.machinery import PathFinder

HIDDEN = set({hidden!r})

class BaseFinder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else PathFinder.find_spec(name, path, target)

sys.meta_path = [BaseFinder if finder is PathFinder else finder for finder in sys.meta_path]
"""


def packages_beyond_the_base() -> set[str]:
    """The import names of all that is installed here and that no base dependency requires."""
    wanted = [DISTRIBUTION]
    seen: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        for requirement in importlib.metadata.requires(name) or []:
            text, _, marker = requirement.partition(";")
            required = re.match(r"[A-Za-z0-9._-]+", text)
            if required and "extra" not in marker and is_installed(required.group()):
                wanted.append(normal(required.group()))
    seen.remove(DISTRIBUTION)
    owners = importlib.metadata.packages_distributions()
    ours = {"services", "gateway"}
    return ours | {
        package
        for package, names in owners.items()
        if package != "kala" and not seen & {normal(name) for name in names}
    }


def is_installed(name: str) -> bool:
    return any(True for _ in importlib.metadata.distributions(name=name))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def run_in_base(program: str, *, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    start = HIDE_THE_REST.format(hidden=sorted(packages_beyond_the_base() | {*without}))
    return subprocess.run(
        [sys.executable, "-c", start + program], capture_output=True, text=True, check=False, cwd=ROOT
    )


@pytest.mark.parametrize("module", ["grpc", "google.protobuf", "services.common", "sqlalchemy"])
def test_what_is_beyond_the_base_is_hidden(module: str) -> None:
    assert "No module named" in run_in_base(f"import {module}").stderr


def test_every_module_that_users_import_needs_the_base_alone() -> None:
    program = "import importlib\n" + "".join(f"importlib.import_module({name!r})\n" for name in MODULES)
    done = run_in_base(program, without=(TYPERS_OWN,))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["status"],
        ["chat", "Hi", "--url", "http://127.0.0.1:9", "--key", "k"],
        ["audit", "verify", "--db", "nothing.db"],
        ["ethics", "verify", "--development", "--dir", "constitution"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_command_works_or_says_what_is_wrong(arguments: list[str], tmp_path: Path) -> None:
    program = f"""
import os
os.environ["KALA_STATE"] = {str(tmp_path)!r}
from kala.cli import main
sys.exit(main({arguments!r}))
"""
    done = run_in_base(program)
    assert done.returncode in {0, 1, 2}, done.stderr
    assert "Traceback" not in done.stderr
    assert "No module named" not in done.stdout + done.stderr


def test_a_private_suite_names_the_extra_that_it_needs(tmp_path: Path) -> None:
    program = f"""
from kala.cli import main
sys.exit(main(["up", "--state", {str(tmp_path)!r}]))
"""
    done = run_in_base(program)
    assert done.returncode == 1
    assert "pip install 'kala-suite[suite]'" in done.stderr
