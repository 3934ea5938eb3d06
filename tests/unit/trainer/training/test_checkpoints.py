"""A checkpoint is there whole or not at all, and is believed only as far as its hashes hold."""

from __future__ import annotations

import errno

import pytest

from kala.errors import DataLossError
from services.trainer.training.checkpoints import Checkpoints


def writes(text: str):
    return {
        "weights.safetensors": lambda path: path.write_text(text),
        "state.json": lambda path: path.write_text("{}"),
    }


def nothing_is_damaged(step: int, problem: str) -> None:
    raise AssertionError(f"{step}: {problem}")


def test_the_newest_is_found_and_only_so_many_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, kept=2)
    saved = [checkpoints.save(step, writes(str(step))) for step in (5, 10, 15)]
    assert checkpoints.latest(nothing_is_damaged) == saved[-1]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000010", "step-00000015",
    ]  # fmt: skip


def test_an_empty_folder_has_none(tmp_path):
    assert Checkpoints(tmp_path, kept=1).latest(nothing_is_damaged) is None


@pytest.mark.parametrize("damage", ["altered", "missing", "short", "manifest", "foreign", "link"])
def test_a_damaged_one_is_put_aside_and_told_and_the_one_before_is_used(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path, kept=3)
    for step in (5, 10):
        checkpoints.save(step, writes("x" * 100))
    newest = tmp_path / "checkpoints/step-00000010"
    weights, manifest = newest / "weights.safetensors", newest / "manifest.json"
    if damage == "altered":
        weights.write_text("y" + "x" * 99)
    elif damage == "missing":
        weights.unlink()
    elif damage == "short":
        weights.write_text("x" * 99)
    elif damage == "manifest":
        manifest.write_text("{")
    elif damage == "foreign":
        manifest.write_bytes((tmp_path / "checkpoints/step-00000005/manifest.json").read_bytes())
    else:
        manifest.write_text(
            manifest.read_text().replace("weights.safetensors", "../step-00000005/state.json")
        )
    told: list[int] = []
    found = checkpoints.latest(lambda step, _: told.append(step))
    assert found is not None
    assert (found.step, told) == (5, [10])
    assert (tmp_path / "checkpoints/damaged-step-00000010").is_dir()
    # The steps in between are taken again, and saved again.
    assert checkpoints.save(10, writes("x")) == checkpoints.latest(nothing_is_damaged)


def test_a_full_disk_leaves_no_part_and_what_was_there_before(tmp_path):
    checkpoints = Checkpoints(tmp_path, kept=2)
    checkpoints.save(5, writes("x"))

    def full(_path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoints.save(10, writes("x") | {"optimizer.safetensors": full})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]


def test_what_a_crash_left_half_written_is_never_found_and_is_tidied_away(tmp_path):
    checkpoints = Checkpoints(tmp_path, kept=2)
    checkpoints.save(5, writes("x"))
    (tmp_path / "checkpoints/step-00000005").rename(tmp_path / "checkpoints/.draft-00000010")
    assert checkpoints.latest(nothing_is_damaged) is None
    checkpoints.tidy()
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_one_that_must_be_there_and_is_not_is_an_error(tmp_path):
    with pytest.raises(DataLossError):
        Checkpoints(tmp_path, kept=2).find(5)
