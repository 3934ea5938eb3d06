"""`kala adapters verify`: an adapter's folder against the keys that a suite pins, without any service."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kala.cli import main
from kala.suite.layout import StateLayout
from services.common.adapter_manifest import MANIFEST_FILE
from services.common.adapter_weights import WEIGHTS_FILE
from services.common.keys import write_public_key
from tests.fakes.adapters import ETHICS, LOG, TOOLS, TRAINER, AdapterWorld


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A suite's directory with its public keys and one adapter."""
    layout = StateLayout(tmp_path / "state")
    layout.trust.mkdir(parents=True)
    for name, key in (("trainer", TRAINER), ("ethics", ETHICS), ("tools", TOOLS)):
        write_public_key(layout.trust / f"{name}.pub", key.public_key())
    layout.vkey_file.write_text(f"{LOG.verifier}\n")
    world = AdapterWorld()
    folder = layout.data / "trainer" / "adapters" / "new-task@1"
    folder.mkdir(parents=True)
    signed = world.signed()
    for name, data in world.files.items():
        (folder / name).write_bytes(data)
    (folder / MANIFEST_FILE).write_bytes(signed.SerializeToString())
    (tmp_path / "profile.json").write_bytes(world.profile)
    return layout.root


def verify(state: Path, adapter: str = "adapters/new-task@1", *more: str) -> int:
    profile = str(state.parent / "profile.json")
    return main(["adapters", "verify", adapter, "--profile", profile, "--state", str(state), *more])


def test_an_adapter_of_the_suite_holds_and_its_chain_is_shown(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(state) == 0
    shown = capsys.readouterr().out
    assert "adapters/new-task@1 holds" in shown
    assert "learned from  datasets/tasks@1" in shown
    assert "receipt rcpt_" in shown


def test_a_folder_anywhere_may_be_named_and_read_by_programs(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = state / "data" / "trainer" / "adapters" / "new-task@1"
    assert verify(state, str(folder), "--json") == 0
    assert json.loads(capsys.readouterr().out)["verified"] is True


def test_an_altered_file_is_named(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = state / "data" / "trainer" / "adapters" / "new-task@1" / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert verify(state, "new-task@1", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verified"] is False
    assert f"file {WEIGHTS_FILE}: SHA-256" in found["reason"]


def test_another_trainer_s_signature_does_not_count(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(state, "new-task@1", "--trainer-key", str(state / "trust" / "ethics.pub")) == 1
    assert "no trusted key signed it" in capsys.readouterr().err


def test_laws_that_are_no_longer_in_force_are_named(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(state, "new-task@1", "--constitution", "00" * 32) == 1
    assert "outdated" in capsys.readouterr().err


def test_what_is_not_there_is_said(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(state, "gone@1") != 0
    assert "name the adapter's folder" in capsys.readouterr().err
