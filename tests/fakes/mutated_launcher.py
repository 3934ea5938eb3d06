"""A launcher with controls taken away: shows that the self-test and the escape suite notice when one is missing.

Started in place of the interpreter: `mutated_launcher.py CONTROL[,CONTROL] -B -m services.tools.sandbox.launcher …`.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import services.tools.sandbox.launcher.__main__ as launcher
from services.tools.sandbox.bubblewrap import plan as bubblewrap
from services.tools.sandbox.launcher import limits
from services.tools.sandbox.launcher.plan import SpawnPlan
from services.tools.sandbox.launcher.slot import Slot

APART = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
Words = list[str]


def without_namespace(kind: str) -> Callable[[Words], Words]:
    def change(words: Words) -> Words:
        at = words.index("--unshare-all")
        words = words[:at] + [word for word in APART if word != f"--unshare-{kind}"] + words[at + 1 :]
        if kind == "pid":
            # A private /proc needs a PID namespace of its own.
            at = words.index("--proc")
            words[at : at + 2] = ["--ro-bind", "/proc", "/proc"]
        if kind == "uts":
            at = words.index("--hostname")
            del words[at : at + 2]
        return words

    return change


def without(*taken: str, arguments: int = 0) -> Callable[[Words], Words]:
    def change(words: Words) -> Words:
        for name in taken:
            while name in words:
                at = words.index(name)
                del words[at : at + 1 + arguments]
        return words

    return change


def with_host_temporary(words: Words) -> Words:
    """Show the host's temporary files in place of an empty directory."""
    at = words.index("--tmpfs")
    return [*words[: at - 2], "--bind", "/tmp", "/tmp", *words[at + 2 :]]


def with_kept_workspace(words: Words) -> Words:
    """Give every run the same directory."""
    Path("/tmp/kala-kept").mkdir(mode=0o777, exist_ok=True)
    at = len(words) - 1 - words[::-1].index("--tmpfs")
    return [*words[: at - 2], "--bind", "/tmp/kala-kept", "/workspace", *words[at + 2 :]]


ARGV: dict[str, Callable[[Words], Words]] = {
    "netns": without_namespace("net"),
    "pidns": without_namespace("pid"),
    "ipcns": without_namespace("ipc"),
    "utsns": without_namespace("uts"),
    "seccomp": without("--seccomp", arguments=1),
    "nested": without("--disable-userns"),
    "tmpfs": without("--size", arguments=1),
    "private_files": with_host_temporary,
    "fresh_workspace": with_kept_workspace,
    "clearenv": without("--clearenv"),
}
LIMITS = {
    "nproc": resource.RLIMIT_NPROC,
    "fsize": resource.RLIMIT_FSIZE,
    "nofile": resource.RLIMIT_NOFILE,
    "core": resource.RLIMIT_CORE,
    "memlock": resource.RLIMIT_MEMLOCK,
}


def changed_plan(plan: SpawnPlan, taken: set[str]) -> SpawnPlan:
    at = plan.argv.index("--")
    words = list(plan.argv[:at])
    for name in taken & set(ARGV):
        words = ARGV[name](words)
    plan = dataclasses.replace(plan, argv=(*words, *plan.argv[at:]))
    if "clearenv" in taken:
        plan = dataclasses.replace(plan, environment=dict(os.environ) | {"KALA_SERVICE_SECRET": "x"})
    if "private_files" in taken:
        # What the host's directory holds is not the run's.
        plan = dataclasses.replace(plan, scratch=())
    if "descriptors" in taken:
        plan = dataclasses.replace(plan, data={**plan.data, 9: b"a secret of the service"})
    return plan


def main() -> int:
    taken = set(sys.argv[1].split(","))
    original = bubblewrap.planner

    def planner(options):
        plan = original(options)
        return lambda shape: changed_plan(plan(shape), taken)

    bubblewrap.planner = planner
    spared = {kind for name, kind in LIMITS.items() if name in taken}
    really = resource.prlimit

    def prlimit(pid, kind, values=None):
        return really(pid, kind) if values is None or kind in spared else really(pid, kind, values)

    limits.resource = type("resource", (), {**vars(resource), "prlimit": staticmethod(prlimit)})
    if "watchdog" in taken:
        Slot.watch = lambda self: None
    unknown = taken - set(ARGV) - set(LIMITS) - {"watchdog", "descriptors"}
    if unknown:
        raise SystemExit(f"no such control: {unknown}")
    return launcher.main(sys.argv[-2:])


if __name__ == "__main__":
    sys.exit(main())
