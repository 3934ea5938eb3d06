"""How runsc is planned: which release may be chosen, what the code sees, and that the stubs still fit their changes."""

from __future__ import annotations

import importlib
import json

import pytest

from services.tools.sandbox.launcher.plan import Shape
from services.tools.sandbox.model import Language
from services.tools.sandbox.runsc.plan import bundle, planner
from services.tools.sandbox.runsc.tier import caution, platform_for
from services.tools.sandbox.stubs import command

guard = importlib.import_module("services.tools.sandbox.runsc.guard")


@pytest.mark.parametrize(
    ("found", "platform"),
    [
        ("runsc 0.0~20221219.0", "ptrace"),
        ("runsc release-20231204.0", "systrap"),
        ("runsc release-20260810.0", "systrap"),
        ("runsc unknown", "ptrace"),
    ],
)
def test_an_old_release_is_used_only_where_it_is_named(found: str, platform: str) -> None:
    assert platform_for(found) == platform
    assert bool(caution(found)) == (platform == "ptrace")
    assert caution("") == ""


@pytest.mark.parametrize("language", list(Language))
def test_every_stub_reads_its_code_from_a_file_inside_gvisor(language: Language) -> None:
    told = {"stub": list(command(language)), "language": language.value}
    changed = guard.changed(told)
    assert len(changed) == len(told["stub"])
    assert "/job/code" in " ".join(changed)
    # The guard said that it is ready; said again, it would be the program's own output.
    assert '"+"' not in " ".join(changed)
    assert "printf +" not in " ".join(changed)


def test_a_stub_that_does_not_fit_is_not_run() -> None:
    with pytest.raises(ValueError, match="no single"):
        guard.changed({"stub": ["/usr/bin/python3", "-c", "pass"], "language": "python"})


def test_the_code_writes_to_its_workspace_and_to_temporary_files_only() -> None:
    writable = [
        mount["destination"]
        for mount in bundle(Shape(Language.PYTHON, 1))["mounts"]
        if "rw" in mount.get("options", ())
    ]
    assert writable == ["/workspace", "/tmp"]


def test_the_code_has_no_capability_and_can_gain_none() -> None:
    process = bundle(Shape(Language.PYTHON, 1))["process"]
    assert process["capabilities"] == {}
    assert process["noNewPrivileges"] is True


def test_a_host_directory_is_read_only_and_the_current_one() -> None:
    shape = Shape(Language.PYTHON, 1, "/srv/project")
    made = bundle(shape)
    assert made["process"]["cwd"] == "/workspace/host"
    assert "ro" in made["mounts"][-1]["options"]
    argv = planner({"etc": "/nonexistent", "platform": "ptrace"})(shape).argv
    at = argv.index("/srv/project")
    assert argv[at - 1] == "--ro-bind"


def test_the_box_has_no_network_and_dies_with_the_launcher() -> None:
    plan = planner({"etc": "/nonexistent", "platform": "systrap"})(Shape(Language.SHELL, 4096))
    assert {"--unshare-all", "--die-with-parent", "--new-session", "--clearenv"} <= set(plan.argv)
    # The workspace comes last: nothing is made beneath what code has written to.
    assert plan.argv[plan.argv.index("--") - 2 : plan.argv.index("--")] == ("--tmpfs", "/workspace")
    told = json.loads(plan.argv[-1])
    assert {"--network=none", "--host-uds=none", "--rootless", "--platform=systrap"} <= set(told["runsc"])
