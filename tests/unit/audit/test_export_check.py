"""An export is held against its manifest and the log's key alone: on another machine, without the log."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kala.audit.export import manifest_path, verify_export
from kala.audit.leaf import MAX_LEAF_BYTES
from kala.audit.note import Signer
from kala.audit.report import TamperedError, UnverifiableError
from tests.fakes.audit_log import ORIGIN, signer
from tests.fakes.mirrors import Mirror, export_of, real_leaves

TRUSTED = [signer().verifier]
COUNT = 300
# All bytes in `make check-all`; a sample of this many otherwise.
SAMPLE = 100


def small_leaves(count: int) -> list[bytes]:
    return [b"entry %d" % number for number in range(count)]


def first_bad(data: Path, **options: object) -> int | None:
    with pytest.raises(TamperedError) as caught:
        verify_export(data, TRUSTED, **options)  # type: ignore[arg-type] # options of the function
    return caught.value.first_bad_index


@pytest.fixture(scope="module")
def leaves() -> Sequence[bytes]:
    return real_leaves(COUNT)


@pytest.fixture
def export(tmp_path: Path, leaves: Sequence[bytes]) -> Path:
    return export_of(leaves, tmp_path / "log.jsonl")


def test_a_whole_export_proves_the_whole_log(export: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = verify_export(export, TRUSTED, on_progress=lambda done, total: seen.append((done, total)))
    assert report.manifest.is_whole
    assert report.is_proved
    assert (report.manifest.count, report.manifest.checkpoint.size) == (COUNT, COUNT)
    assert seen[-1] == (COUNT, COUNT)


@given(st.integers(1, 1_100), st.data())
@settings(max_examples=80, deadline=None)
def test_any_choice_of_entries_is_proved_line_by_line(
    tmp_path_factory: pytest.TempPathFactory, size: int, draws: st.DataObject
) -> None:
    first = draws.draw(st.integers(0, size - 1))
    chosen = set(range(first, draws.draw(st.integers(first, size))))
    chosen |= draws.draw(st.sets(st.integers(0, size - 1), max_size=20))
    data = export_of(small_leaves(size), tmp_path_factory.mktemp("export") / "part.jsonl", chosen)
    assert verify_export(data, TRUSTED).manifest.count == len(chosen)
    if chosen:
        lines = data.read_bytes().split(b"\n")
        place = draws.draw(st.integers(0, len(chosen) - 1))
        lines[place] = b"other"
        data.write_bytes(b"\n".join(lines))
        with pytest.raises(TamperedError):
            verify_export(data, TRUSTED)


def _flip(export: Path, places: Sequence[int], seed: int) -> None:
    good, rng = export.read_bytes(), random.Random(seed)
    for place in places:
        bit = 1 << rng.randrange(8)
        export.write_bytes(good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :])
        named = first_bad(export)
        # Not always the entry itself: a leaf that is still one can be told only by the root over all.
        assert named is None or named <= good[:place].count(b"\n"), f"byte {place}, bit {bit}"
    export.write_bytes(good)


def test_every_flipped_bit_of_a_sample_is_noticed(export: Path) -> None:
    size = export.stat().st_size
    _flip(export, random.Random(1).sample(range(size), SAMPLE), 1)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_a_flipped_bit_in_every_byte_of_an_export_is_noticed(tmp_path: Path, part: int) -> None:
    export = export_of(real_leaves(40), tmp_path / "log.jsonl")
    _flip(export, range(part, export.stat().st_size, 8), part)


def test_every_flipped_bit_of_a_sample_of_the_manifest_is_noticed(export: Path) -> None:
    manifest = manifest_path(export)
    good, rng = manifest.read_bytes(), random.Random(2)
    for place in rng.sample(range(len(good)), SAMPLE * 2):
        bit = 1 << rng.randrange(8)
        manifest.write_bytes(good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :])
        with pytest.raises(TamperedError, match="the manifest: "):
            verify_export(export, TRUSTED)


def test_a_line_that_is_no_leaf_is_named(export: Path) -> None:
    lines = export.read_bytes().split(b"\n")
    lines[130] = lines[130].replace(b'"tenant":"default"', b'"tenant":7')
    export.write_bytes(b"\n".join(lines))
    assert first_bad(export) == 130


def test_a_broken_line_does_not_speak_for_those_before_it(export: Path) -> None:
    """An entry changed into another was covered up by breaking a later line, which alone was named."""
    lines = export.read_bytes().splitlines(keepends=True)
    lines[3], lines[100] = lines[4], b"{}\n"
    export.write_bytes(b"".join(lines))
    with pytest.raises(
        TamperedError, match=r"entry 100: .* nor does anything vouch for the lines from entry 0 on"
    ):
        verify_export(export, TRUSTED)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda lines: [*lines[:40], *lines[41:]], "it ends after 299 of 300 lines"),
        (lambda lines: lines[:200], "it ends after 200 of 300 lines"),
        (lambda lines: [*lines, lines[5]], "it holds more than the 300 lines"),
        (lambda lines: [*lines[:7], lines[8], lines[7], *lines[9:]], "do not lead to the signed root"),
        (lambda lines: [*lines[:7], lines[6], *lines[8:]], "do not lead to the signed root"),
    ],
    ids=["removed", "cut", "added", "reordered", "repeated"],
)
def test_lines_that_are_not_the_exported_ones_are_noticed(export: Path, change: object, problem: str) -> None:
    lines = export.read_bytes().splitlines(keepends=True)
    export.write_bytes(b"".join(change(lines)))  # type: ignore[operator] # one of the lambdas above
    with pytest.raises(TamperedError, match=problem) as caught:
        verify_export(export, TRUSTED)
    assert caught.value.first_bad_index == 0


def test_a_missing_last_newline_is_noticed(export: Path) -> None:
    export.write_bytes(export.read_bytes()[:-1])
    assert first_bad(export) is None


def test_a_line_without_end_is_noticed_before_it_fills_the_memory(export: Path) -> None:
    export.write_bytes(b"x" * (2 << 20))
    with pytest.raises(TamperedError, match=f"more than {MAX_LEAF_BYTES} bytes"):
        verify_export(export, TRUSTED)


def test_a_pinned_checkpoint_within_a_whole_export_is_held_against_it(
    export: Path, leaves: Sequence[bytes]
) -> None:
    for size in (1, 255, 256, 257, COUNT):
        verify_export(export, TRUSTED, pinned=Mirror(leaves).note(size))
    other = Mirror([b"another", *leaves[1:]])
    for size in (1, 256, 257, COUNT):
        with pytest.raises(TamperedError, match="forked"):
            verify_export(export, TRUSTED, pinned=other.note(size))


def test_what_a_pinned_checkpoint_vouches_for_is_not_blamed(export: Path, leaves: Sequence[bytes]) -> None:
    lines = export.read_bytes().split(b"\n")
    lines[280], lines[281] = lines[281], lines[280]
    export.write_bytes(b"\n".join(lines))
    assert first_bad(export) == 0
    assert first_bad(export, pinned=Mirror(leaves).note(270)) == 270


def test_an_export_of_part_of_the_log_says_when_it_cannot_reach_the_pinned_checkpoint(tmp_path: Path) -> None:
    leaves = small_leaves(300)
    data = export_of(leaves, tmp_path / "part.jsonl", range(200, 300))
    assert verify_export(data, TRUSTED, pinned=Mirror(leaves).note(192)).manifest.count == 100
    with pytest.raises(UnverifiableError, match="around 130"):
        verify_export(data, TRUSTED, pinned=Mirror(leaves).note(130))


def test_an_export_older_than_the_pinned_checkpoint_is_told_apart_from_a_cut_log(export: Path) -> None:
    with pytest.raises(UnverifiableError, match="kala audit diff"):
        verify_export(export, TRUSTED, pinned=Mirror(small_leaves(400)).note(400))


def test_another_format_is_held_against_the_signed_digest(tmp_path: Path) -> None:
    data = export_of(small_leaves(9), tmp_path / "events.cef", format="cef", proof=None)
    report = verify_export(data, TRUSTED)
    assert (report.is_proved, report.manifest.count) == (False, 9)
    assert verify_export(data, TRUSTED, pinned=Mirror(small_leaves(9)).note(9)).manifest.count == 9
    with pytest.raises(UnverifiableError, match="cannot show that it continues"):
        verify_export(data, TRUSTED, pinned=Mirror(small_leaves(9)).note(4))
    with pytest.raises(TamperedError, match="forked"):
        verify_export(data, TRUSTED, pinned=Mirror([b"another", *small_leaves(9)[1:]]).note(9))
    data.write_bytes(data.read_bytes().replace(b"entry 4", b"entry 5"))
    with pytest.raises(TamperedError, match="the export: the data is not"):
        verify_export(data, TRUSTED)


def test_a_manifest_that_describes_other_data_than_its_entries_is_noticed(tmp_path: Path) -> None:
    data = export_of(small_leaves(9), tmp_path / "log.jsonl", sha256="ab" * 32)
    with pytest.raises(TamperedError, match="describes other data"):
        verify_export(data, TRUSTED)


def test_an_empty_export_is_proved_too(tmp_path: Path) -> None:
    data = export_of(small_leaves(9), tmp_path / "none.jsonl", ())
    assert verify_export(data, TRUSTED).manifest.count == 0
    data.write_bytes(b"more\n")
    assert first_bad(data) is None


def test_a_key_that_did_not_sign_accepts_nothing(export: Path) -> None:
    for name in (ORIGIN, "other.test"):
        with pytest.raises(TamperedError, match="the manifest: "):
            verify_export(export, [Signer.of(name, b"x" * 32).verifier])
    with pytest.raises(UnverifiableError, match="public key"):
        verify_export(export, [])


def test_what_is_not_there_is_unverifiable(export: Path, tmp_path: Path) -> None:
    kept = manifest_path(export).rename(tmp_path / "elsewhere.json")
    with pytest.raises(UnverifiableError, match=r"the manifest .* cannot be read"):
        verify_export(export, TRUSTED)
    assert verify_export(export, TRUSTED, manifest=kept).manifest.count == COUNT
    export.unlink()
    with pytest.raises(UnverifiableError, match=r"log\.jsonl cannot be read"):
        verify_export(export, TRUSTED, manifest=kept)


def test_a_manifest_of_another_schema_is_refused(export: Path) -> None:
    manifest = json.loads(manifest_path(export).read_bytes())
    manifest_path(export).write_text(json.dumps({**manifest, "schema": "kala.audit.export.v2"}))
    with pytest.raises(TamperedError, match="the manifest: "):
        verify_export(export, TRUSTED)
