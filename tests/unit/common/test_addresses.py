"""Addresses: two spellings, both strict."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kala.errors import InvalidArgumentError
from services.common.addresses import TcpAddress, UnixAddress, parse_address

GOOD = {
    "unix:/run/kala/ethics.sock": (UnixAddress("/run/kala/ethics.sock"), True),
    "127.0.0.1:50051": (TcpAddress("127.0.0.1", 50051), True),
    "127.9.9.9:1": (TcpAddress("127.9.9.9", 1), True),
    "localhost:0": (TcpAddress("localhost", 0), True),
    "[::1]:50051": (TcpAddress("::1", 50051), True),
    "0.0.0.0:50051": (TcpAddress("0.0.0.0", 50051), False),
    "[::]:50051": (TcpAddress("::", 50051), False),
    "10.0.0.7:65535": (TcpAddress("10.0.0.7", 65535), False),
    "kala-ethics.kala.svc:50051": (TcpAddress("kala-ethics.kala.svc", 50051), False),
    "localhost.example:1": (TcpAddress("localhost.example", 1), False),
    "127.0.0.1.example:1": (TcpAddress("127.0.0.1.example", 1), False),
}


@pytest.mark.parametrize(("text", "expected"), GOOD.items(), ids=GOOD)
def test_an_address_is_read_and_written_back(
    text: str, expected: tuple[TcpAddress | UnixAddress, bool]
) -> None:
    address = parse_address(text)
    assert (address, address.is_local) == expected
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:",
        ":1",
        "host:x",
        "host:65536",
        "host:-1",
        "host:٣",
        "::1:50051",
        "unix:",
        "unix:relative",
    ],
)
def test_anything_else_names_the_field(text: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_address(text, field="audit_address")
    assert caught.value.field == "audit_address"


def test_three_slashes_are_one_path() -> None:
    assert parse_address("unix:///run/x.sock") == UnixAddress("/run/x.sock")


def test_a_path_that_no_socket_can_have_is_refused_before_binding() -> None:
    parse_address("unix:/" + "x" * 106)
    with pytest.raises(InvalidArgumentError, match="longer than 107 bytes"):
        parse_address("unix:/" + "x" * 107)


@given(st.text(max_size=60))
def test_no_text_makes_reading_fail_in_another_way(text: str) -> None:
    try:
        parse_address(text)
    except InvalidArgumentError:
        return
