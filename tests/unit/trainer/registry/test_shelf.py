"""Folders of adapters: placed whole, private copies, never replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from kala.common.v1.adapter_pb2 import SignedAdapterManifest
from kala.errors import AlreadyExistsError, FailedPreconditionError, VerificationError
from services.common.adapter_manifest import MANIFEST_FILE
from services.trainer.registry.shelf import Folder, Shelf
from tests.fakes.trained import TrainedWorld


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    shelf = Shelf(tmp_path / "adapters")
    shelf.open()
    return shelf


def signed(name: str) -> SignedAdapterManifest:
    return SignedAdapterManifest(manifest=name.encode())


def place(shelf: Shelf, world: TrainedWorld, name: str = "adapters/tone@1") -> Folder:
    with shelf.staged(world.adapter) as stage:
        return shelf.place(stage, name, signed(name))


def test_an_adapter_gets_a_whole_folder_and_nothing_is_left_beside_it(shelf: Shelf, tmp_path: Path) -> None:
    world = TrainedWorld(tmp_path)
    folder = place(shelf, world, "adapters/tone@2")
    assert folder.path.name == "tone@2"
    assert shelf.read_manifest("adapters/tone@2") == signed("adapters/tone@2")
    assert set(folder.names()) == {*world.files, MANIFEST_FILE}
    assert list((shelf.root / ".staging").iterdir()) == []


def test_a_folder_that_is_there_is_never_replaced(shelf: Shelf, tmp_path: Path) -> None:
    (shelf.root / "tone@1").mkdir()
    (shelf.root / "tone@1" / "theirs").write_text("")
    with pytest.raises(AlreadyExistsError):
        place(shelf, TrainedWorld(tmp_path))
    assert [path.name for path in (shelf.root / "tone@1").iterdir()] == ["theirs"]


def test_what_is_staged_does_not_change_with_its_source(shelf: Shelf, tmp_path: Path) -> None:
    source = TrainedWorld(tmp_path).adapter
    with shelf.staged(source) as stage:
        before = stage.references()
        (source / "adapter_model.safetensors").write_bytes(b"other")
        assert stage.references() == before


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "training_args.pt", "sub/adapter_config.json", ".hidden"]
)
def test_a_folder_with_anything_else_in_it_is_refused(shelf: Shelf, tmp_path: Path, name: str) -> None:
    source = TrainedWorld(tmp_path).adapter
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).write_bytes(b"\x80\x04")
    with pytest.raises(VerificationError, match="has no place in an adapter"), shelf.staged(source):
        pass


def test_a_link_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    source = TrainedWorld(tmp_path).adapter
    (source / "README.md").unlink()
    (source / "README.md").symlink_to("/etc/hostname")
    with pytest.raises(VerificationError, match=r"README\.md"), shelf.staged(source):
        pass


def test_a_missing_folder_says_where_it_should_be(shelf: Shelf) -> None:
    with pytest.raises(FailedPreconditionError, match="restore them from a backup"):
        shelf.folder("adapters/gone@1")
    with pytest.raises(VerificationError, match="is not adapters/<name>@<version>"):
        shelf.folder("adapters/../../etc@1")


def test_a_new_manifest_takes_the_old_one_s_place(shelf: Shelf, tmp_path: Path) -> None:
    folder = place(shelf, TrainedWorld(tmp_path))
    names = folder.names()
    shelf.replace_manifest("adapters/tone@1", signed("gated"))
    assert shelf.read_manifest("adapters/tone@1") == signed("gated")
    assert folder.names() == names


def test_opening_removes_what_was_left_half_written(shelf: Shelf) -> None:
    (shelf.root / ".staging" / "half").mkdir()
    shelf.open()
    assert list((shelf.root / ".staging").iterdir()) == []
