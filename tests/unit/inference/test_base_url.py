"""Addresses of model servers."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from kala.errors import InvalidArgumentError
from services.inference.base_url import is_forbidden, parse_base_url


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("http://localhost:1234/v1", "http://localhost:1234"),
        ("http://127.0.0.1:1234/v1/", "http://127.0.0.1:1234"),
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://host:1234/v1/chat/completions", "http://host:1234"),
        ("https://models.lan/llm/v1", "https://models.lan:443/llm"),
        ("http://[::1]:1234", "http://[::1]:1234"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("ollama", "http://ollama:11434"),
    ],
)
def test_every_spelling_has_one_form(text: str, normal: str) -> None:
    default = 11434 if ":" not in text else None
    assert str(parse_base_url(text, default_port=default)) == normal


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ftp://x",
        "http://",
        "http://a:99999",
        "http://u:p@host",
        "http://h/?q=1",
        "http://h#f",
        "file:///etc/passwd",
    ],
)
def test_what_is_no_address_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="lmstudio_url"):
        parse_base_url(text, field="lmstudio_url")


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.0.1",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "[::ffff:169.254.169.254]",
        "100.100.100.200",
    ],
)
def test_link_local_and_metadata_addresses_are_refused(host: str) -> None:
    with pytest.raises(InvalidArgumentError, match="link-local, metadata"):
        parse_base_url(f"http://{host}/v1")


@pytest.mark.parametrize("host", ["2852039166", "169.254.43518", "127.1", "0251.0376.0251.0376"])
def test_an_address_that_is_spelled_otherwise_is_refused(host: str) -> None:
    # The system takes it for an address, so no resolver of ours sees where it leads.
    with pytest.raises(InvalidArgumentError, match=r"write one as in 127\.0\.0\.1"):
        parse_base_url(f"http://{host}/v1")


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "192.168.1.5", "::1", "fd12::1", "8.8.8.8"])
def test_ordinary_addresses_are_not_forbidden(address: str) -> None:
    assert not is_forbidden(ip_address(address))


def test_the_names_of_this_machine_are_one_endpoint() -> None:
    endpoints = {
        parse_base_url(f"http://{host}:1234").endpoint for host in ("localhost", "127.0.0.1", "[::1]")
    }
    assert endpoints == {("127.0.0.1", 1234)}
