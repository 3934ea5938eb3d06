"""The self-test on the tiers of this machine, as the user without rights that the service runs as."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from services.tools.sandbox.landlock import kernel
from tests.tools_runtime import unprivileged_directory, unprivileged_python

PROGRAM = Path(__file__).parents[3] / "fakes" / "selftest_program.py"


def report(tier: str, *probes: str) -> dict[str, Any]:
    with unprivileged_directory() as state:
        done = subprocess.run(
            [*unprivileged_python(), str(PROGRAM), tier, str(state), *probes],
            capture_output=True,
            text=True,
            cwd="/",
            timeout=240,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not os.access(program, os.X_OK), reason=f"{program} is not installed")


@needs("/usr/bin/bwrap")
def test_bubblewrap_holds_every_probe() -> None:
    found = report("bubblewrap")
    assert found["usable"], found["reason"]
    assert len(found["cases"]) >= 20
    assert found["start_seconds"] > 0


@pytest.mark.skipif(kernel.abi() < kernel.REQUIRED_ABI, reason="the kernel's Landlock is too old")
def test_landlock_holds_every_probe_and_calls_itself_weak() -> None:
    found = report("landlock")
    assert found["usable"], found["reason"]
    assert found["strength"] == 1
    assert len(found["cases"]) >= 20


@needs("/usr/bin/bwrap")
@needs("/usr/bin/runsc")
def test_gvisor_holds_every_probe() -> None:
    found = report("runsc")
    assert found["usable"], found["reason"]
    assert found["cases"]["own_kernel"][0]


def test_a_process_of_root_gets_no_tier() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to be refused")
    prefix = [word for word in unprivileged_python() if word not in {"--reuid", "--regid"}]
    # Everything of the command but the change of user.
    command = prefix[prefix.index("/usr/bin/env") :]
    done = subprocess.run(
        [*command, str(PROGRAM), "bubblewrap", "/nonexistent"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found = json.loads(done.stdout)
    assert not found["usable"]
    assert "uid 0" in found["reason"]
    assert found["cases"] == {}
