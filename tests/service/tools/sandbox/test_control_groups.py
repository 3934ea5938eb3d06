"""Runs in control groups that were delegated to the service's user, for real where this machine has version 1 and root."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools_runtime import UNPRIVILEGED_UID, unprivileged_directory, unprivileged_python

pytestmark = pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is not installed")

PROGRAM = """
import asyncio, json, sys
from pathlib import Path
from services.tools.sandbox.bubblewrap.tier import open_bubblewrap
from services.tools.sandbox.client import LauncherSettings
from services.tools.sandbox.model import Ended, Job, Language, Limits

LIMITS = Limits(20, 10, 96 << 20, 8, 256, 32 << 20, 2000, 16 << 20, 1 << 20, 5, 1 << 20)
CASES = {
    "memory": (Language.PYTHON, "b = bytearray(150 << 20)\\nfor i in range(0, len(b), 4096): b[i] = 1"),
    "processes": (Language.PYTHON, "import os, time\\ntry:\\n for _ in range(50):\\n  if os.fork() == 0: time.sleep(9); os._exit(0)\\nfinally: time.sleep(0.5)"),
    "honest": (Language.JAVASCRIPT, "console.log(require('child_process').execSync('echo fine') + '')"),
}

async def main():
    sandbox = await open_bubblewrap(LauncherSettings(Path(sys.argv[1])))
    found = {"controls": sandbox.isolation.controls}
    for name, (language, code) in CASES.items():
        run = await sandbox.start(Job(language, code.encode(), LIMITS))
        async for event in run.events():
            if isinstance(event, Ended):
                found[name] = [event.status.value, event.reason]
        await run.aclose()
    await sandbox.aclose()
    print(json.dumps(found))

asyncio.run(main())
"""

ASK = """
import json
from services.tools.sandbox.cgroup import open_groups
groups = open_groups()
print(json.dumps([groups.version, sorted({str(place) for place in groups._parents.values()})]))
"""


@pytest.fixture
def delegated() -> Iterator[list[Path]]:
    """Give groups of version 1 that belong to the user without rights."""
    if os.geteuid() != 0:
        pytest.skip("only root can delegate a control group")
    # In a process of its own: what tries a limit forks, which a process that has used gRPC must not.
    asked = subprocess.run(
        [sys.executable, "-c", ASK], capture_output=True, text=True, check=False, timeout=60
    )
    if asked.returncode:
        pytest.skip(f"this machine has none to delegate: {asked.stderr.strip().splitlines()[-1]}")
    version, parents = json.loads(asked.stdout)
    if version != 1:
        pytest.skip("written for version 1")
    places = [Path(parent) / f"kala-test-{os.getpid()}" for parent in parents]
    for place in places:
        place.mkdir()
        for path in (place, *place.iterdir()):
            os.chown(path, UNPRIVILEGED_UID, UNPRIVILEGED_UID)
    yield places
    for place in places:
        for left in [each for each in place.iterdir() if each.is_dir()]:
            remove(left)
        remove(place)


def remove(group: Path) -> None:
    """Remove a group; the kernel lets go of one a moment after its last process died."""
    for _ in range(100):
        try:
            group.rmdir()
        except OSError:
            time.sleep(0.05)
        else:
            return
    group.rmdir()


def test_a_run_is_bounded_by_the_groups_that_were_delegated(delegated: list[Path]) -> None:
    join = "".join(f"echo $$ > {place}/cgroup.procs; " for place in delegated)
    with unprivileged_directory() as state:
        done = subprocess.run(
            ["/bin/bash", "-c", f'{join} exec "$@"', "-", *unprivileged_python(), "-c", PROGRAM, str(state)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "limits.cgroup" in found["controls"]
    assert found["honest"][0] == "ok"
    assert found["memory"][0] == "memory"
    assert found["processes"][0] == "processes"
    for place in delegated:
        assert [entry for entry in place.iterdir() if entry.is_dir()] == []
