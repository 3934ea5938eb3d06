"""Outsiders check the log with code that is not ours: Go's sumdb packages over the tile API, and pymerkle."""

from __future__ import annotations

import asyncio
import http.server
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest
from pymerkle import InmemoryTree

from kala.audit.checkpoint import open_checkpoint
from kala.audit.cosignature import cosignatures
from kala.audit.merkle import CompactRange, leaf_hash
from kala.audit.tile_paths import TilePath, bundles_of, tiles_of, unbundle
from kala.audit.v1 import audit_pb2, audit_pb2_grpc
from services.common.channel import open_channel
from tests.fakes.audit_log import is_url, record
from tests.fakes.audit_process import AuditProcess
from tests.fakes.witness_process import WitnessProcess

TOKEN = "t" * 43
# Three full tiles and a partial one, and a level above them.
ENTRIES = 1_000


@dataclass
class Published:
    """A running log with its HTTP."""

    audit: AuditProcess
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url_with_token(self) -> str:
        return f"http://reader:{TOKEN}@127.0.0.1:{self.port}"

    async def append(self, *numbers: int) -> None:
        async with open_channel(self.audit.address, peer_name="gateway") as channel:
            request = audit_pb2.AppendBatchRequest(records=[record(number) for number in numbers])
            await audit_pb2_grpc.AuditServiceStub(channel).AppendBatch(
                request, timeout=30, wait_for_ready=True
            )

    def get(self, path: str) -> bytes:
        reply = httpx.get(f"{self.url_with_token}/{path}")
        assert reply.status_code == 200, reply.text
        return reply.content


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def publish(directory: Path, url: str | None = None) -> Published:
    port = free_port()
    audit = AuditProcess(directory, url=url)
    token = directory / "tiles.token"
    token.touch(mode=0o600)
    token.write_text(TOKEN)
    audit.environment = {
        "KALA_AUDIT_METRICS_PORT": str(port),
        "KALA_AUDIT_TILE_TOKEN_FILE": str(token),
    }
    audit.start()
    return Published(audit, port)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[Published]:
    published = publish(tmp_path / "audit")
    await published.append(*range(ENTRIES))
    yield published
    assert published.audit.stop() == 0, published.audit.output()


@pytest.fixture
async def log_on(log_database: str, tmp_path: Path) -> AsyncIterator[Published]:
    """The same log, once in each database."""
    published = publish(tmp_path / "audit", log_database if is_url(log_database) else None)
    await published.append(*range(ENTRIES))
    yield published
    assert published.audit.stop() == 0, published.audit.output()


def go(checker: Path, url: str, vkey: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checker, "mirror", url, vkey], capture_output=True, text=True, timeout=120, check=False
    )


async def test_go_mirrors_a_live_log_and_finds_every_entry_signed(
    go_checker: Path, log_on: Published
) -> None:
    log = log_on
    found = go(go_checker, log.url_with_token, str(log.audit.verifier))
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout)
    checkpoint = open_checkpoint(log.get("checkpoint").decode(), [log.audit.verifier])
    # The log's own start comes first; that Go read the tiles is in the log after the checkpoint that it verified.
    assert report["entries"] in {ENTRIES + 1, ENTRIES + 2}
    assert checkpoint.size == ENTRIES + 2
    without = go(go_checker, log.url, str(log.audit.verifier))
    assert without.returncode == 1
    assert "401" in without.stderr


