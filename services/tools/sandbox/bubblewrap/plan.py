"""How bubblewrap is started: namespaces, a seccomp filter, and one sized tmpfs that a run may write to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from services.tools.sandbox.launcher.plan import FIRST_DATA_DESCRIPTOR, Planner, Shape, SpawnPlan
from services.tools.sandbox.model import Language
from services.tools.sandbox.seccomp.filter import compile_filter
from services.tools.sandbox.stubs import CODE_DESCRIPTOR, command

BUBBLEWRAP: Final = "/usr/bin/bwrap"
CONTROLS: Final = (
    "capabilities.none",
    "cgroupns",
    "die_with_parent",
    "fs.read_only",
    "fs.tmpfs_sized",
    "ipcns",
    "limits.rlimit",
    "limits.watchdog",
    "net.none",
    "no_new_privileges",
    "pidns",
    "seccomp",
    "userns",
    "userns.nested_none",
    "utsns",
)
# Where temporary files go: a file system of its own, so that the workspace begins empty.
SCRATCH: Final = "/tmp"  # noqa: S108 - the sandbox's own
_SECCOMP: Final = FIRST_DATA_DESCRIPTOR
_INFO: Final = FIRST_DATA_DESCRIPTOR + 1
_NAMESPACES: Final = (
    *("--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"),
    *("--cap-drop", "ALL", "--hostname", "sandbox", "--clearenv"),
)
_VARIABLES: Final = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/workspace",
    "LANG": "C.UTF-8",
    "TMPDIR": SCRATCH,
}
# Each mount costs time at every start: few, and links where a link is enough.
_READ_ONLY: Final = ("/usr/bin", "/usr/lib", "/usr/lib64")
_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/urandom")
_FEW_LINKS: Final = 4
_LINKS: Final = {
    "/bin": "usr/bin",
    "/lib": "usr/lib",
    "/lib64": "usr/lib64",
    "/dev/random": "urandom",
    "/dev/shm": SCRATCH,  # noqa: S108 - the sandbox's own
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
    # The name that bash gives a script in its messages.
    "/main.sh": f"/proc/self/fd/{CODE_DESCRIPTOR}",
}


def planner(options: Mapping[str, str]) -> Planner:
    """Give what plans a sandbox; `etc` in the options is the directory shown as /etc."""
    seccomp = compile_filter()
    fixed = _fixed(options["etc"])

    def plan(shape: Shape) -> SpawnPlan:
        return SpawnPlan(
            argv=(*fixed, *_of_language(shape.language), *_workspace(shape), "--", *command(shape.language)),
            data={_SECCOMP: seccomp},
            info_descriptor=_INFO,
            scratch=(SCRATCH,),
        )

    return plan


def _fixed(etc: str) -> tuple[str, ...]:
    words = [BUBBLEWRAP, *_NAMESPACES, "--seccomp", str(_SECCOMP), "--info-fd", str(_INFO)]
    for name, value in _VARIABLES.items():
        words += ["--setenv", name, value]
    for directory in filter(Path.is_dir, map(Path, _READ_ONLY)):
        words += _shown(directory)
    words += ["--ro-bind", etc, "/etc", "--proc", "/proc"]
    for path in _DEVICES:
        words += ["--dev-bind", path, path]
    for path, target in _LINKS.items():
        words += ["--symlink", target, path]
    return tuple(words)


def _shown(directory: Path) -> list[str]:
    """Show a system directory read-only: one of links only, as the 64-bit one often is, by its links."""
    entries = sorted(directory.iterdir())
    if len(entries) > _FEW_LINKS or not all(entry.is_symlink() for entry in entries):
        return ["--ro-bind", str(directory), str(directory)]
    return [word for entry in entries for word in ("--symlink", str(entry.readlink()), str(entry))]


def _of_language(language: Language) -> tuple[str, ...]:
    # Each arena of its allocator reserves address space, which is limited for Python. Its stub takes the variable away.
    return ("--setenv", "MALLOC_ARENA_MAX", "2") if language is Language.PYTHON else ()


def _workspace(shape: Shape) -> tuple[str, ...]:
    """Mount the workspace last; nothing is ever made beneath what code has written to."""
    words = ["--dir", SCRATCH, "--dir", "/workspace", "--remount-ro", "/"]
    for path in (SCRATCH, "/workspace"):
        words += ["--size", str(shape.disk_bytes), "--tmpfs", path]
    if shape.host_directory is None:
        return (*words, "--chdir", "/workspace")
    return (*words, "--ro-bind", shape.host_directory, "/workspace/host", "--chdir", "/workspace/host")
