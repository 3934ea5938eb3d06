"""A work process has its folder to itself and no more memory than it may."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kala.errors import FailedPreconditionError
from services.trainer.work.bounds import hold_folder, holder_of


def test_a_folder_has_one_process_at_a_time(tmp_path: Path) -> None:
    assert holder_of(tmp_path) is None
    with hold_folder(tmp_path):
        assert holder_of(tmp_path) == os.getpid()
        program = (
            "import sys; from pathlib import Path; from services.trainer.work.bounds import hold_folder\n"
            "with hold_folder(Path(sys.argv[1]), wait_seconds=0.1): pass"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)], capture_output=True, check=False, text=True
        )
        assert "another process still works here" in done.stderr
        with pytest.raises(FailedPreconditionError), hold_folder(tmp_path, wait_seconds=0):
            pass
    assert holder_of(tmp_path) is None


def test_memory_beyond_the_bound_is_refused_to_the_process_and_not_taken_from_the_machine(
    tmp_path: Path,
) -> None:
    program = """
from pathlib import Path
from kala.common.v1.clearance_pb2 import Principal
from services.trainer.work.bounds import apply_bounds
from services.trainer.work.order import Order
apply_bounds(Order("train", "x", Path("."), Principal(), 0.0, threads=3, memory_bytes=256 * 2**20))
import os, resource
assert os.environ["OMP_NUM_THREADS"] == "3"
assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
held = bytearray(64 * 2**20)
try:
    bytearray(512 * 2**20)
except MemoryError:
    print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=False, text=True, cwd=tmp_path
    )
    assert done.stdout == "refused\n", done.stderr


def test_a_process_without_an_order_says_what_is_missing(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "services.trainer.work"]
    done = subprocess.run([*run, str(tmp_path)], capture_output=True, check=False, text=True)
    assert done.returncode == 2
    assert "order.json" in done.stderr
    assert "order.json" in (tmp_path / "error.json").read_text()
    assert subprocess.run(run, capture_output=True, check=False).returncode == 64
