import os
import subprocess
from pathlib import Path

import pytest

from services.tools.sandbox.cgroup import CgroupUnavailableError, Groups, open_groups

MIB = 1024 * 1024


@pytest.fixture
def groups() -> Groups:
    """Give the real ones of this machine, where it lets this process make some."""
    try:
        return open_groups()
    except CgroupUnavailableError as error:
        pytest.skip(f"this machine delegates none: {error}")


def test_more_memory_than_allowed_ends_a_process(groups: Groups) -> None:
    group = groups.make()
    group.limit(memory_bytes=32 * MIB, processes=8)
    code = (
        "import sys; sys.stdin.read(1); b = bytearray(200 << 20); b[::4096] = b[::4096].replace(b'\\0', b'1')"
    )
    process = subprocess.Popen(["/usr/bin/python3", "-I", "-S", "-c", code], stdin=subprocess.PIPE)
    group.put(process.pid)
    assert not group.killed_for_memory
    process.communicate(b"x")
    assert process.returncode == -9
    assert group.killed_for_memory
    groups.leave(group)


def test_a_process_too_many_is_refused(groups: Groups) -> None:
    group = groups.make()
    group.limit(memory_bytes=64 * MIB, processes=3)
    code = "read go; sleep 5 & sleep 5 & sleep 5 & sleep 5 & wait"
    process = subprocess.Popen(
        ["/bin/bash", "-c", code], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    group.put(process.pid)
    assert not group.refused_a_process
    assert process.stdin is not None
    process.stdin.write(b"x\n")
    process.stdin.flush()
    while not group.refused_a_process:
        assert process.poll() is None
    os.killpg(process.pid, 9)
    process.communicate()
    groups.leave(group)


def test_a_group_is_gone_when_its_last_process_is(groups: Groups) -> None:
    before = groups.make()
    process = subprocess.Popen(["/bin/sleep", "60"])
    before.put(process.pid)
    assert not before.remove()
    groups.leave(before)
    process.kill()
    process.wait()
    groups.leave(groups.make())
    assert before.remove()


def second_version(
    place: Path, *, controllers: str = "cpu memory pids", enabled: str = "memory pids"
) -> tuple[Path, Path]:
    """Write what /proc says, and a directory that looks like a delegated group of v2."""
    (place / "unified" / "mine").mkdir(parents=True)
    (place / "unified" / "mine" / "cgroup.controllers").write_text(controllers)
    (place / "unified" / "mine" / "cgroup.subtree_control").write_text(enabled)
    own, mounts = place / "own", place / "mountinfo"
    own.write_text("1:name=systemd:/\n0::/slice/mine\n")
    mounts.write_text(
        "21 1 8:1 / / rw - ext4 /dev/sda rw\n"
        f"22 21 0:30 /slice {place}/unified rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
    )
    return own, mounts


def test_limits_of_the_second_version_are_written_where_it_reads_them(tmp_path: Path) -> None:
    own, mounts = second_version(tmp_path)
    groups = open_groups(own=own, mounts=mounts, probe=False)
    assert groups.version == 2
    group = groups.make()
    (made,) = [entry for entry in (tmp_path / "unified" / "mine").iterdir() if entry.is_dir()]
    (made / "memory.swap.max").write_text("max")
    group.limit(memory_bytes=5 * MIB, processes=7)
    group.put(4321)
    read = {
        name: (made / name).read_text()
        for name in ("memory.max", "memory.swap.max", "pids.max", "cgroup.procs")
    }
    assert read == {
        "memory.max": str(5 * MIB),
        "memory.swap.max": "0",
        "pids.max": "7",
        "cgroup.procs": "4321",
    }
    (made / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    (made / "pids.events").write_text("max 0\n")
    assert group.killed_for_memory
    assert not group.refused_a_process


def test_the_service_moves_aside_before_its_children_get_controllers(tmp_path: Path) -> None:
    own, mounts = second_version(tmp_path, enabled="")
    open_groups(own=own, mounts=mounts, probe=False)
    mine = tmp_path / "unified" / "mine"
    assert (mine / "kala-service" / "cgroup.procs").read_text() == str(os.getpid())
    assert (mine / "cgroup.subtree_control").read_text() == "+memory +pids"


def test_a_missing_controller_is_told_with_the_cure(tmp_path: Path) -> None:
    own, mounts = second_version(tmp_path, controllers="cpu")
    with pytest.raises(CgroupUnavailableError, match="delegate them to the service"):
        open_groups(own=own, mounts=mounts, probe=False)


def test_limits_that_do_not_bind_are_not_believed(tmp_path: Path) -> None:
    own, mounts = second_version(tmp_path)
    with pytest.raises(CgroupUnavailableError, match="the limit on processes does not bind"):
        open_groups(own=own, mounts=mounts)


def test_a_place_where_nothing_may_be_made_is_told(tmp_path: Path) -> None:
    own, mounts = second_version(tmp_path)
    (tmp_path / "unified" / "mine" / "cgroup.controllers").unlink()
    with pytest.raises(CgroupUnavailableError, match="Delegate=yes"):
        open_groups(own=own, mounts=mounts, probe=False)
