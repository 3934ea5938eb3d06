"""`kala audit receipt` offline: what holds, what does not, and what cannot be told, by exit code."""

from __future__ import annotations

import hashlib
import hmac
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kala.audit.checkpoint import Checkpoint
from kala.audit.leaf import SCHEMA, build_leaf
from kala.audit.note import Signer
from kala.audit.receipt import receipt_text
from kala.cli import main

SALT = bytes(range(32))
ANSWER = "A fair answer.\n"


def leaf_values() -> dict[str, Any]:
    commitment = hmac.new(SALT, ANSWER.encode(), hashlib.sha256).hexdigest()
    return {
        "schema": SCHEMA,
        "type": "chat.outcome",
        "idempotency_key": "0f" * 16,
        "producer": {"id": "gateway-0", "boot": "00" * 8, "seq": 1},
        "recorded_by": "local:gateway",
        "occurred_at": "2026-01-01T00:00:00.000000Z",
        "recorded_at": "2026-01-01T00:00:00.000001Z",
        "skew_flag": False,
        "tenant": "default",
        "actor": None,
        "subject_key_id": None,
        "trace_id": None,
        "intent": None,
        "action": None,
        "decision": None,
        "model": None,
        "result": None,
        "commitments": [
            {"kind": "released", "hmac": commitment, "ciphertext_sha256": None, "bytes": len(ANSWER.encode())}
        ],
        "execution_id": None,
        "gate": None,
        "references": [],
        "attributes": [],
        "record_digest": "00" * 32,
    }


@dataclass(frozen=True, slots=True)
class World:
    """A log of one entry, its receipt, its key and what was released."""

    receipt: Path
    vkey: Path
    released: Path


@pytest.fixture
def world(tmp_path: Path) -> World:
    signer = Signer.of("kala.local/audit", b"\x01" * 32)
    leaf = build_leaf(leaf_values())
    checkpoint = signer.sign(Checkpoint("kala.local/audit", 1, leaf.hash).text())
    (tmp_path / "receipt.txt").write_text(receipt_text(leaf.data, 0, (), checkpoint))
    (tmp_path / "audit.vkey").write_text(f"{signer.verifier}\n")
    (tmp_path / "released.txt").write_text(ANSWER)
    return World(tmp_path / "receipt.txt", tmp_path / "audit.vkey", tmp_path / "released.txt")


def test_a_good_receipt_is_verified_by_a_file_or_a_pasted_key(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", "receipt", str(world.receipt), "--vkey", str(world.vkey)]) == 0
    assert "entry 0 of kala.local/audit" in capsys.readouterr().out
    assert main(["audit", "receipt", str(world.receipt), "--vkey", world.vkey.read_text().strip()]) == 0


def test_the_released_text_is_checked_against_its_commitment(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "audit",
        "receipt",
        str(world.receipt),
        "--vkey",
        str(world.vkey),
        "--released",
        str(world.released),
    ]
    assert main([*command, "--opening", SALT.hex()]) == 0
    assert "is the one that was logged" in capsys.readouterr().out
    world.released.write_text("Another answer.")
    assert main([*command, "--opening", SALT.hex()]) == 1
    assert main(command) == 2
    assert main([*command, "--opening", "zz"]) == 2


def test_what_cannot_be_read_is_said_in_one_line(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    receipt = ["audit", "receipt", str(world.receipt)]
    gone = str(world.released.with_name("gone.txt"))
    opening = ["--released", gone, "--opening", SALT.hex()]
    assert main([*receipt, "--vkey", str(world.vkey), *opening]) == 2
    assert "gone.txt cannot be read" in capsys.readouterr().err
    assert main([*receipt, "--vkey", "a" * 300 + "+b+c"]) == 2
    assert "unverifiable: --vkey" in capsys.readouterr().err


def test_every_flipped_byte_of_a_receipt_is_noticed(world: World) -> None:
    good = world.receipt.read_bytes()
    for position in range(0, len(good), 37):
        world.receipt.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        assert main(["audit", "receipt", str(world.receipt), "--vkey", str(world.vkey)]) in {1, 2}, position


def test_the_key_of_another_log_verifies_nothing(world: World) -> None:
    other = Signer.of("kala.local/audit", b"\x02" * 32).verifier
    assert main(["audit", "receipt", str(world.receipt), "--vkey", str(other)]) == 1


def test_json_output_is_one_object(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "receipt", str(world.receipt), "--vkey", str(world.vkey), "--json"]) == 0
    parsed = json.loads(capsys.readouterr().out)
    assert (parsed["result"], parsed["index"], parsed["leaf"]["type"]) == ("good", 0, "chat.outcome")


def test_verifying_a_receipt_needs_no_grpc_no_protobuf_and_no_network(world: World) -> None:
    code = (
        "import sys; from kala.cli import main\n"
        f"code = main(['audit', 'receipt', {str(world.receipt)!r}, '--vkey', {str(world.vkey)!r}])\n"
        "bad = {'grpc', 'google.protobuf', 'httpx', 'sqlalchemy', 'services'} & set(sys.modules)\n"
        "sys.exit(code or (3 if bad else 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
