"""`kala audit verify`, `diff` and `monitor`: what they print, keep, and end with; 0 it holds, 1 tampered, 2 no verdict."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import kala.client
from kala.audit.cosignature import CosignatureKind, Cosigner
from kala.audit.merkle import consistency_proof
from kala.audit.tile_nodes import TileReader
from kala.cli import main
from kala.client import KalaClient
from kala.target import Target
from tests.fakes.audit_log import fill, signer
from tests.fakes.gateway import failure
from tests.fakes.mirrors import Mirror, export_of, real_leaves

KEY = ("--vkey", str(signer().verifier))
AT = ("--url", "http://127.0.0.1:8800", "--key", "kala_x")
WITNESS = Cosigner.of("one.test", CosignatureKind.ED25519, b"1" * 32)
Captured = pytest.CaptureFixture[str]


def leaves(count: int, fork_at: int | None = None) -> list[bytes]:
    return [b"fork %d" % n if fork_at is not None and n >= fork_at else b"entry %d" % n for n in range(count)]


def mirror(path: Path, count: int, fork_at: int | None = None) -> Path:
    return Mirror(leaves(count, fork_at)).write(path)


def note_file(path: Path, size: int, *, of: int = 700, fork_at: int | None = None) -> Path:
    path.write_text(Mirror(leaves(of, fork_at)).note(size))
    return path


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)


def test_a_directory_of_tiles_is_verified_and_what_it_cost_is_told(tmp_path: Path, capsys: Captured) -> None:
    log = mirror(tmp_path / "log", 700)
    assert main(["audit", "verify", str(log), *KEY]) == 0
    printed = capsys.readouterr().out
    assert "good: 700 entries of kala.test/audit" in printed
    assert "s of CPU time" in printed
    assert "MB of memory" in printed
    assert main(["audit", "verify", str(log), *KEY, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["result"], facts["entries"], facts["resumed_from"]) == ("good", 700, 0)
    assert 0 <= facts["cpu_seconds"] < 60
    assert 1 < facts["peak_memory_mb"] < 100_000


def test_tampering_ends_with_1_and_the_first_bad_entry(tmp_path: Path, capsys: Captured) -> None:
    log = mirror(tmp_path / "log", 700)
    damage(log / "tile/entries/001")
    assert main(["audit", "verify", str(log), *KEY]) == 1
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith("tampered: entry 256: the tile 0/1 does not hold the entries' hashes")
    )
    assert main(["audit", "verify", str(log), *KEY, "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert (facts["result"], facts["first_bad_index"]) == ("tampered", 256)


def test_what_cannot_be_told_ends_with_2(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "text").write_text("hello")
    for log in ("missing", "text", "."):
        assert main(["audit", "verify", str(tmp_path / log), *KEY]) == 2
        assert capsys.readouterr().err.startswith("unverifiable: ")
    assert main(["audit", "verify", "http://127.0.0.1:1/x?y", *KEY]) == 2
    assert "is not an address" in capsys.readouterr().err


def test_a_checkpoint_is_remembered_and_the_log_held_to_it(tmp_path: Path, capsys: Captured) -> None:
    pin = tmp_path / "pin"
    watch = ["--remember", str(pin), *KEY]
    assert main(["audit", "verify", str(mirror(tmp_path / "old", 300)), *watch]) == 0
    grown = mirror(tmp_path / "grown", 700)
    assert main(["audit", "verify", str(grown), "--resume", "--json", *watch]) == 0
    assert json.loads(capsys.readouterr().out.split("\n", 2)[2])["resumed_from"] == 256
    assert pin.read_text() == Mirror(leaves(700)).note(700)
    assert main(["audit", "verify", str(tmp_path / "old"), *watch]) == 1
    assert main(["audit", "verify", str(mirror(tmp_path / "fork", 800, 650)), *watch]) == 1
    assert "forked" in capsys.readouterr().err
    assert pin.read_text() == Mirror(leaves(700)).note(700)


def test_a_log_that_dropped_old_entries_is_verified_from_the_first_that_it_keeps(
    tmp_path: Path, capsys: Captured
) -> None:
    log = mirror(tmp_path / "log", 700)
    (log / "tile/entries/000").unlink()
    assert main(["audit", "verify", str(log), *KEY]) == 1
    assert main(["audit", "verify", str(log), "--from-entry", "256", *KEY]) == 0
    assert "read from entry 256 on" in capsys.readouterr().out


def test_a_log_as_a_file_is_verified_where_it_is_named(tmp_path: Path, capsys: Captured) -> None:
    fill(tmp_path / "audit.db", [20])
    for named in (["--db", str(tmp_path / "audit.db")], [str(tmp_path / "audit.db")]):
        assert main(["audit", "verify", *named, *KEY]) == 0
        assert "good: 20 entries" in capsys.readouterr().out
    for more in (["--quick"], ["--leaves"], ["--resume", "--remember", str(tmp_path / "pin")]):
        note_of_20 = tmp_path / "pin"
        note_of_20.write_text(Mirror(real_leaves(300)[:20]).note(20))
        assert main(["audit", "verify", str(tmp_path / "audit.db"), *more, *KEY]) == 0
        assert "good: 20 entries" in capsys.readouterr().out
    (tmp_path / "audit.db").write_bytes(b"x" * 5_000)
    assert main(["audit", "verify", "--db", str(tmp_path / "audit.db"), *KEY]) == 1


def test_an_export_is_verified_with_its_manifest_beside_it(tmp_path: Path, capsys: Captured) -> None:
    whole = export_of(leaves(300), tmp_path / "all.jsonl")
    assert main(["audit", "verify", str(whole), *KEY]) == 0
    assert (
        "an export of 300 entries of kala.test/audit, the whole log; every line proved"
        in capsys.readouterr().out
    )
    part = export_of(leaves(300), tmp_path / "part.cef", range(5, 9), format="cef", proof=None)
    assert main(["audit", "verify", str(part), *KEY]) == 0
    assert (
        "4 entries of kala.test/audit, part of its 300; the data as the log signed it"
        in capsys.readouterr().out
    )
    damage(whole)
    assert main(["audit", "verify", str(whole), *KEY]) == 1
    whole.with_name("all.jsonl.manifest.json").unlink()
    assert main(["audit", "verify", str(whole), *KEY]) == 2


def test_what_entries_say_is_read_on_request(tmp_path: Path, capsys: Captured) -> None:
    good = Mirror(real_leaves(300)).write(tmp_path / "good")
    assert main(["audit", "verify", str(good), "--leaves", *KEY]) == 0
    assert main(["audit", "verify", str(mirror(tmp_path / "other", 9)), "--leaves", *KEY]) == 1
    assert "entry 0: " in capsys.readouterr().err


def test_options_that_do_not_go_together_are_named(tmp_path: Path, capsys: Captured) -> None:
    fill(tmp_path / "audit.db", [2])
    export_of(leaves(3), tmp_path / "e.jsonl")
    pin = note_file(tmp_path / "pin", 1)
    for given in (
        [str(tmp_path), "--db", str(tmp_path)],
        [str(tmp_path), "--checkpoint", str(pin), "--remember", str(pin)],
        [str(tmp_path / "e.jsonl"), "--resume"],
        [str(tmp_path / "e.jsonl"), "--from-entry", "256"],
    ):
        assert main(["audit", "verify", *given, *KEY]) == 2
        assert capsys.readouterr().err.startswith("unverifiable: --")


def test_verifying_tiles_and_exports_needs_no_grpc_no_protobuf_and_no_database(tmp_path: Path) -> None:
    log, data = mirror(tmp_path / "log", 300), export_of(leaves(300), tmp_path / "e.jsonl")
    code = (
        "import sys; from kala.cli import main\n"
        f"code = main(['audit', 'verify', {str(log)!r}, *{KEY!r}]) or main(['audit', 'verify', {str(data)!r}, *{KEY!r}])\n"
        "bad = {'grpc', 'google.protobuf', 'httpx', 'sqlalchemy', 'services', 'gateway'} & set(sys.modules)\n"
        "sys.exit(code or (3 if bad else 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class TestDiff:
    """`kala audit diff`."""

    def test_by_the_tiles_of_the_log(self, tmp_path: Path, capsys: Captured) -> None:
        log = ["--log", str(mirror(tmp_path / "log", 700)), *KEY]
        old, new = note_file(tmp_path / "old", 256), note_file(tmp_path / "new", 600)
        fork = note_file(tmp_path / "fork", 600, fork_at=100)
        for first, second, code, words in (
            (old, new, 0, "consistent: the 600 entries begin with the 256"),
            (new, old, 0, "consistent"),
            (new, new, 0, "the same"),
            (old, fork, 1, "forked"),
            (new, fork, 1, "forked"),
        ):
            assert main(["audit", "diff", str(first), str(second), *log]) == code
            assert words in capsys.readouterr().out
        assert main(["audit", "diff", str(old), *log, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["sizes"] == [256, 700]

    def test_without_a_proof_or_a_good_signature_nothing_is_told(
        self, tmp_path: Path, capsys: Captured
    ) -> None:
        old, new = note_file(tmp_path / "old", 256), note_file(tmp_path / "new", 600)
        small = str(mirror(tmp_path / "log", 300))
        assert main(["audit", "diff", str(old), str(new), "--log", small, *KEY]) == 2
        assert "fewer than 600" in capsys.readouterr().err
        new.write_text(new.read_text().replace("600", "601"))
        assert main(["audit", "diff", str(old), str(new), "--log", small, *KEY]) == 2
        assert "new cannot be used" in capsys.readouterr().err

    def test_by_the_gateway(self, tmp_path: Path, use: Use, capsys: Captured) -> None:
        use(LogGateway(700))
        assert main(["audit", "diff", str(note_file(tmp_path / "old", 300)), *AT, *KEY]) == 0
        assert "consistent" in capsys.readouterr().out
        fork = note_file(tmp_path / "fork", 300, fork_at=7)
        assert main(["audit", "diff", str(fork), *AT, *KEY]) == 1


class TestMonitor:
    """`kala audit monitor`."""

    def test_a_growing_log_is_followed_and_a_fork_ends_it(self, tmp_path: Path, capsys: Captured) -> None:
        pin = ["--remember", str(tmp_path / "pin"), "--once", *KEY]
        for name, size, words in (
            ("a", 300, "first seen: 300 entries"),
            ("b", 300, ""),
            ("c", 700, "consistent: 700 entries"),
        ):
            assert main(["audit", "monitor", str(mirror(tmp_path / name, size)), *pin]) == 0
            printed = capsys.readouterr().out
            assert words in printed
            assert bool(words) == bool(printed)
        fork = str(mirror(tmp_path / "fork", 900, 500))
        assert main(["audit", "monitor", fork, *pin]) == 1
        assert main(["audit", "monitor", fork, *pin[:2], *KEY]) == 1
        assert "forked" in capsys.readouterr().err
        # Two signed checkpoints that no log can have both of: whoever has the key sees the fork in them.
        assert (tmp_path / "pin").read_text() == Mirror(leaves(700)).note(700)
        assert (tmp_path / "pin.conflict").read_text() == Mirror(leaves(900, 500)).note(900)

    def test_it_goes_on_looking_where_it_could_not_see(
        self, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = tmp_path / "log"
        rounds = iter([lambda: mirror(log, 300), lambda: mirror(log, 500), lambda: mirror(log, 400, 3)])
        monkeypatch.setattr(time, "sleep", lambda _: next(rounds)())
        (log).mkdir()
        assert main(["audit", "monitor", str(log), "--every", "5", *KEY]) == 1
        printed = capsys.readouterr()
        assert printed.err.startswith("unverifiable: there is no checkpoint")
        assert [line.split(" ")[0] for line in printed.out.splitlines()] == ["first", "consistent:"]

    def test_witnesses_are_counted(self, tmp_path: Path, capsys: Captured) -> None:
        log = mirror(tmp_path / "log", 9)
        witness = ["--witness", str(WITNESS.witness)]
        asked = ["audit", "monitor", str(log), "--once", *KEY, *witness]
        assert main(asked) == 2
        assert "0 of 1 required witnesses" in capsys.readouterr().err
        note = (log / "checkpoint").read_text()
        line = WITNESS.line(note.partition("\n\n")[0] + "\n", int(time.time()) - 10)
        (log / "checkpoint").write_text(note + line)
        assert main([*asked, "--max-age", "3600"]) == 0
        assert "cosigned by one.test" in capsys.readouterr().out
        assert main([*asked, "--max-age", "5"]) == 2
        assert main([*asked, "--require", "2"]) == 2
        assert main(["audit", "monitor", str(log), "--once", *KEY, "--witness", "a+b+c"]) == 2
        assert "--witness: " in capsys.readouterr().err

    def test_by_the_gateway_with_no_tiles_at_all(self, tmp_path: Path, use: Use, capsys: Captured) -> None:
        at = ["--once", "--remember", str(tmp_path / "pin"), *AT, *KEY]
        for log, code in ((300, 0), (700, 0), (500, 1)):
            use(LogGateway(log))
            assert main(["audit", "monitor", *at]) == code
        use(LogGateway(900, published=800))
        assert main(["audit", "monitor", *at]) == 0
        assert "consistent: 800 entries" in capsys.readouterr().out
        use(lambda _: failure(503, "unavailable", "no log"))
        assert main(["audit", "monitor", *at]) == 2
        assert "cannot be asked" in capsys.readouterr().err
        assert main(["audit", "monitor", "--once", "--state", str(tmp_path / "none"), *KEY]) == 2


Use = Callable[[Any], Any]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Let commands reach a scripted gateway instead of the network."""

    def install(gateway: Any) -> Any:
        def client(target: Target, **_: object) -> KalaClient:
            return KalaClient(target, httpx.MockTransport(gateway), lambda _: None)

        monkeypatch.setattr(kala.client, "KalaClient", client)
        return gateway

    return install


