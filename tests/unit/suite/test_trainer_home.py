"""The trainer's home on one machine, and the first list of revocations that inference starts with."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from kala.common.v1.adapter_pb2 import SignedRevocationList
from kala.errors import FailedPreconditionError, VerificationError
from kala.suite import trainer_home as module
from kala.suite.keyring import make_keyring
from kala.suite.layout import StateLayout
from kala.suite.trainer_home import bases_directory, trainer_home
from services.common.adapter_manifest import verify_revocations
from services.common.keys import load_public_keys


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateLayout:
    monkeypatch.setattr(module, "REQUIRED_PACKAGES", ())
    layout = StateLayout.at(tmp_path / "state")
    layout.create()
    return layout


def test_the_first_list_revokes_nothing_and_is_older_than_any_that_follows(layout: StateLayout) -> None:
    keyring, _ = make_keyring(layout.keys, layout.trust)
    home = trainer_home(layout, keyring)
    signed = SignedRevocationList.FromString(home.revocations.read_bytes())
    trusted = load_public_keys([keyring.trainer_public_key])
    listed = verify_revocations(signed, trusted)
    assert (listed.serial, len(listed.revocations)) == (0, 0)
    with pytest.raises(VerificationError, match="serial 0, but 1"):
        verify_revocations(signed, trusted, min_serial=1)
    for folder in (home.state, home.adapters, home.data):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_list_that_the_trainer_made_stays(layout: StateLayout) -> None:
    keyring, _ = make_keyring(layout.keys, layout.trust)
    trainer_home(layout, keyring).revocations.write_bytes(b"the trainer's")
    assert trainer_home(layout, keyring).revocations.read_bytes() == b"the trainer's"


def test_a_list_that_is_gone_is_not_begun_anew_where_the_trainer_has_worked(layout: StateLayout) -> None:
    """A new list would hide what was revoked; inference refuses to start until the trainer has written its own again."""
    keyring, _ = make_keyring(layout.keys, layout.trust)
    home = trainer_home(layout, keyring)
    home.revocations.unlink()
    home.database.touch()
    assert not trainer_home(layout, keyring).revocations.exists()


def test_missing_packages_are_named_with_their_cure(
    layout: StateLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyring, _ = make_keyring(layout.keys, layout.trust)
    monkeypatch.setattr(module, "REQUIRED_PACKAGES", ("sys", "absent_package", "absent_package.inner"))
    with pytest.raises(
        FailedPreconditionError, match=r"absent_package, absent_package\.inner is missing.*pip"
    ):
        trainer_home(layout, keyring)


def test_bases_lie_where_inference_pulls_models_to() -> None:
    assert bases_directory({"KALA_INFERENCE_MODELS_DIR": "/models"}) == "/models"
    assert bases_directory({}).endswith(".cache/kala/models")
