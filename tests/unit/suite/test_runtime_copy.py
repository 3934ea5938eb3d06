"""An interpreter for another user: this one where that user can reach it, a linked copy elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kala.errors import FailedPreconditionError
from kala.suite import runtime_copy
from kala.suite.runtime_copy import Runtime, is_open_to_others, runtime_for

UID = 65532
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may start a program as another user")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other users may look into; pytest's own may not."""
    path = Path(tempfile.mkdtemp(prefix="kala-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def made(place: Path, module: str = "kala.errors, google.protobuf.message") -> Runtime:
    return runtime_for(UID, distribution="kala-suite", extra="runtime", module=module, places=[place])


@as_root
def test_the_other_user_runs_it_with_our_packages(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a machine where everything lies in root's home.
    monkeypatch.setattr(runtime_copy, "is_open_to_others", lambda path: path == place)
    runtime = made(place)
    assert str(runtime.python).startswith(str(place))
    code = "import os, kala.errors, google.protobuf; print(os.getuid(), kala.errors.__file__)"
    ended = subprocess.run(
        [str(runtime.python), "-c", code],
        env=dict(runtime.environment),
        cwd="/",
        user=UID,
        group=UID,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=True,
    )
    uid, file = ended.stdout.split()
    assert uid == str(UID)
    assert file.startswith(str(place))


@as_root
def test_a_copy_is_made_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_copy, "is_open_to_others", lambda path: path == place)
    monkeypatch.setattr(runtime_copy, "_package_files", lambda *_: ())  # a checkout may be edited meanwhile
    first = made(place, module="json")
    monkeypatch.setattr(runtime_copy, "_make", None)  # a second making would fail
    assert made(place, module="json") == first


@as_root
def test_a_module_that_it_lacks_is_named_and_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_copy, "is_open_to_others", lambda path: path == place)
    monkeypatch.setattr(runtime_copy, "_package_files", lambda *_: ())
    with pytest.raises(FailedPreconditionError, match="no_such_module"):
        made(place, module="no_such_module")
    assert list(place.iterdir()) == []


def test_this_interpreter_serves_where_everybody_can_reach_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_copy, "is_open_to_others", lambda path: True)
    assert made(place) == Runtime(Path(sys.executable))
    assert list(place.iterdir()) == []


def test_a_place_that_others_may_write_to_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_copy, "is_open_to_others", lambda path: False)
    place.chmod(0o777)
    with pytest.raises(FailedPreconditionError, match="others may write"):
        made(place)


def test_a_file_in_a_private_folder_is_not_open(place: Path) -> None:
    folder = place / "private"
    folder.mkdir(mode=0o700)
    (folder / "file").write_text("x")
    (folder / "file").chmod(0o644)
    assert is_open_to_others(place)
    assert not is_open_to_others(folder / "file")
    assert not is_open_to_others(place / "missing")
    (place / "link").symlink_to(folder / "file")
    assert not is_open_to_others(place / "link")
