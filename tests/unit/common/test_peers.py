"""Names of callers: proven by a certificate, or claimed on this machine and marked as such."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kala.errors import UnauthenticatedError
from services.common.peers import METRICS_PORTS, Peer, identify

PLAIN = {"transport_security_type": [b"insecure"]}
TLS = {"transport_security_type": [b"ssl"]}
CLAIM = (("kala-peer", "gateway"),)


@pytest.mark.parametrize(
    "transport", ["unix:", "unix:/x", "ipv4:127.0.0.1:5", "ipv6:[::1]:5", "ipv6:%5B::1%5D:5"]
)
def test_a_claim_on_this_machine_is_marked_local(transport: str) -> None:
    peer = identify(transport=transport, auth=PLAIN, metadata=CLAIM)
    assert (peer.name, peer.part, peer.is_local) == ("local:gateway", "gateway", True)


@pytest.mark.parametrize(
    "transport", ["ipv4:10.0.0.1:5", "ipv6:[fe80::1]:5", "ipv4:12.7.0.1:5", "", "vsock:1:2"]
)
def test_a_claim_from_another_machine_counts_for_nothing(transport: str) -> None:
    with pytest.raises(UnauthenticatedError, match="TLS"):
        identify(transport=transport, auth=PLAIN, metadata=CLAIM)


def test_a_certificate_beats_a_claim() -> None:
    auth = {**TLS, "peer_dns": [b"tools", b"gateway"], "x509_common_name": [b"audit"]}
    peer = identify(transport="ipv4:10.0.0.1:5", auth=auth, metadata=CLAIM)
    assert (peer.name, peer.part, peer.is_local) == ("tools", "tools", False)


def test_a_certificate_without_dns_names_is_known_by_its_common_name() -> None:
    assert identify(transport="", auth={**TLS, "x509_common_name": [b"audit"]}, metadata=()).name == "audit"


@pytest.mark.parametrize("auth", [TLS, {**TLS, "x509_common_name": [b""]}], ids=["none", "empty"])
def test_a_certificate_without_any_name_is_nobody(auth: dict[str, list[bytes]]) -> None:
    with pytest.raises(UnauthenticatedError, match="no name"):
        identify(transport="unix:", auth=auth, metadata=CLAIM)


@pytest.mark.parametrize(
    "name",
    ["local:gateway", "a b", "a\nb", "ga\u0442eway", "x" * 254, "\x00"],
    ids=["colon", "space", "newline", "homoglyph", "long", "nul"],
)
def test_a_name_that_is_not_a_host_name_is_nobody(name: str) -> None:
    with pytest.raises(UnauthenticatedError, match="not a host name"):
        identify(transport="unix:", auth=PLAIN, metadata=(("kala-peer", name),))
    with pytest.raises(UnauthenticatedError, match="not a host name"):
        identify(transport="", auth={**TLS, "x509_common_name": [name.encode()]}, metadata=())


def test_no_claim_is_nobody() -> None:
    with pytest.raises(UnauthenticatedError, match="kala-peer"):
        identify(transport="unix:", auth=PLAIN, metadata=(("kala-peer-bin", b"gateway"),))


@given(st.text(max_size=300))
def test_a_claimed_name_never_equals_a_proven_one(name: str) -> None:
    try:
        peer = identify(transport="unix:", auth=PLAIN, metadata=(("kala-peer", name),))
    except UnauthenticatedError:
        return
    assert peer.is_local
    assert not Peer(name).is_local


def test_metrics_ports_follow_the_order_of_the_parts() -> None:
    assert METRICS_PORTS == {
        "gateway": 9461, "console": 9462, "ethics": 9463, "inference": 9464,
        "tools": 9465, "audit": 9466, "trainer": 9467,
    }  # fmt: skip
