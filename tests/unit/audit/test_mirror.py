"""A log is verified from its tiles alone: what is good is accepted, and what is not is named by its first bad entry."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kala.audit.mirror import verify_tiles
from kala.audit.note import Signer, Verifier
from kala.audit.report import TamperedError, UnverifiableError
from kala.audit.sources import DirectorySource
from kala.audit.tile_paths import CHECKPOINT_PATH, bundle
from tests.fakes.audit_log import ORIGIN, signer
from tests.fakes.mirrors import Mirror, real_leaves

TRUSTED = [signer().verifier]
TESSERA = Path(__file__).parents[2] / "vectors" / "audit" / "tessera" / "testdata" / "log"
# From testdata/build_log.sh of Tessera.
TESSERA_KEY = "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx"
ENTRIES = 300
# All bytes in `make check-all`; a sample of this many otherwise.
SAMPLE = 600


def small_leaves(count: int, start: int = 0) -> list[bytes]:
    return [b"entry %d" % number for number in range(start, start + count)]


def first_bad(source: Mirror, **options: object) -> int | None:
    with pytest.raises(TamperedError) as caught:
        verify_tiles(source, TRUSTED, **options)  # type: ignore[arg-type] # options of the function
    return caught.value.first_bad_index


def test_the_log_that_tessera_published_is_verified_from_its_directory() -> None:
    trusted = [Verifier.parse(TESSERA_KEY)]
    assert verify_tiles(DirectorySource(TESSERA), trusted).entries == 15


@pytest.mark.parametrize("size", range(1, 15))
def test_the_log_that_tessera_published_continues_each_of_its_checkpoints(size: int) -> None:
    pinned = (TESSERA / f"checkpoint.{size}").read_text()
    for resume in (False, True):
        report = verify_tiles(
            DirectorySource(TESSERA), [Verifier.parse(TESSERA_KEY)], pinned=pinned, resume=resume
        )
        assert report.entries == 15


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 511, 512, 700, 65_535, 65_536, 65_800])
def test_a_good_log_of_any_size_is_accepted_and_its_progress_told(size: int) -> None:
    seen: list[tuple[int, int]] = []
    report = verify_tiles(
        Mirror(small_leaves(size)), TRUSTED, on_progress=lambda done, total: seen.append((done, total))
    )
    assert (report.entries, report.checkpoint.size, report.resumed_from) == (size, size, 0)
    assert seen[-1:] == ([(size, size)] if size else [])


@given(st.integers(1, 1_300), st.integers(0, 1_300))
@settings(max_examples=60, deadline=None)
def test_a_log_is_resumed_from_any_checkpoint_of_before(old: int, more: int) -> None:
    mirror = Mirror(small_leaves(old + more))
    report = verify_tiles(mirror, TRUSTED, pinned=mirror.note(old), resume=True)
    assert report.entries == old + more
    assert old - 256 < report.resumed_from <= old
    read = [path for path in mirror.asked if "entries" in path]
    assert len(read) == (old + more + 255) // 256 - report.resumed_from // 256


def test_resuming_reads_no_entry_again_that_was_verified_before() -> None:
    """What it then says of the old entries is only that they were good: a mirror that lost them is not noticed."""
    mirror = Mirror(small_leaves(1_000))
    del mirror.files["tile/entries/000"]
    assert verify_tiles(mirror, TRUSTED, pinned=mirror.note(700), resume=True).resumed_from == 512
    assert first_bad(mirror, pinned=mirror.note(700)) == 0


@pytest.mark.parametrize("old", [256, 700, 768])
def test_resuming_on_changed_tiles_is_noticed(old: int) -> None:
    mirror = Mirror(small_leaves(1_000))
    pinned = mirror.note(old)
    data = bytearray(mirror.files["tile/1/000.p/3"])
    data[5] ^= 1
    mirror.files["tile/1/000.p/3"] = bytes(data)
    assert first_bad(mirror, pinned=pinned, resume=True) == 0


@pytest.mark.parametrize("pinned", [None, 0, 100, 512, 600])
def test_a_log_that_dropped_its_first_entries_is_verified_from_there_on(pinned: int | None) -> None:
    mirror = Mirror(small_leaves(700))
    del mirror.files["tile/entries/000"], mirror.files["tile/entries/001"]
    kept = None if pinned is None else mirror.note(pinned)
    assert first_bad(mirror, pinned=kept) == 0
    report = verify_tiles(mirror, TRUSTED, pinned=kept, first=512)
    assert (report.entries, report.resumed_from) == (700, 512)
    assert verify_tiles(mirror, TRUSTED, first=400).resumed_from == 512
    mirror.files["tile/1/000.p/2"] = mirror.files["tile/1/000.p/2"][:40] + bytes(24)
    assert first_bad(mirror, pinned=kept, first=512) is not None


def test_a_pinned_checkpoint_of_dropped_entries_still_shows_a_fork() -> None:
    mirror, fork = Mirror(small_leaves(700)), Mirror([b"another", *small_leaves(699, 1)])
    assert first_bad(fork, pinned=mirror.note(100), first=512) == 0
    assert first_bad(fork, pinned=mirror.note(100), first=9_999) == 0


def test_resuming_needs_a_checkpoint() -> None:
    with pytest.raises(UnverifiableError, match="give the checkpoint"):
        verify_tiles(Mirror(small_leaves(3)), TRUSTED, resume=True)


def test_a_full_tile_stands_in_for_a_partial_one_that_the_log_dropped() -> None:
    """c2sp.org/tlog-tiles: partial tiles may go once the full one is there, also while somebody reads."""
    mirror = Mirror(small_leaves(700))
    older = Mirror(small_leaves(300))
    for path in (CHECKPOINT_PATH, "tile/1/000.p/1"):
        mirror.files[path] = older.files[path]
    assert verify_tiles(mirror, TRUSTED).entries == 300
    assert verify_tiles(mirror, TRUSTED, pinned=older.note(40), resume=True).entries == 300


@pytest.mark.parametrize("size", [1, 256, 300])
def test_every_flipped_bit_of_a_sample_is_noticed(size: int) -> None:
    _flip(size, sample=SAMPLE)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_a_flipped_bit_in_every_byte_of_a_log_is_noticed(part: int) -> None:
    _flip(ENTRIES, part=part)


def _flip(size: int, *, sample: int | None = None, part: int = 0) -> None:
    """Flips one random bit of each byte, of a sample of them or of every eighth one from `part` on."""
    mirror = Mirror(real_leaves(ENTRIES)[:size])
    places = [(path, place) for path, data in sorted(mirror.files.items()) for place in range(len(data))]
    rng = random.Random(size + part)
    chosen = places[part::8] if sample is None else rng.sample(places, min(sample, len(places)))
    owners = {path: _owners(path, data) for path, data in mirror.files.items()}
    for path, place in chosen:
        good = mirror.files[path]
        bit = 1 << rng.randrange(8)
        mirror.files[path] = good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :]
        expected = owners[path]
        verdict = _verdict(mirror)
        assert verdict != "good", f"{path}, byte {place}, bit {bit}"
        assert expected is None or verdict == expected[place], f"{path}, byte {place}, bit {bit}"
        mirror.files[path] = good


def _verdict(mirror: Mirror) -> int | str | None:
    """The first bad entry, or how else it ended."""
    try:
        verify_tiles(mirror, TRUSTED)
    except TamperedError as error:
        return error.first_bad_index
    except UnverifiableError:
        return "unverifiable"
    return "good"


def _owners(path: str, data: bytes) -> list[int] | None:
    """The entry that a change of each byte must name; None for the checkpoint."""
    if path == CHECKPOINT_PATH:
        return None
    _, level, number = path.removesuffix("/").split("/", 2)
    first = int(number[:3]) * 256
    if level != "entries":
        return [(first + place // 32) * 256 ** int(level) for place in range(len(data))]
    owners: list[int] = []
    while len(owners) < len(data):
        length = int.from_bytes(data[len(owners) : len(owners) + 2], "big")
        owners += [first] * (length + 2)
        first += 1
    return owners


def test_a_cut_bundle_names_the_first_entry_that_is_missing() -> None:
    mirror = Mirror(small_leaves(300))
    mirror.files["tile/entries/001.p/44"] = bundle(small_leaves(10, 256))
    assert first_bad(mirror) == 266
    del mirror.files["tile/entries/001.p/44"]
    assert first_bad(mirror) == 256


def test_a_bundle_with_more_than_its_entries_is_noticed() -> None:
    mirror = Mirror(small_leaves(300))
    mirror.files["tile/entries/001.p/44"] += b"\0\1x"
    assert first_bad(mirror) == 300


def test_two_entries_that_changed_places_are_noticed() -> None:
    leaves = small_leaves(300)
    mirror = Mirror(leaves)
    leaves[7], leaves[8] = leaves[8], leaves[7]
    mirror.files["tile/entries/000"] = bundle(leaves[:256])
    assert first_bad(mirror) == 7


def test_a_rewritten_log_whose_tiles_were_made_to_fit_breaks_the_signed_root() -> None:
    good, leaves = Mirror(small_leaves(700)), small_leaves(700)
    leaves[600] = b"another"
    forged = Mirror(leaves)
    forged.files[CHECKPOINT_PATH] = good.files[CHECKPOINT_PATH]
    assert first_bad(forged) == 0
    assert first_bad(forged, pinned=good.note(512)) == 512


def test_a_fork_that_the_log_itself_signed_is_noticed_through_a_pinned_checkpoint() -> None:
    pinned = Mirror(small_leaves(300)).note(300)
    fork = Mirror([*small_leaves(299), b"another", *small_leaves(400, 300)])
    assert verify_tiles(fork, TRUSTED).entries == 700
    assert first_bad(fork, pinned=pinned) == 0
    assert first_bad(fork, pinned=pinned, resume=True) == 0


def test_a_fork_of_the_pinned_size_itself_is_noticed_also_when_nothing_is_left_to_read() -> None:
    ours, fork = Mirror(small_leaves(512)), Mirror([b"another", *small_leaves(511, 1)])
    for resume in (False, True):
        assert first_bad(fork, pinned=ours.note(512), resume=resume) == 0
    assert first_bad(fork, pinned=ours.note(512), first=512) == 0


def test_a_changed_tile_high_in_a_large_log_is_named() -> None:
    mirror = Mirror(small_leaves(65_536 + 300))
    data = bytearray(mirror.files["tile/1/000"])
    data[40] ^= 1
    mirror.files["tile/1/000"] = bytes(data)
    assert first_bad(mirror) == 256


def test_a_stale_or_cut_log_is_noticed_through_a_pinned_checkpoint_alone() -> None:
    pinned = Mirror(small_leaves(300)).note(300)
    old = Mirror(small_leaves(200))
    assert verify_tiles(old, TRUSTED).entries == 200
    assert first_bad(old, pinned=pinned) == 200


def test_a_checkpoint_of_size_0_pins_nothing_and_contradicts_nothing() -> None:
    empty = Mirror([])
    assert verify_tiles(Mirror(small_leaves(3)), TRUSTED, pinned=empty.note(0)).entries == 3
    assert verify_tiles(Mirror(small_leaves(3)), TRUSTED, pinned=empty.note(0), resume=True).entries == 3
    assert first_bad(empty, pinned=Mirror(small_leaves(3)).note(3)) == 0


def test_a_key_that_did_not_sign_accepts_nothing() -> None:
    mirror = Mirror(small_leaves(3))
    with pytest.raises(TamperedError, match="the checkpoint: "):
        verify_tiles(mirror, [Signer.of(ORIGIN, b"x" * 32).verifier])
    with pytest.raises(UnverifiableError, match="not of a log whose key was given"):
        verify_tiles(mirror, [Signer.of("other.test", b"x" * 32).verifier])
    with pytest.raises(UnverifiableError, match="public key"):
        verify_tiles(mirror, [])


def test_keys_with_a_plus_in_their_base64_verify() -> None:
    keys = (Signer.of(ORIGIN, number.to_bytes(32, "big")) for number in range(1, 1_000))
    key = next(key for key in keys if "+" in str(key.verifier).split("+", 2)[2])
    assert verify_tiles(Mirror(small_leaves(3), key), [Verifier.parse(str(key.verifier))]).entries == 3


def test_what_is_no_log_is_unverifiable(tmp_path: Path) -> None:
    with pytest.raises(UnverifiableError, match="no checkpoint"):
        verify_tiles(DirectorySource(tmp_path), TRUSTED)
    with pytest.raises(UnverifiableError, match="not a directory"):
        DirectorySource(tmp_path / "missing")
    (tmp_path / CHECKPOINT_PATH).write_bytes(b"kala.test/audit\n\xff")
    with pytest.raises(TamperedError, match="not text"):
        verify_tiles(DirectorySource(tmp_path), TRUSTED)


def test_a_file_that_cannot_be_read_is_no_verdict_on_the_log(tmp_path: Path) -> None:
    Mirror(small_leaves(3)).write(tmp_path)
    bundle_file = tmp_path / "tile/entries/000.p/3"
    bundle_file.unlink()
    bundle_file.symlink_to(bundle_file)
    with pytest.raises(UnverifiableError, match="cannot be read"):
        verify_tiles(DirectorySource(tmp_path), TRUSTED)


def test_each_entry_is_shown_with_its_index_before_it_counts() -> None:
    seen: list[tuple[int, bytes]] = []
    leaves = small_leaves(300)
    verify_tiles(Mirror(leaves), TRUSTED, on_entry=lambda index, leaf: seen.append((index, leaf)))
    assert seen == list(enumerate(leaves))


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    peaks = []
    for name, size in (("small", 2_048), ("large", 32_768)):
        source = DirectorySource(Mirror(small_leaves(size)).write(tmp_path / name))
        tracemalloc.start()
        verify_tiles(source, TRUSTED)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
