"""The state directory: private, and usable however long its path is."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kala.errors import FailedPreconditionError
from kala.suite.layout import DEFAULT_STATE, StateLayout, make_private_directory, write_private_file


def test_every_folder_is_private_to_its_user(tmp_path: Path) -> None:
    layout = StateLayout.at(tmp_path / "state")
    layout.create()
    for folder in (layout.root, layout.run, layout.keys, layout.data, layout.trust, layout.logs):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_was_opened_to_others_is_closed_again(tmp_path: Path) -> None:
    layout = StateLayout.at(tmp_path / "state")
    layout.create()
    layout.keys.chmod(0o755)
    layout.create()
    assert stat.S_IMODE(layout.keys.stat().st_mode) == 0o700


def test_a_short_state_directory_holds_its_own_sockets() -> None:
    layout = StateLayout(Path("/var/kala"))
    assert layout.sockets() == layout.run


def test_a_long_state_directory_gets_short_sockets_elsewhere(tmp_path: Path) -> None:
    layout = StateLayout.at(tmp_path / ("a" * 120))
    sockets = layout.sockets()
    assert len(os.fsencode(sockets / "inference.sock")) < 100
    assert str(sockets).startswith(f"/tmp/kala-{os.getuid()}-")
    assert StateLayout.at(tmp_path / ("b" * 120)).sockets() != sockets


def test_a_link_in_the_way_of_the_short_sockets_is_refused(tmp_path: Path) -> None:
    link = Path(f"/tmp/kala-test-link-{os.getpid()}")
    link.symlink_to(tmp_path)
    try:
        with pytest.raises(FailedPreconditionError, match="not a directory"):
            make_private_directory(link)
    finally:
        link.unlink()


def test_a_file_in_the_way_names_the_cure(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("x")
    with pytest.raises(FailedPreconditionError, match="--state"):
        StateLayout.at(tmp_path / "state").create()


def test_a_private_file_is_replaced_whole_and_never_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_private_file(path, b"one")
    write_private_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]


def test_the_default_is_below_the_home_directory() -> None:
    assert StateLayout.at(None).root == DEFAULT_STATE.expanduser()
