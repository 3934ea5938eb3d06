"""Canonical JSON: one spelling per value, and no value outside the subset."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kala.audit import canonical
from kala.errors import VerificationError

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
KEYS = st.text(st.characters(max_codepoint=127))
INTEGERS = st.integers(-canonical.MAX_INTEGER, canonical.MAX_INTEGER)
VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_a_value_survives_and_has_one_spelling(value: canonical.Json) -> None:
    data = canonical.encode(value)
    assert canonical.decode(data) == value
    assert canonical.encode(canonical.decode(data)) == data


@given(VALUES)
def test_the_service_s_faster_encoder_spells_the_same(value: canonical.Json) -> None:
    assert orjson.dumps(value, option=orjson.OPT_SORT_KEYS) == canonical.encode(value)


def test_the_spelling_is_that_of_rfc_8785() -> None:
    # RFC 8785 section 3.2.3, its example without the floats.
    value: canonical.Json = {
        "string": '\u20ac$\u000f\nA\'B"\\\\"/',
        "literals": [None, True, False],
        "numbers": [333],
    }
    expected = (
        '{"literals":[null,true,false],"numbers":[333],"string":"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical.encode(value) == expected.encode()


@pytest.mark.parametrize(
    "data",
    [
        b'{"b":1,"a":2}',
        b'{"a": 1}',
        b"[1.0]",
        b"[1e3]",
        b"[NaN]",
        b"[-0]",
        b'{"a":1,"a":1}',
        b'"\\u0041"',
        b'"\\/"',
        b"[9007199254740992]",
        b"\xff",
        b"",
        b"[1] ",
        b"[" * 40 + b"]" * 40,
        b"[" * 100_000,
        b"[" + b"9" * 5_000 + b"]",
        b'"\\ud800"',
    ],
)
def test_another_spelling_is_rejected(data: bytes) -> None:
    with pytest.raises(VerificationError):
        canonical.decode(data)


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        float("nan"),
        {"\u00e9": 1},
        (1,),
        b"x",
        "\ud800",
        2**53,
        {1: 2},
        [[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]],
    ],
)
def test_a_value_outside_the_subset_is_rejected(value: object) -> None:
    with pytest.raises((VerificationError, AttributeError)):
        canonical.encode(value)  # type: ignore[arg-type] # that is the point
