"""Where the tools service lives: not as root, not among the suite's secrets, and off with a reason where it cannot."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from kala.errors import FailedPreconditionError
from kala.suite import tools_home as home_module
from kala.suite.ambient import Section, section_of_files
from kala.suite.keyring import make_keyring
from kala.suite.layout import StateLayout
from kala.suite.runtime_copy import Runtime
from kala.suite.tools_home import ToolsHome, tools_home

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root hands things over to another user")


def home_of(
    tmp_path: Path, *, ambient: dict[str, str] | None = None, section: Section | None = None
) -> ToolsHome:
    layout = StateLayout.at(tmp_path / "state")
    layout.create()
    keyring, _ = make_keyring(layout.keys, layout.trust)
    return tools_home(
        layout,
        layout.sockets(),
        keyring,
        ambient=ambient or {},
        section=section or Section(),
        homes=tmp_path / "homes",
    )


@pytest.fixture(autouse=True)
def no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home_module, "runtime_for", lambda *_, **__: Runtime(Path("/copied/python3")))


@as_root
def test_as_root_it_gets_a_user_a_private_folder_and_copies_of_its_own_keys(tmp_path: Path) -> None:
    home = home_of(tmp_path, section=Section(yaml="tools:\n  max_runs: 2\n"))
    assert home.uid == 65532
    assert home.runtime.python == Path("/copied/python3")
    for path in (home.root, home.signing_key, home.ethics_public_key, home.root / "kala.yaml"):
        assert path.stat().st_uid == 65532
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077
    assert home.signing_key.read_bytes() == (tmp_path / "state/keys/tools.key").read_bytes()
    assert {near.parent for near in home.ways} == {home.root}
    assert not any(
        "state" in path.parts for path in (home.sockets, home.signing_key, *home.addresses.values())
    )


@as_root
def test_the_user_is_a_setting_and_never_root(tmp_path: Path) -> None:
    assert home_of(tmp_path, ambient={"KALA_TOOLS_RUN_AS_UID": "4242"}).uid == 4242
    assert home_of(tmp_path, section=Section(values={"run_as_uid": "4243"})).uid == 4243
    for wrong in ("0", "root", "-1", "4294967295"):
        with pytest.raises(FailedPreconditionError, match="KALA_TOOLS_RUN_AS_UID"):
            home_of(tmp_path, ambient={"KALA_TOOLS_RUN_AS_UID": wrong})


@as_root
def test_a_planted_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    home = home_of(tmp_path)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    home.signing_key.unlink()
    home.signing_key.symlink_to(victim)
    assert home_of(tmp_path).signing_key.read_bytes() != b"precious"
    assert victim.read_text() == "precious"


@as_root
def test_homes_that_others_may_write_to_are_refused(tmp_path: Path) -> None:
    (tmp_path / "homes").mkdir()
    (tmp_path / "homes").chmod(0o777)
    with pytest.raises(FailedPreconditionError, match="root alone"):
        home_of(tmp_path)


@as_root
def test_the_home_of_a_suite_that_is_gone_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    gone = home_of(tmp_path / "other")
    kept = home_of(tmp_path)
    homes = tmp_path / "homes"
    gone.root.rename(homes / gone.root.name)
    (tmp_path / "other/homes" / f"{gone.root.name}.state").rename(homes / f"{gone.root.name}.state")
    shutil.rmtree(tmp_path / "other")
    assert home_of(tmp_path).root == kept.root
    assert {path.name for path in homes.iterdir()} == {kept.root.name, f"{kept.root.name}.state"}


def test_without_root_it_runs_as_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    home = home_of(tmp_path)
    assert home.uid is None
    assert home.runtime == Runtime(Path(sys.executable))
    assert not home.ways
    assert home.addresses["audit"] == tmp_path / "state/run/audit.sock"


def test_elsewhere_than_on_linux_it_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(FailedPreconditionError, match="Linux"):
        home_of(tmp_path)


def test_it_learns_nothing_of_the_callers_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    ambient = {
        "PATH": "/bin",
        "OPENAI_API_KEY": "sk-1",
        "KALA_API_KEY": "kala_1",
        "KALA_INFERENCE_OPENAI_API_KEY": "sk-2",
        "KALA_TOOLS_MAX_RUNS": "3",
        "LC_ALL": "C",
    }
    known = home_of(tmp_path).environment(ambient)
    assert set(known) == {"PATH", "KALA_TOOLS_MAX_RUNS", "LC_ALL", "HOME", "GRPC_ENABLE_FORK_SUPPORT"}


def test_of_the_users_files_it_gets_its_own_section(tmp_path: Path) -> None:
    (tmp_path / "kala.yaml").write_text("tools: {max_runs: 2}\ninference: {openai_api_key: sk-1}\n")
    (tmp_path / ".env").write_text(
        "OPENAI_API_KEY=sk-2\nexport KALA_TOOLS_RUN_AS_UID='7'\nKALA_GATEWAY_PORT=1\n"
    )
    section = section_of_files({}, tmp_path, "tools")
    assert section.values == {"max_runs": "2", "run_as_uid": "7"}
    assert "sk-" not in section.yaml + section.env
    assert "GATEWAY" not in section.env


@pytest.mark.parametrize("text", ["{", "- a", "tools: 1", ""], ids=["broken", "list", "flat", "empty"])
def test_files_without_its_section_give_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "kala.yaml").write_text(text)
    assert section_of_files({}, tmp_path, "tools") == Section()
