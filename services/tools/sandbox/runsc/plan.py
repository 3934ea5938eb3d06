"""How runsc is started: inside a box of bubblewrap's, which gives it a sized workspace and ends everything at once.

The box waits with a small program, the guard. When the code comes, the guard writes an OCI bundle with the limits that the
launcher put on it, and runsc runs the language's own stub with the code in a kernel of its own. The box has no network and
sees no file of the host but the interpreters; it has no seccomp filter and may nest namespaces, since runsc needs both: what
the code can call is gVisor's own kernel, behind gVisor's own filter.
"""

from __future__ import annotations

import errno
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from services.tools.sandbox.bubblewrap.plan import BUBBLEWRAP
from services.tools.sandbox.launcher.plan import FIRST_DATA_DESCRIPTOR, Planner, Shape, SpawnPlan
from services.tools.sandbox.stubs import command

# An OCI bundle's configuration is JSON.
Json = dict[str, Any]

RUNSC: Final = "/usr/bin/runsc"
CONTROLS: Final = (
    "capabilities.none",
    "die_with_parent",
    "fs.read_only",
    "fs.tmpfs_sized",
    "limits.rlimit",
    "limits.watchdog",
    "net.none",
    "no_new_privileges",
    "own_kernel",
    "pidns",
    "seccomp",
    "userns",
)
# What gVisor's kernel and its file server hold beside the code's memory.
KERNEL_BYTES: Final = 160 * 1024 * 1024
_INFO: Final = FIRST_DATA_DESCRIPTOR
_GUARD: Final = Path(__file__).with_name("guard.py")
_ROOT: Final = "/rootfs"
# Shown to the code as /tmp: runsc needs the box's own for itself.
_SCRATCH: Final = "/scratch"
_TEMPORARY: Final = "/tmp"  # noqa: S108 - the box's and the sandbox's own
_EMPTY: Final = "/empty"
_STATE_BYTES: Final = 16 * 1024 * 1024
_READ_ONLY: Final = ("/usr/bin", "/usr/lib", "/usr/lib64")
_LINKS: Final = {"/bin": "usr/bin", "/lib": "usr/lib", "/lib64": "usr/lib64"}
_GUEST_VARIABLES: Final = ("PATH=/usr/bin:/bin", "HOME=/workspace", "LANG=C.UTF-8", f"TMPDIR={_TEMPORARY}")
_ARCHITECTURES: Final = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}
# Refused inside gVisor too: none of it is of use to a program that computes.
_DENIED: Final = (
    *("add_key", "bpf", "chroot", "delete_module", "finit_module", "fsopen", "init_module", "io_uring_setup"),
    *("kexec_load", "keyctl", "mount", "move_mount", "name_to_handle_at", "open_by_handle_at", "open_tree"),
    *("perf_event_open", "pivot_root", "process_vm_readv", "process_vm_writev", "ptrace", "request_key"),
    *("setdomainname", "sethostname", "setns", "syslog", "umount2", "unshare", "userfaultfd"),
    # The code is user 0 of gVisor's kernel; it may not act on it.
    *("chown", "fchown", "fchownat", "lchown", "setfsgid", "setfsuid", "setgid", "setgroups", "setpriority"),
    *("setregid", "setresgid", "setresuid", "setreuid", "setuid"),
)
_AF_UNIX: Final = 1
# linux/sched.h: mount, cgroup, UTS, IPC, user, PID, network.
_NEW_NAMESPACES: Final = (
    *(0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000),
    *(0x1000_0000, 0x2000_0000, 0x4000_0000),
)
_SET_ID: Final = (0o4000, 0o2000)


def planner(options: Mapping[str, str]) -> Planner:
    """Give what plans a sandbox; `etc` is the directory shown as /etc, `platform` the one that runsc uses."""

    def plan(shape: Shape) -> SpawnPlan:
        guard = ("/usr/bin/python3", "-I", "-S", "-c", _GUARD.read_text(encoding="utf-8"))
        told = json.dumps(
            {
                "runsc": runsc_command(options["platform"]),
                "bundle": bundle(shape),
                "stub": list(command(shape.language)),
                "language": shape.language.value,
            }
        )
        return SpawnPlan(
            argv=(*_box(options["etc"], shape), "--", *guard, told),
            info_descriptor=_INFO,
            scratch=(_SCRATCH,),
            counts_tasks=False,
            overhead_bytes=KERNEL_BYTES,
        )

    return plan


