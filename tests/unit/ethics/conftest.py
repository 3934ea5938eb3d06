"""One verified constitution and its judges for all tests of the domain."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kala.ethics.constitution import Trust, verify_constitution
from services.ethics.fold import Folder
from services.ethics.hard_blocks import Finding, HardBlocks
from services.ethics.judge import Stage
from services.ethics.laws import Constitution, read_constitution
from services.ethics.views import Reader

CONSTITUTION = Path(__file__).parents[3] / "constitution"
LISTS = Path(__file__).parent


class Rules:
    """The shipped hard blocks behind one call."""

    def __init__(self, constitution: Constitution) -> None:
        self.reader = Reader(Folder(constitution.look_alikes))
        self.blocks = HardBlocks(constitution.blocks)

    def find(self, text: str, stage: Stage = Stage.REQUEST) -> list[Finding]:
        reading = self.reader.read(text)
        return self.blocks.find(reading.views, stage, opaque=bool(reading.opaque))

    def ids(self, text: str, stage: Stage = Stage.REQUEST) -> set[str]:
        return {finding.block.id for finding in self.find(text, stage)}


def write_public_key(path: Path, key: Ed25519PrivateKey) -> Path:
    pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    path.write_bytes(pem)
    return path


def lines(name: str) -> list[str]:
    text = (LISTS / name).read_text()
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="session")
def constitution() -> Constitution:
    return read_constitution(verify_constitution(CONSTITUTION, Trust.development()))


@pytest.fixture(scope="session")
def rules(constitution: Constitution) -> Rules:
    return Rules(constitution)


@pytest.fixture(scope="session")
def reader(rules: Rules) -> Reader:
    return rules.reader
