"""`kala ethics amend` from an edited copy to enough signatures, as two maintainers and an operator go through it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kala.cli import main
from kala.cli.amend import EXIT_UNSIGNED
from kala.ethics.amendment import load_signing_key, sign, write_manifest
from kala.ethics.constitution import read_unverified

CONSTITUTION = Path(__file__).parents[3] / "constitution"
LATER = ("--version", "2.0", "--review-by", "2099-01-01")


@dataclass(frozen=True, slots=True)
class World:
    """A signed version, an edited copy, and the maintainers' keys."""

    old: Path
    new: Path
    keys: list[Path]
    trust: list[str]


@pytest.fixture
def world(tmp_path: Path) -> World:
    keys, trust = [], []
    for number in range(3):
        key = Ed25519PrivateKey.generate()
        keys.append(tmp_path / f"{number}.key")
        keys[-1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        public = tmp_path / f"{number}.pub"
        public.write_bytes(
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        trust += ["--trusted-key", str(public)]
    old = Path(shutil.copytree(CONSTITUTION, tmp_path / "old"))
    write_manifest(old, "1.0", read_unverified(old), review_by=None, previous=None)
    for path in keys[:2]:
        sign(old, load_signing_key(path))
    new = Path(shutil.copytree(old, tmp_path / "new"))
    laws = new / "laws.yaml"
    laws.write_bytes(laws.read_bytes().replace(b"name: ", b"name: The law of ", 1))
    return World(old, new, keys, trust)


def amend(*arguments: str | Path) -> int:
    return main(["ethics", "amend", *map(str, arguments)])


def prepare(world: World) -> int:
    return amend("prepare", "--from", world.old, "--to", world.new, *LATER, *world.trust)


def test_an_amendment_goes_from_an_edited_copy_to_enough_signatures(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(world) == 0
    shown = capsys.readouterr()
    assert "Law 0 (The law of " in shown.out
    assert "Law 1 " in shown.out
    assert "changed laws.yaml" in shown.out
    assert "KALA_ETHICS_ARCHIVE_DIR" in shown.err
    assert amend("diff", world.new, "--from", world.old, *world.trust) == 0
    assert capsys.readouterr().out == shown.out

    assert amend("status", world.new, *world.trust) == EXIT_UNSIGNED
    assert "2 of 2 signatures missing (3 trusted keys)" in capsys.readouterr().out
    assert amend("sign", world.new, "--key", world.keys[0]) == 0
    assert amend("status", world.new, *world.trust) == EXIT_UNSIGNED
    out = capsys.readouterr().out
    assert ": holds\n" in out
    assert out.count("not signed by") == 2
    assert "1 of 2 signatures missing" in out
    assert amend("verify", world.new, *world.trust) == 1
    assert "1 of the 2 signatures" in capsys.readouterr().err

    assert amend("sign", world.new, "--key", world.keys[2]) == 0
    assert amend("status", world.new, *world.trust) == 0
    assert amend("verify", world.new, *world.trust) == 0
    shown = capsys.readouterr()
    assert "constitution 2.0 holds" in shown.out
    assert "2 of 3 trusted keys must sign" in shown.out
    assert "review by 2099-01-01" in shown.out
    assert "warning" not in shown.err


def test_a_threshold_of_all_keys_is_kept(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert amend("verify", world.old, *world.trust, "--threshold", "3") == 1
    assert "2 of the 3 signatures" in capsys.readouterr().err
    assert main(["ethics", "verify", "--dir", str(world.old), *world.trust, "--threshold", "2"]) == 0


def test_a_version_without_a_review_date_is_warned_of(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert amend("verify", world.old, *world.trust) == 0
    assert "warning: constitution 1.0 names no date" in capsys.readouterr().err


def test_status_without_trust_only_lists_who_signed(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert amend("status", world.old) == 0
    shown = capsys.readouterr()
    assert shown.out.count("signed by") == 2
    assert "depends on whom you trust" in shown.err
    prepare(world)
    assert amend("status", world.new) == 0
    assert "signed by nobody" in capsys.readouterr().out


def test_the_old_version_must_hold_before_it_is_amended(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    (world.old / "laws.yaml").write_text("laws: []\n")
    before = (world.new / "manifest.json").read_bytes()
    assert prepare(world) == 1
    assert "laws.yaml: its bytes are not the ones" in capsys.readouterr().err
    assert (world.new / "manifest.json").read_bytes() == before


def test_the_old_version_is_never_overwritten(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    before = (world.old / "manifest.json").read_bytes()
    assert amend("prepare", "--from", world.old, "--to", world.old, *LATER, *world.trust) == 1
    assert "--to: must be an edited copy" in capsys.readouterr().err
    assert (world.old / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give at least one trusted key"),
        (["--development", "--threshold", "1"], "--development trusts one key"),
    ],
    ids=["no trust", "threshold of one"],
)
def test_trust_must_be_said(
    world: World, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert amend("verify", world.old, *arguments) == 1
    assert says in capsys.readouterr().err


def test_a_date_that_is_none_is_a_usage_error(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ("--version", "2.0", "--review-by", "soon")
    assert amend("prepare", "--from", world.old, "--to", world.new, *wrong, *world.trust) == 2
    assert "--review-by" in capsys.readouterr().err