async def test_that_entries_are_read_by_tiles_is_in_the_log_once(log: Published) -> None:
    for path in ("tile/entries/000", "tile/entries/001", "tile/entries/000"):
        log.get(path)
    size = open_checkpoint(log.get("checkpoint").decode(), [log.audit.verifier]).size
    assert size == ENTRIES + 2
    *_, last = unbundle(log.get(str(TilePath(None, size // 256, size % 256))))
    leaf = json.loads(last)
    assert (leaf["type"], leaf["attributes"]) == ("audit.tiles", [["peer", "http:127.0.0.1"]])


@contextmanager
def serving(directory: Path) -> Iterator[str]:
    """Any static host can serve a mirror."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def mirror(log: Published, directory: Path) -> int:
    """Copies everything that the checkpoint covers into files of the same paths."""
    note = log.get("checkpoint")
    size = open_checkpoint(note.decode(), [log.audit.verifier]).size
    for path in ["checkpoint", *map(str, tiles_of(size)), *map(str, bundles_of(size))]:
        file = directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(note if path == "checkpoint" else log.get(path))
    return size


async def test_go_finds_what_was_changed_in_a_static_mirror(
    go_checker: Path, log: Published, tmp_path: Path
) -> None:
    size = mirror(log, tmp_path / "mirror")
    vkey = str(log.audit.verifier)
    with serving(tmp_path / "mirror") as url:
        good = go(go_checker, url, vkey)
        assert good.returncode == 0, good.stderr
        assert json.loads(good.stdout)["entries"] == size
    damages = {
        "tile/entries/002": "entry 600 is not what was signed",
        "tile/0/001": "",
        "tile/1/000.p/3": "",
        "checkpoint": "",
    }
    for number, (path, problem) in enumerate(damages.items()):
        copy = tmp_path / f"mirror{number}"
        shutil.copytree(tmp_path / "mirror", copy)
        data = bytearray((copy / path).read_bytes())
        place = sum(2 + len(leaf) for leaf in unbundle(bytes(data))[:88]) + 40 if "entries" in path else 40
        data[place] ^= 1
        (copy / path).write_bytes(data)
        with serving(copy) as url:
            bad = go(go_checker, url, vkey)
        assert bad.returncode == 1, f"{path} was changed unnoticed"
        assert problem in bad.stderr


async def test_a_mirror_is_whole_at_every_checkpoint_while_the_log_grows(log: Published) -> None:
    """Partial tiles must be there for each size that a checkpoint was shown of, however far the log is by then."""
    sizes: list[int] = []
    async with httpx.AsyncClient(base_url=log.url, auth=("reader", TOKEN)) as client:
        for turn in range(4):
            growing = asyncio.create_task(grow(log, turn))
            checkpoint = open_checkpoint((await client.get("/checkpoint")).text, [log.audit.verifier])
            paths = [*tiles_of(checkpoint.size), *bundles_of(checkpoint.size)]
            replies = await asyncio.gather(*(client.get(f"/{path}") for path in paths))
            assert {reply.status_code for reply in replies} == {200}
            data = dict(zip(paths, (reply.content for reply in replies), strict=True))
            leaves = [leaf for path in paths if path.level is None for leaf in unbundle(data[path])]
            tree = CompactRange()
            for leaf in leaves:
                tree.append(leaf_hash(leaf))
            assert (tree.size, tree.root()) == (checkpoint.size, checkpoint.root)
            hashes = b"".join(data[path] for path in paths if path.level == 0)
            assert hashes == b"".join(map(leaf_hash, leaves))
            sizes.append(checkpoint.size)
            await growing
    assert sizes == sorted(set(sizes))


async def grow(log: Published, turn: int) -> None:
    """Ten checkpoints, so that those of the mirror are old before it has read them."""
    for number in range(10):
        first = ENTRIES + 70 * turn + 7 * number
        await log.append(*range(first, first + 7))


@pytest.mark.slow
async def test_go_mirrors_a_log_with_three_levels_of_tiles(go_checker: Path, log: Published) -> None:
    for first in range(ENTRIES, 70_000, 1_000):
        await log.append(*range(first, first + 1_000))
    found = go(go_checker, log.url_with_token, str(log.audit.verifier))
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["entries"] > 256 * 256
    assert len(log.get("tile/2/000.p/1")) == 32


async def test_pymerkle_finds_the_same_root(log: Published) -> None:
    checkpoint = open_checkpoint(log.get("checkpoint").decode(), [log.audit.verifier])
    tree = InmemoryTree(algorithm="sha256")
    for path in bundles_of(checkpoint.size):
        for leaf in unbundle(log.get(str(path))):
            tree.append_entry(leaf)
    assert tree.get_root(checkpoint.size) == checkpoint.root


async def test_witnesses_of_other_processes_cosign_what_is_published(
    tmp_path: Path, go_checker: Path
) -> None:
    first = AuditProcess(tmp_path / "audit")
    witness = WitnessProcess(tmp_path / "witness", [first.verifier])
    witness.start()
    keys = " ".join(map(str, witness.witnesses))
    published = Published(first, free_port())
    token = tmp_path / "tiles.token"
    token.touch(mode=0o600)
    token.write_text(TOKEN)
    first.environment = {
        "KALA_AUDIT_METRICS_PORT": str(published.port),
        "KALA_AUDIT_TILE_TOKEN_FILE": str(token),
        "KALA_AUDIT_WITNESSES": f"{witness.url} {keys}",
        "KALA_AUDIT_WITNESSES_REQUIRED": "1",
        "KALA_AUDIT_WITNESS_INTERVAL_SECONDS": "0.1",
    }
    first.start()
    await published.append(*range(300))
    note = await cosigned(published, 301)
    assert set(cosignatures(note, witness.witnesses)) == set(witness.witnesses)
    found = go(go_checker, published.url_with_token, str(first.verifier))
    assert found.returncode == 0, found.stderr
    # Go's reading of entries made one more. Without its witness the log goes on, and publishes no more.
    await cosigned(published, 302)
    witness.stop()
    await published.append(300)
    note = published.get("checkpoint").decode()
    assert open_checkpoint(note, [first.verifier]).size == 302
    assert first.stop() == 0, first.output()


async def cosigned(published: Published, size: int) -> str:
    """The published checkpoint once it covers so many entries."""
    async with asyncio.timeout(30), httpx.AsyncClient() as client:
        while True:
            reply = await client.get(f"{published.url}/checkpoint")
            if reply.status_code == 200:
                if open_checkpoint(reply.text, [published.audit.verifier]).size >= size:
                    return reply.text
            else:
                assert reply.status_code == 503
            await asyncio.sleep(0.05)