def _box(etc: str, shape: Shape) -> tuple[str, ...]:
    words = [
        *(BUBBLEWRAP, "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session"),
        *("--cap-drop", "ALL", "--hostname", "sandbox", "--clearenv", "--info-fd", str(_INFO)),
        *("--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/run"),
    ]
    for path in _READ_ONLY:
        if Path(path).is_dir():
            words += ["--ro-bind", path, path, "--dir", f"{_ROOT}{path}"]
    for path, target in _LINKS.items():
        words += ["--symlink", target, path, "--symlink", target, f"{_ROOT}{path}"]
    words += ["--symlink", "job/main.sh", f"{_ROOT}/main.sh"]
    for name in ("etc", "proc", "dev/shm", "sys", "tmp", "workspace", "job"):
        words += ["--dir", f"{_ROOT}/{name}"]
    words += ["--ro-bind", etc, "/etc", "--proc", "/proc", "--dev", "/dev"]
    for path in (_TEMPORARY, _EMPTY, _SCRATCH, "/workspace"):
        words += ["--dir", path]
    # runsc keeps its state here: small, and out of the code's reach.
    words += ["--size", str(_STATE_BYTES), "--tmpfs", "/run", "--remount-ro", "/"]
    for path in (_SCRATCH, "/workspace"):
        words += ["--size", str(shape.disk_bytes), "--tmpfs", path]
    if shape.host_directory is not None:
        words += ["--ro-bind", shape.host_directory, "/workspace/host"]
    return tuple(words)


def runsc_command(platform_name: str) -> list[str]:
    """Give runsc's own part of the command line."""
    return [
        *(RUNSC, "--rootless", f"--platform={platform_name}", "--network=none", "--ignore-cgroups"),
        *("--overlay2=none", "--host-uds=none", "--oci-seccomp", "--root=/run/state"),
        *("run", "--bundle", "/run/bundle", "sandbox"),
    ]


def bundle(shape: Shape) -> Json:
    """Give the OCI configuration; the guard adds the limits and the arguments.

    The code's user is 0 without any capability: rootless runsc maps only the one user, and this 0 is a number inside gVisor.
    """
    here = "/workspace" if shape.host_directory is None else "/workspace/host"
    mounts: list[Json] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        *(_bind(path, path) for path in (*_READ_ONLY, "/etc") if Path(path).is_dir()),
        _bind("/run/job", "/job"),
        _bind("/workspace", "/workspace", writable=True),
        _bind(_SCRATCH, _TEMPORARY, writable=True),
        # What gVisor itself would show there.
        *(_bind(_EMPTY, path) for path in ("/dev/shm", "/sys")),  # noqa: S108 - the sandbox's own
    ]
    if shape.host_directory is not None:
        mounts.append(_bind("/workspace/host", "/workspace/host"))
    return {
        "ociVersion": "1.0.2",
        "hostname": "sandbox",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "env": list(_GUEST_VARIABLES),
            "cwd": here,
            "capabilities": {},
            "noNewPrivileges": True,
        },
        # The root is read-only already in the box, by a mount that runsc could not make so itself.
        "root": {"path": _ROOT, "readonly": False},
        "mounts": mounts,
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
            "seccomp": _seccomp(),
        },
    }


def _bind(source: str, destination: str, *, writable: bool = False) -> Json:
    options = ["bind", "rw" if writable else "ro", "nosuid", "nodev"]
    return {"destination": destination, "type": "bind", "source": source, "options": options}


def _seccomp() -> Json:
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": [_ARCHITECTURES[platform.machine()]],
        "syscalls": [
            _refused(*_DENIED),
            _refused("socket", "socketpair", where={"index": 0, "value": _AF_UNIX, "op": "SCMP_CMP_NE"}),
            *(_refused("clone", where=_has(0, flag)) for flag in _NEW_NAMESPACES),
            *(_refused("chmod", "fchmod", where=_has(1, bit)) for bit in _SET_ID),
            *(_refused("fchmodat", where=_has(2, bit)) for bit in _SET_ID),
        ],
    }


def _refused(*names: str, where: Json | None = None) -> Json:
    # gVisor answers EPERM whatever is asked for here. clone3, which must be ENOSYS to be avoided, is therefore left to it.
    rule: Json = {"names": list(names), "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM}
    return rule if where is None else rule | {"args": [where]}


def _has(index: int, bits: int) -> Json:
    return {"index": index, "value": bits, "valueTwo": bits, "op": "SCMP_CMP_MASKED_EQ"}