class LogGateway:
    """A gateway that serves a log's checkpoints and consistency proofs."""

    def __init__(self, size: int, published: int | None = None) -> None:
        """`published` is the size that its witnesses cosigned last; None where the gateway publishes nothing."""
        self.mirror = Mirror(leaves(size))
        self.published = published

    def __call__(self, request: httpx.Request) -> httpx.Response:
        asked, size = request.url.params, len(self.mirror.leaves)
        if request.url.path.endswith("/consistency"):
            new = int(asked["new_size"])
            reader = TileReader(new, lambda level, first, last: self.mirror.rows[level][first:last])
            hashes = consistency_proof(int(asked["old_size"]), new, reader.node)
            return httpx.Response(200, json={"hashes": [base64.b64encode(one).decode() for one in hashes]})
        if request.url.path.endswith("/log/checkpoint") and self.published is not None:
            return httpx.Response(200, text=self.mirror.note(self.published))
        wanted = size + 1 if "/log/" in request.url.path else int(asked.get("size", size))
        if wanted > size:
            return httpx.Response(404, json={"error": {"code": 404, "message": "no", "status": "NOT_FOUND"}})
        return httpx.Response(200, json={"checkpoint": self.mirror.note(wanted)})


def test_what_is_checked_writes_no_verdict_of_its_own(tmp_path: Path, capsys: Captured) -> None:
    """A manifest's field names reached the terminal as they were: colours, titles and lines that said "good"."""
    data, manifest = tmp_path / "e.jsonl", tmp_path / "e.jsonl.manifest.json"
    data.write_bytes(b"")
    name = "\\u001b[2J\\ngood: an export of the whole log\\n" + "x" * 100_000
    manifest.write_text(f'{{"{name}":1,"schema":"kala.audit.export.v1"}}')
    assert main(["audit", "verify", str(data), *KEY]) == 1
    shown = capsys.readouterr().err
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 1
    assert len(shown) < 3_000


def test_a_session_s_line_names_a_receipt_and_nothing_else(tmp_path: Path, capsys: Captured) -> None:
    log = tmp_path / "s.jsonl"
    log.write_text('{"receipt": "rcpt_\\u001b[2J\\ngood: all", "proof": null}\n')
    assert main(["audit", "receipt", str(log), *KEY]) == 2
    shown = capsys.readouterr().err
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 1


def test_a_file_too_large_for_a_receipt_is_not_read_into_memory(tmp_path: Path, capsys: Captured) -> None:
    with (tmp_path / "receipt.txt").open("wb") as file:
        file.truncate(1 << 40)
    assert main(["audit", "receipt", str(tmp_path / "receipt.txt"), *KEY]) == 2
    assert "no key, note or receipt" in capsys.readouterr().err
