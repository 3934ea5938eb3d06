"""Power: with a control of the default tier taken away, some attack gets through and is noticed.

Controls overlap on purpose, so some are taken away together with the one that stands behind them.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.service.tools.test_escape_suite import check, ours
from tests.tools_runtime import unprivileged_directory, unprivileged_python

FAKES = Path(__file__).parents[3] / "fakes"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.access("/usr/bin/bwrap", os.X_OK), reason="the default tier needs bubblewrap"),
]


def run(program: str, arguments: list[str], taken: str, text: str = "") -> dict[str, Any]:
    prefix = unprivileged_python()
    at = prefix.index("/usr/bin/env") + 1
    with unprivileged_directory() as state:
        done = subprocess.run(
            [
                *prefix[:at],
                f"MUTATION={taken}",
                *prefix[at:],
                str(FAKES / program),
                "bubblewrap",
                str(state),
                *arguments,
            ],
            input=text,
            capture_output=True,
            text=True,
            cwd="/",
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("taken", "probe"),
    [
        ("netns", "network"),
        ("pidns,watchdog", "pid_visibility"),
        ("seccomp", "system_calls"),
        ("seccomp,nested", "user_namespace"),
        ("private_files", "host_file"),
        ("descriptors", "descriptors"),
        ("clearenv", "environment"),
        ("nproc", "fork_limit"),
        ("fsize", "file_size"),
        ("watchdog", "memory"),
        ("watchdog", "timeout"),
        ("watchdog", "inodes"),
        ("watchdog,tmpfs", "disk"),
    ],
)
def test_the_self_test_notices_a_missing_control(taken: str, probe: str) -> None:
    found = run("selftest_program.py", ["runs", probe], taken)
    # The tier itself still works: what fails is the one attack.
    assert found["cases"]["runs"] == [True, "held"]
    assert not found["usable"]
    assert not found["cases"][probe][0], found


def test_the_self_test_notices_a_workspace_that_is_not_fresh() -> None:
    found = run("selftest_program.py", ["freshness"], "fresh_workspace,watchdog")
    assert "left by another run" in found["cases"]["freshness"][1]


@pytest.mark.parametrize(
    ("taken", "case"),
    [
        ("netns", "network.sockets_of_the_host"),
        ("netns,seccomp", "network.loopback_of_the_host"),
        ("netns,seccomp", "network.bash_redirection"),
        ("pidns,watchdog", "signal.to_the_canary"),
        ("private_files", "info.secret_by_names"),
        ("seccomp", "kernel.set_id_files"),
        ("seccomp", "network.every_family"),
        ("nofile", "resource.files_opened_by_children"),
        ("nproc", "resource.threads"),
        ("fsize", "resource.sparse_hole"),
        ("watchdog", "resource.directories"),
        ("clearenv", "info.environment_of_the_service"),
    ],
)
def test_the_suite_notices_a_missing_control(taken: str, case: str) -> None:
    chosen = next(candidate for candidate in ours() if candidate["id"] == case)
    result = run("escape_program.py", [], taken, json.dumps([chosen]))["results"][0]
    with pytest.raises(AssertionError):
        check(chosen, result)
