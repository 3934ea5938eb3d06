"""What a run leaves is collected within its caps, as plain files with their digests."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from services.tools.files import artifacts
from services.tools.files.artifacts import Caps, collect, media_type_of
from services.tools.files.model import Collected
from services.tools.files.paths import parse_patterns

from .conftest import Place

RUN = "runs/local.0123"
CAPS = Caps(artifacts=8, artifact_bytes=10_000)


def _collect(
    source: Place, store: Place, *patterns: str, known: Mapping[str, bytes] | None = None, caps: Caps = CAPS
) -> Collected:
    return collect(
        source.descriptor,
        store.descriptor,
        run=RUN,
        patterns=parse_patterns("artifacts", patterns),
        known=known or {},
        caps=caps,
    )


def _leave(source: Place, **files: bytes) -> None:
    for path, data in files.items():
        target = source.path / path.replace("__", "/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def test_everything_new_under_out_is_collected_by_path(run_directory: Place, staging: Place) -> None:
    _leave(run_directory, out__b=b"second", out__a__deep=b"first", elsewhere=b"x")
    first, second = _collect(run_directory, staging).artifacts
    assert (first.name, first.path, first.size) == (f"{RUN}/artifacts/0", "out/a/deep", 5)
    assert (second.name, second.path, second.sha256) == (
        f"{RUN}/artifacts/1",
        "out/b",
        hashlib.sha256(b"second").digest(),
    )
    assert [(staging.path / number).read_bytes() for number in "01"] == [b"first", b"second"]


def test_what_the_run_was_given_under_out_is_not_new(run_directory: Place, staging: Place) -> None:
    _leave(run_directory, out__given=b"old", out__changed=b"new")
    known = {path: hashlib.sha256(b"old").digest() for path in ("out/given", "out/changed")}
    assert [one.path for one in _collect(run_directory, staging, known=known).artifacts] == ["out/changed"]
    assert [path.name for path in staging.path.iterdir()] == ["0"]


def test_patterns_choose_also_what_the_run_was_given(run_directory: Place, staging: Place) -> None:
    _leave(run_directory, out__a=b"x", given=b"old", plot=b"x")
    known = {"given": hashlib.sha256(b"old").digest()}
    collected = _collect(run_directory, staging, "g*", "plot", known=known)
    assert [one.path for one in collected.artifacts] == ["given", "plot"]


def test_nothing_but_plain_files_is_collected(run_directory: Place, staging: Place, outside: Path) -> None:
    out = run_directory.path / "out"
    out.mkdir()
    (out / "link").symlink_to(outside / "secret.txt")
    (out / "directory").symlink_to(outside)
    (out / "hard").hardlink_to(outside / "secret.txt")
    os.mkfifo(out / "pipe")
    (out / "setgid").write_bytes(b"x")
    (out / "setgid").chmod(0o2755)
    (out / os.fsdecode(b"\xff")).write_bytes(b"x")
    collected = _collect(run_directory, staging)
    assert collected.artifacts == ()
    assert [one.path for one in collected.skipped] == [
        "out/directory",
        "out/hard",
        "out/link",
        "out/pipe",
        "out/setgid",
        "out/�",
    ]
    assert list(staging.path.iterdir()) == []


def test_out_itself_as_a_link_gives_nothing(run_directory: Place, staging: Place, outside: Path) -> None:
    (run_directory.path / "out").symlink_to(outside)
    assert _collect(run_directory, staging) == Collected()


def test_more_than_the_number_allowed_are_skipped(run_directory: Place, staging: Place) -> None:
    _leave(run_directory, out__a=b"1", out__b=b"2", out__c=b"3")
    collected = _collect(run_directory, staging, caps=Caps(2, 100))
    assert [one.path for one in collected.artifacts] == ["out/a", "out/b"]
    assert [(one.path, one.reason) for one in collected.skipped] == [("out/c", "more than 2 artifacts")]


def test_what_does_not_fit_is_skipped_and_smaller_ones_are_not(run_directory: Place, staging: Place) -> None:
    _leave(run_directory, out__a=b"x" * 60, out__b=b"x" * 60, out__c=b"x" * 40)
    collected = _collect(run_directory, staging, caps=Caps(8, 100))
    assert [one.path for one in collected.artifacts] == ["out/a", "out/c"]
    assert collected.skipped[0].reason == "60 bytes do not fit into the 100 bytes for all artifacts"


def test_no_artifacts_at_all_may_be_asked_for(run_directory: Place, staging: Place) -> None:
    _leave(run_directory, out__a=b"1")
    assert _collect(run_directory, staging, caps=Caps(0, 0)).artifacts == ()


def test_a_file_of_holes_is_skipped(run_directory: Place, staging: Place) -> None:
    _leave(run_directory, out__a=b"1")
    with (run_directory.path / "out/holes").open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    collected = _collect(run_directory, staging, caps=Caps(8, 1 << 30))
    assert [one.path for one in collected.artifacts] == ["out/a"]
    assert "a file of holes" in collected.skipped[0].reason


def test_the_host_directory_is_not_collected(run_directory: Place, staging: Place) -> None:
    _leave(run_directory, host__a=b"1")
    assert _collect(run_directory, staging, "host/*", "*/*").artifacts == ()


def test_a_file_that_cannot_be_read_is_skipped_and_leaves_nothing(
    run_directory: Place, staging: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    _leave(run_directory, out__a=b"1")

    def fail(descriptor: int, size: int, offset: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    collected = _collect(run_directory, staging)
    assert (collected.artifacts, collected.skipped[0].reason) == ((), "Input/output error")
    assert list(staging.path.iterdir()) == []


def test_a_file_that_cannot_be_opened_is_skipped(
    run_directory: Place, staging: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    _leave(run_directory, out__a=b"1")

    def fail(root: int, path: bytes) -> tuple[int, os.stat_result]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(artifacts, "open_regular", fail)
    collected = _collect(run_directory, staging)
    assert (collected.artifacts, collected.skipped[0].reason) == ((), "Permission denied")


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("out/plot.png", "image/png"),
        ("out/table.csv", "text/csv"),
        ("out/data.json", "application/json"),
        ("out/page.html", "text/html"),
        ("out/archive.tar.gz", "application/octet-stream"),
        ("out/no_ending", "application/octet-stream"),
        ("out/PLOT.PNG", "image/png"),
        ("out/data:text/html,x", "application/octet-stream"),
    ],
)
def test_the_media_type_is_what_the_ending_says(path: str, media_type: str) -> None:
    assert media_type_of(path) == media_type
