from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kala.ethics.amendment import sign, write_manifest
from kala.ethics.constitution import read_unverified
from services.common.keys import write_private_key, write_public_key

REPOSITORY = Path(__file__).parents[3]
SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kala-") as directory:
        home = Path(directory)
        shutil.copytree(REPOSITORY / "constitution", home / "constitution")
        write_private_key(home / "ethics.key", Ed25519PrivateKey.generate())
        yield home


def start(home: Path, **settings: str) -> subprocess.Popen[str]:
    values = {
        "ADDRESS": f"unix:{home}/e.sock",
        "CONSTITUTION_DIR": str(home / "constitution"),
        "SIGNING_KEY_FILE": str(home / "ethics.key"),
        "TRUST": "development",
        "REVERIFY_SECONDS": "0.2",
        "METRICS_PORT": "off",
    } | settings
    environ = {f"KALA_ETHICS_{name}": value for name, value in values.items() if value}
    return subprocess.Popen(
        [sys.executable, "-m", "services.ethics"],
        cwd=home,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), **environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(holds: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def is_serving(home: Path) -> bool:
    with grpc.insecure_channel(f"unix:{home}/e.sock") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            status = stub.Check(
                health_pb2.HealthCheckRequest(), timeout=1, metadata=[("kala-peer", "gateway")]
            ).status
        except grpc.RpcError:
            return False
        return bool(status == SERVING)


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=30)
    return process.returncode, errors


def last_line(errors: str) -> str:
    return errors.strip().splitlines()[-1]


def test_it_serves_with_a_banner_until_it_is_told_to_stop(home: Path) -> None:
    process = start(home)
    wait_until(lambda: is_serving(home))
    process.send_signal(signal.SIGTERM)
    code, errors = end_of(process)
    assert code == 0
    assert "DEVELOPMENT CONSTITUTION" in errors


def test_a_law_that_changes_while_it_runs_ends_it_and_names_the_file(home: Path) -> None:
    process = start(home)
    wait_until(lambda: is_serving(home))
    laws = home / "constitution" / "laws.yaml"
    laws.write_bytes(laws.read_bytes() + b" ")
    code, errors = end_of(process)
    assert code == 2
    assert last_line(errors).startswith("laws.yaml: its bytes are not the ones that were signed")


def test_a_hard_block_changed_before_the_start_stops_it_and_is_named(home: Path) -> None:
    block = home / "constitution" / "hard_blocks" / "law2.yaml"
    block.write_bytes(block.read_bytes().replace(b"hack", b"h4ck", 1))
    code, errors = end_of(start(home))
    assert code == 2
    assert last_line(errors).startswith("hard_blocks/law2.yaml:")


def test_pinned_trust_refuses_the_development_constitution(home: Path) -> None:
    write_public_key(home / "mine.pub", Ed25519PrivateKey.generate().public_key())
    code, errors = end_of(start(home, TRUST="pinned", TRUSTED_KEY_FILES=str(home / "mine.pub")))
    assert code == 2
    assert last_line(errors).startswith("manifest.sig: signed by")


def test_one_signature_where_two_of_three_are_needed_stops_the_start(home: Path) -> None:
    keys = [Ed25519PrivateKey.generate() for _ in range(3)]
    for number, key in enumerate(keys):
        write_public_key(home / f"{number}.pub", key.public_key())
    write_manifest(
        home / "constitution", "2", read_unverified(home / "constitution"), review_by=None, previous=None
    )
    sign(home / "constitution", keys[0])
    trusted = ",".join(str(home / f"{number}.pub") for number in range(3))
    code, errors = end_of(start(home, TRUST="pinned", TRUSTED_KEY_FILES=trusted))
    assert code == 2
    assert "1 of the 2 signatures that it takes from 3 trusted keys" in last_line(errors)

    sign(home / "constitution", keys[2])
    process = start(home, TRUST="pinned", TRUSTED_KEY_FILES=trusted)
    wait_until(lambda: is_serving(home))
    process.send_signal(signal.SIGTERM)
    code, errors = end_of(process)
    assert code == 0
    assert "due for review" in errors


def test_laws_manifest_signature_and_shipped_key_replaced_together_stop_the_start(home: Path) -> None:
    attacker, constitution = Ed25519PrivateKey.generate(), home / "constitution"
    laws = constitution / "laws.yaml"
    laws.write_bytes(laws.read_bytes().replace(b"shall not", b"shall", 1))
    write_public_key(constitution / "dev" / "development.pub", attacker.public_key())
    write_manifest(constitution, "1.0.0", read_unverified(constitution), review_by=None, previous=None)
    sign(constitution, attacker)
    code, errors = end_of(start(home))
    assert code == 2
    assert last_line(errors).startswith("manifest.sig: signed by")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"TRUST": ""}, "trusted_key_files: none given"),
        ({"SIGNING_KEY_FILE": ""}, "KALA_ETHICS_SIGNING_KEY_FILE"),
        ({"SIGNING_KEY_FILE": "/nowhere.key"}, "/nowhere.key cannot be read"),
        ({"COLOUR": "red"}, "KALA_ETHICS_COLOUR"),
    ],
    ids=["no trust", "no key", "missing key", "unknown setting"],
)
def test_a_wrong_start_is_one_line_that_names_the_fault(
    home: Path, settings: dict[str, str], line: str
) -> None:
    code, errors = end_of(start(home, **settings))
    assert code == 2
    assert line in last_line(errors)
