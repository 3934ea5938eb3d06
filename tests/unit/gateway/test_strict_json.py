"""JSON that could be read in two ways is refused."""

from __future__ import annotations

import json
from contextlib import suppress

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gateway.strict_json import MAX_DEPTH, read_object
from kala.errors import InvalidArgumentError

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"))
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(max_size=4).filter(lambda t: "\0" not in t), inner)
    ),
)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=5), _VALUES
    )
)
def test_every_plain_object_is_read_as_json_reads_it(value: dict[str, object]) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        try:
            assert read_object(text.encode()) == value
        except UnicodeEncodeError:
            return


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_with_a_place(body: bytes) -> None:
    with suppress(InvalidArgumentError):
        assert isinstance(read_object(body), dict)


def test_the_depth_limit_is_exact() -> None:
    def nested(depth: int) -> bytes:
        return b'{"a":' * depth + b"1" + b"}" * depth

    read_object(nested(MAX_DEPTH))
    with pytest.raises(InvalidArgumentError, match="nests deeper"):
        read_object(nested(MAX_DEPTH + 1))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"a": {"b": 1, "b": 2}}', "b"),
        (b'{"a": [1, {"c": "x\\u0000"}]}', "a[1].c"),
        (b'{"\\u0000": 1}', '"\\u0000"'),
        (b'{"a": "\\udc00"}', "a"),
        (b'\xef\xbb\xbf{"a": 1}', "body"),
    ],
)
def test_the_place_is_named(body: bytes, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read_object(body)
    assert caught.value.field == field


def test_a_pair_of_escapes_and_a_spelt_out_escape_are_fine() -> None:
    assert read_object(b'{"a": "\\ud83d\\ude00", "b": "\\\\u0000"}') == {"a": "😀", "b": "\\u0000"}
