"""Resolves every extra of pyproject.toml, and programs in environments of their own, to versions in locks/<name>.txt.

The files carry no index, host or path, and omit torch with what only torch needs: set-up installs torch first.
Usage: python scripts/lock.py [EXTRA ...]
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parent.parent
# What the service images and the two set-ups install.
LOCKED_EXTRAS: Final = (
    "audit",
    "ethics",
    "evaluation",
    "gateway",
    "inference",
    "inference-pythia",
    "inference-quantized",
    "tools",
    "trainer",
    "trainer-worker",
    "trainer-ray",
    "trainer-mlflow",
    "suite",
    "examples",
    "dev",
)
# Programs in environments of their own: what they need may contradict an extra.
PROGRAMS: Final = {
    "semgrep": ["semgrep==1.182.0"],
    # Other people's clients of OpenAI's API, by the openai package that they build on; the tests drive them unmodified.
    "clients-openai2": ["instructor==1.17.0", "litellm[mcp]==1.106.2", "openai>=2,<3"],
    "clients-openai3": [
        "langchain-openai==1.7.3",
        "openai-agents==0.24.0",
        "openai>=3,<4",
        "pydantic-ai-slim[openai]==2.68.0",
    ],
}
OMITTED: Final = frozenset({"torch", "triton", "kala-suite"})
OMITTED_PREFIXES: Final = ("nvidia-", "cuda-")
TORCH: Final = "torch==2.13.0"


def requirements(extra: str, project: dict[str, Any]) -> list[str]:
    """What an extra asks for, the extras it builds on and the base dependencies included."""
    wanted: list[str] = list(project["dependencies"])
    for line in project["optional-dependencies"][extra]:
        inner = re.fullmatch(r"kala-suite\[(.+)]", line)
        if inner is None:
            wanted.append(line)
        else:
            wanted += [item for name in inner[1].split(",") for item in requirements(name, project)]
    return sorted(set(wanted))


def resolve(wanted: list[str]) -> dict[str, str]:
    """Asks pip what it would install: canonical name -> version."""
    with tempfile.TemporaryDirectory() as folder:
        report, constraints = Path(folder) / "report.json", Path(folder) / "constraints.txt"
        constraints.write_text(TORCH + "\n")
        subprocess.run(
            [
                sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
                "--report", str(report), "-c", str(constraints), *wanted,
            ],
            check=True,
        )  # fmt: skip
        installed = json.loads(report.read_text())["install"]
    return {
        item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"] for item in installed
    }


def is_locked(name: str) -> bool:
    """Whether a package belongs in a lock file."""
    return name not in OMITTED and not name.startswith(OMITTED_PREFIXES)


def write_lock(extra: str, project: dict[str, Any]) -> None:
    """Writes one lock file; a platform's own wheels carry their marker."""
    lines = [f"# Versions of extra {extra!r}, by scripts/lock.py. torch is installed before it."]
    if extra in PROGRAMS:
        lines = [f"# Versions of the program {extra!r}, by scripts/lock.py."]
    wanted = PROGRAMS.get(extra) or requirements(extra, project)
    for name, version in sorted(resolve(wanted).items()):
        if is_locked(name):
            marker = "; sys_platform == 'linux'" if name == "mlx-cpu" else ""
            lines.append(f"{name}=={version}{marker}")
    (ROOT / "locks" / f"{extra}.txt").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Command line."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = project["optional-dependencies"]
    for extra in sys.argv[1:] or (*LOCKED_EXTRAS, *PROGRAMS):
        if extra not in known and extra not in PROGRAMS:
            sys.exit(f"{extra!r} is no extra of pyproject.toml; there are {', '.join((*known, *PROGRAMS))}")
        write_lock(extra, project)
        print(f"locks/{extra}.txt")


if __name__ == "__main__":
    main()
