"""How a program of this tier is started: two fresh directories of the host, and the keeper that confines it to them."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from services.tools.sandbox.landlock.confinement import Confinement, Limit, filter_for_this_machine
from services.tools.sandbox.launcher.plan import (
    FIRST_DATA_DESCRIPTOR,
    Containment,
    Planner,
    Shape,
    SpawnPlan,
)
from services.tools.sandbox.model import Language
from services.tools.sandbox.stubs import CODE_DESCRIPTOR, command

CONTROLS: Final = (
    "landlock.fs",
    "landlock.net_tcp",
    "landlock.scope_abstract_unix",
    "landlock.scope_signal",
    "limits.rlimit",
    "limits.watchdog",
    "net.none",
    "no_new_privileges",
    "seccomp",
    "subreaper",
)
# A sandbox's directories, in one of its own: what a run may write to, and its temporary files.
WORKSPACE: Final = "workspace"
SCRATCH: Final = "tmp"
_INFO: Final = FIRST_DATA_DESCRIPTOR
_KEEPER: Final = Path(__file__).parent / "program.py"
# Where a file tree of its own has the script under a shorter name.
_SCRIPT: Final = "/main.sh"


def planner(options: Mapping[str, str]) -> Planner:
    """Give what plans a sandbox; `directory` in the options is where the workspaces are made."""
    seccomp = filter_for_this_machine()
    root = options["directory"]

    def plan(shape: Shape) -> SpawnPlan:
        place = Path(root, secrets.token_hex(16))
        for path in (place, place / WORKSPACE, place / SCRATCH):
            path.mkdir(mode=0o700)
        workspace, scratch = str(place / WORKSPACE), str(place / SCRATCH)
        if shape.host_directory is not None:
            (place / WORKSPACE / "host").symlink_to(shape.host_directory)
        confinement = Confinement(
            arguments=_command(shape.language),
            environment=_environment(shape.language, workspace, scratch),
            workspace=workspace,
            scratch=scratch,
            limits=(Limit("CORE", 0),),
            seccomp=seccomp,
            readable=() if shape.host_directory is None else (shape.host_directory,),
            directory=shape.host_directory,
            descriptors=(CODE_DESCRIPTOR,),
        )
        keeper = (sys.executable, "-I", "-S", "-B", str(_KEEPER), str(os.getpid()), str(_INFO))
        return SpawnPlan(
            argv=(*keeper, confinement.to_json()),
            info_descriptor=_INFO,
            containment=Containment.SUBTREE,
            workspace=workspace,
            scratch=(scratch,),
            host_directory=str(place),
        )

    return plan


def _command(language: Language) -> tuple[str, ...]:
    return tuple(
        word.replace(_SCRIPT, f"/proc/self/fd/{CODE_DESCRIPTOR}") if language is Language.SHELL else word
        for word in command(language)
    )


def _environment(language: Language, workspace: str, scratch: str) -> tuple[tuple[str, str], ...]:
    variables = {"PATH": "/usr/bin:/bin", "HOME": workspace, "LANG": "C.UTF-8", "TMPDIR": scratch}
    if language is Language.PYTHON:
        # Each arena of its allocator reserves address space, which is limited for Python. Its stub takes the variable away.
        variables["MALLOC_ARENA_MAX"] = "2"
    return tuple(variables.items())
