"""Whether an adapter fits its base, comes from where it says, and has not been revoked."""

from __future__ import annotations

from hashlib import sha256

import pytest

from kala.common.v1 import adapter_pb2 as pb
from kala.errors import VerificationError
from services.common import adapter_manifest as am
from tests.fakes.adapters import TRAINER, AdapterWorld, key, public, refused, set_field, verify

OTHER = sha256(b"something else").digest()


def test_another_base_is_refused():
    world = AdapterWorld()
    signed = world.signed()
    refused(world, "adapter: base digest", signed, base_digest=OTHER)


def _with_ancestor(**changes):
    def change(description: pb.AdapterDescription) -> None:
        root = sha256(b"root").digest()
        description.base.root_digest = root
        ancestor = pb.Ancestor(
            name="adapters/constitution@1", adapter_digest=OTHER, base_digest=root,
            merged_digest=description.base.digest, stage=pb.ADAPTER_STAGE_CONSTITUTIONAL,
        )  # fmt: skip
        for name, value in changes.items():
            setattr(ancestor, name, value)
        description.ancestors.append(ancestor)

    return change


def test_an_unbroken_lineage_passes():
    world = AdapterWorld(on_description=_with_ancestor())
    assert verify(world).description.ancestors[0].name == "adapters/constitution@1"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"base_digest": OTHER}, r"ancestors\[0\]: base digest"),
        ({"merged_digest": OTHER}, "the base that they lead to"),
        ({"adapter_digest": b""}, r"ancestors\[0\]: adapter digest"),
        ({"name": "constitution"}, "no proper name"),
    ],
)
def test_a_broken_lineage_is_refused(changes: dict[str, object], match: str):
    refused(AdapterWorld(on_description=_with_ancestor(**changes)), match)


def test_a_root_that_no_ancestor_explains_is_refused():
    refused(AdapterWorld(on_description=set_field("base.root_digest", OTHER)), "the base that they lead to")


def test_a_revoked_adapter_is_refused():
    world = AdapterWorld()
    signed = world.signed()
    refused(world, "adapters/new-task@1 is revoked", signed, revoked=frozenset({world.digest}))


def test_what_is_built_on_a_revoked_adapter_is_refused():
    world = AdapterWorld(on_description=_with_ancestor())
    refused(world, "ancestor adapters/constitution@1 is revoked", revoked=frozenset({OTHER}))


def _revocations(serial: int = 3, digest: bytes = OTHER) -> pb.SignedRevocationList:
    revocation = pb.Revocation(adapter_digest=digest, reason="it lied")
    return am.sign_revocations(pb.RevocationList(schema=1, serial=serial, revocations=[revocation]), TRAINER)


def test_a_signed_list_of_revocations_is_returned():
    revocations = am.verify_revocations(_revocations(), public(TRAINER), min_serial=3)
    assert [item.adapter_digest for item in revocations.revocations] == [OTHER]


def test_an_older_list_of_revocations_is_refused_because_it_hides_some():
    with pytest.raises(VerificationError, match="serial 3, but 4 was seen"):
        am.verify_revocations(_revocations(), public(TRAINER), min_serial=4)


def test_a_forged_or_broken_list_of_revocations_is_refused():
    with pytest.raises(VerificationError, match="no trusted key"):
        am.verify_revocations(_revocations(), public(key("stranger")))
    with pytest.raises(VerificationError, match="adapter digest 0"):
        am.verify_revocations(_revocations(digest=b"x"), public(TRAINER))
