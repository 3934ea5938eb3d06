"""What a caller of the bridge says of a call in its headers, and bodies that are one field of a message."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call_options import MIN_SECONDS, CallOptions, read_options
from gateway.transcoding import read_message
from kala.errors import InvalidArgumentError
from kala.gateway.v1 import gateway_pb2
from kala.tools.v1 import tools_pb2

LISTED: dict[str, Any] = {
    "keys": [
        {"name": "keys/a", "tenant": "x", "scopes": []},
        {"name": "keys/b", "tenant": "y", "scopes": []},
    ],
    "next_page_token": "t",
}


def shown(mask: str | None) -> Any:
    headers = {} if mask is None else {"x-goog-fieldmask": mask}
    return read_options(headers, gateway_pb2.ListKeysResponse).shown(LISTED)


@pytest.mark.parametrize("mask", [None, "*", " * "])
def test_without_a_mask_all_of_an_answer_is_shown(mask: str | None) -> None:
    assert shown(mask) == LISTED


def test_a_mask_reaches_into_lists() -> None:
    assert shown("keys.name,next_page_token") == {
        "keys": [{"name": "keys/a"}, {"name": "keys/b"}],
        "next_page_token": "t",
    }
    assert shown(" keys.tenant , keys.name ")["keys"][1] == {"tenant": "y", "name": "keys/b"}


@pytest.mark.parametrize(
    "mask", ["", ",", "keys,", "nothing", "keys.nothing", "next_page_token.x", "keys..name", "Keys"]
)
def test_a_mask_that_names_no_field_is_refused(mask: str) -> None:
    with pytest.raises(InvalidArgumentError, match="x-goog-fieldmask"):
        shown(mask)


@given(st.floats(1, 86_400), st.floats(0, 10_000_000), st.floats(1, 86_400))
def test_a_call_never_gets_more_than_its_own_limit_or_what_is_left(
    asked: float, elapsed_ms: float, limit: float
) -> None:
    seconds = CallOptions(timeout_seconds=asked).seconds(limit, elapsed_ms=elapsed_ms)
    assert MIN_SECONDS <= seconds <= limit
    assert seconds <= max(MIN_SECONDS, asked - elapsed_ms / 1000)
    assert CallOptions().seconds(limit, elapsed_ms=elapsed_ms) == limit


@pytest.mark.parametrize("text", ["", "0", "-1", "1e3", "nan", "inf", "86401", "1,5", " 1", "0x10", "٣"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"x-server-timeout: must be 0\.001 to 86400 seconds"):
        read_options({"x-server-timeout": text}, gateway_pb2.ListKeysResponse)


def test_no_time_is_no_bound() -> None:
    assert read_options({}, gateway_pb2.ListKeysResponse).timeout_seconds == math.inf


def read(body: bytes, query: str = "", **variables: str) -> Any:
    variables = {"name": "keys/a", **variables}
    return read_message(
        gateway_pb2.UpdateKeyRequest, body=body, query=query, variables=variables, taken="limits"
    )


def test_the_fields_of_a_body_that_is_one_field_are_the_mask_unless_the_query_has_one() -> None:
    patched = read(b'{"requests_per_minute": 5}', "display_name=laptop")
    assert (patched.name, patched.display_name) == ("keys/a", "laptop")
    assert patched.limits.requests_per_minute == 5
    assert list(patched.update_mask.paths) == ["requests_per_minute"]
    for spelt in ("requests_per_minute", "requestsPerMinute"):
        masked = read(b"{}", f"update_mask={spelt}")
        assert list(masked.update_mask.paths) == ["requests_per_minute"]


def test_a_body_that_contradicts_the_query_or_has_no_such_field_is_refused() -> None:
    for body, query in ((b"{}", "limits.requests_per_minute=1"), (b"[]", ""), (b'{"x": 1}', "")):
        with pytest.raises(InvalidArgumentError):
            read(body, query)


def test_a_clearance_in_such_a_body_is_refused_too() -> None:
    with pytest.raises(InvalidArgumentError, match="not taken from outside"):
        read_message(
            tools_pb2.GenerateCodeAction,
            body=b'{"clearance": {"key_id": "x"}}',
            query="",
            variables={},
            taken="generation",
        )
