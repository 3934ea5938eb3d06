"""A power cut, which a kill is not: whatever was not synced to the disk is gone, and of the rest nothing may be.

The writer runs under strace; every write that no fdatasync covers yet is dropped (or a random part of it kept), at
each acknowledgement, and the log is opened from what a disk would hold then. A log that syncs less must lose.
"""

from __future__ import annotations

import random
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kala.audit.database import verify_database
from tests.fakes.audit_log import fill, signer

ROOT = Path(__file__).parents[2]
RECORDS = 60
ALREADY = 3
CALLS = "openat,close,write,pwrite64,fdatasync,fsync,ftruncate,unlink"
SECTOR = 512

_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)")
_WRITE = re.compile(r'^\d+<([^>]*)>, "((?:\\x[0-9a-f]{2})*)", (\d+)(?:, (\d+))?$')
_FILE = re.compile(r"^\d+<([^>]*)>(?:, (\d+))?$")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]


@dataclass
class Disk:
    """What the disk surely holds of each file, and the writes that it may or may not hold."""

    durable: dict[str, bytearray]
    pending: list[tuple[str, int, bytes]] = field(default_factory=list)

    def write(self, path: str, offset: int, data: bytes) -> None:
        self.pending.append((path, offset, data))

    def sync(self, path: str) -> None:
        for name, offset, data in self.pending:
            if name == path:
                _put(self.durable.setdefault(path, bytearray()), offset, data)
        self.pending = [write for write in self.pending if write[0] != path]

    def cut(self, path: str, size: int) -> None:
        # As if synced: SQLite cuts a WAL only when all of it is in the file, and a longer one would do no harm.
        self.sync(path)
        del self.durable.setdefault(path, bytearray())[size:]

    def remove(self, path: str) -> None:
        self.durable.pop(path, None)
        self.pending = [write for write in self.pending if write[0] != path]

    def image(self, directory: Path, rng: random.Random | None) -> Path:
        """The files after a power cut now; with `rng`, some sectors of unsynced writes made it to the disk."""
        files = {path: bytearray(data) for path, data in self.durable.items()}
        if rng is not None:
            for path, offset, data in self.pending:
                for at in range(0, len(data), SECTOR):
                    if rng.random() < 0.5:
                        _put(files.setdefault(path, bytearray()), offset + at, data[at : at + SECTOR])
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        for path, data in files.items():
            if not path.endswith("-shm"):  # rebuilt by whoever opens the log first
                (directory / Path(path).name).write_bytes(data)
        return directory / "audit.db"


def _put(file: bytearray, offset: int, data: bytes) -> None:
    if len(file) < offset + len(data):
        file.extend(bytes(offset + len(data) - len(file)))
    file[offset : offset + len(data)] = data


def replay(trace: Path, database: Path) -> Iterator[tuple[int, Disk]]:
    """Each acknowledgement in the trace, with the disk at that moment."""
    disk = Disk({str(database): bytearray(database.with_suffix(".before").read_bytes())})
    for line in trace.read_text().splitlines():
        call = _CALL.match(line)
        if call is None or int(call[3]) < 0:
            continue
        name, arguments = call[1], call[2]
        if name == "unlink":
            # A WAL that was written back, by the last connection that closed.
            disk.remove(_text(arguments).strip('"'))
        if name in {"write", "pwrite64"} and (written := _WRITE.match(arguments)):
            data = bytes.fromhex(written[2].replace("\\x", ""))[: int(call[3])]
            if data.startswith(b"ack "):
                yield int(data.split()[1]), disk
            elif (path := _text(written[1])).startswith(str(database)):
                assert name == "pwrite64", "the log is written at offsets alone"
                disk.write(path, int(written[4]), data)
        elif name in {"fdatasync", "fsync", "ftruncate"} and (synced := _FILE.match(arguments)):
            path = _text(synced[1])
            if not path.startswith(str(database)):
                continue
            if name == "ftruncate":
                disk.cut(path, int(synced[2]))
            else:
                disk.sync(path)


def _text(traced: str) -> str:
    """What strace spells byte by byte."""
    return re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), traced)


def trace_of(directory: Path, synchronous: str) -> tuple[Path, Path]:
    database, trace = directory / "audit.db", directory / "trace"
    fill(database, [ALREADY])
    shutil.copy(database, database.with_suffix(".before"))
    command = ["strace", "-f", "-y", "-xx", "-s", "1000000", "-e", f"trace={CALLS}", "-o", str(trace)]
    command += [
        sys.executable,
        "-m",
        "tests.fakes.power_loss_writer",
        str(database),
        str(RECORDS),
        synchronous,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    return trace, database


def entries_of(image: Path) -> int:
    with closing(sqlite3.connect(image)) as database:
        return int(database.execute("SELECT count(*) FROM entry").fetchone()[0])


@pytest.mark.parametrize("keeps", ["nothing", "some sectors"])
def test_no_acknowledged_record_is_lost_when_the_power_goes(tmp_path: Path, keeps: str) -> None:
    rng = random.Random(3) if keeps == "some sectors" else None
    images = 0
    for index, disk in replay(*trace_of(tmp_path, "FULL")):
        image = disk.image(tmp_path / "image", rng)
        report = verify_database(image, [signer().verifier], pinned=None)
        assert report.entries >= index + 1, f"entry {index} was acknowledged and is lost"
        images += 1
    assert images == RECORDS


def test_a_log_that_syncs_less_loses_what_it_acknowledged(tmp_path: Path) -> None:
    lost = 0
    for index, disk in replay(*trace_of(tmp_path, "NORMAL")):
        lost += entries_of(disk.image(tmp_path / "image", None)) <= index
    assert lost > RECORDS // 2
