"""How bubblewrap is started: what is always there, and what is never made beneath a place that code may write to."""

from __future__ import annotations

import pytest

from services.tools.sandbox.bubblewrap.plan import planner
from services.tools.sandbox.launcher.plan import Shape
from services.tools.sandbox.model import Language

DISK = 12_345_678


def words(shape: Shape) -> tuple[str, ...]:
    return planner({"etc": "/state/etc"})(shape).argv


@pytest.mark.parametrize("language", list(Language))
@pytest.mark.parametrize("host", [None, "/home/me/project"])
def test_every_control_is_asked_for(language: Language, host: str | None) -> None:
    argv = words(Shape(language, DISK, host))
    for word in (
        *("--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"),
        *("--clearenv", "--seccomp", "--proc", "--remount-ro"),
    ):
        assert word in argv
    assert argv[argv.index("--cap-drop") + 1] == "ALL"
    assert "--share-net" not in argv
    assert "--bind" not in argv


def test_the_workspace_is_the_last_mount_and_sized() -> None:
    argv = words(Shape(Language.PYTHON, DISK))
    inside = argv[: argv.index("--")]
    assert inside[-6:] == ("--size", str(DISK), "--tmpfs", "/workspace", "--chdir", "/workspace")
    assert inside.index("--remount-ro") < inside.index("--size")


def test_a_host_directory_is_shown_read_only_below_the_fresh_workspace() -> None:
    argv = words(Shape(Language.PYTHON, DISK, "/home/me/project"))
    inside = argv[: argv.index("--")]
    assert inside[-5:] == ("--ro-bind", "/home/me/project", "/workspace/host", "--chdir", "/workspace/host")


def test_nothing_of_the_host_is_shown_but_programs_and_our_own_etc() -> None:
    argv = words(Shape(Language.PYTHON, DISK))
    shown = {argv[index + 1] for index, word in enumerate(argv) if word == "--ro-bind"}
    assert shown <= {"/usr/bin", "/usr/lib", "/usr/lib64", "/state/etc"}
    devices = {argv[index + 1] for index, word in enumerate(argv) if word == "--dev-bind"}
    assert devices == {"/dev/null", "/dev/zero", "/dev/urandom"}


def test_the_filter_of_system_calls_travels_by_descriptor() -> None:
    plan = planner({"etc": "/state/etc"})(Shape(Language.PYTHON, DISK))
    number = int(plan.argv[plan.argv.index("--seccomp") + 1])
    assert len(plan.data[number]) > 0
    # Instructions of eight bytes: linux/filter.h.
    assert len(plan.data[number]) % 8 == 0
    assert plan.info_descriptor == int(plan.argv[plan.argv.index("--info-fd") + 1])
