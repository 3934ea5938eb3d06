"""Arguments are JSON with one reading only, and cost little to refuse."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kala.errors import InvalidArgumentError
from services.tools.toolbox.strict_json import MAX_BYTES, read_object


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be 2 to 1048576 bytes, not 0"),
        ("{", "must be 2 to"),
        ("[]", "must be a JSON object"),
        ("null", "must be a JSON object"),
        ("{}}", "is not JSON at character 3"),
        ("{'a': 1}", "is not JSON"),
        ('{"a": 1,}', "is not JSON"),
        ('{"a": 1} // x', "is not JSON"),
        ('\ufeff{"a": 1}', "is not JSON"),
        ('{"a": 1, "a": 2}', "has the key 'a' twice"),
        ('{"a": 1, "\\u0061": 2}', "has the key 'a' twice"),
        ('{"b": {"a": 1, "a": 2}}', "has the key 'a' twice"),
        ('{"a": NaN}', "must not hold NaN"),
        ('{"a": Infinity}', "must not hold Infinity"),
        ('{"a": -Infinity}', "must not hold -Infinity"),
        ('{"a": 1e999}', "outside of double range"),
        ('{"a": -1e999}', "outside of double range"),
        ('{"a": 0.' + "1" * 100 + "}", "outside of double range"),
        ('{"a": ' + "9" * 5000 + "}", "is too long"),
        ('{"a": 01}', "is not JSON"),
        ('{"a": +1}', "is not JSON"),
        ('{"a": 0x1}', "is not JSON"),
        ('{"a": "\\ud800"}', "half of a surrogate pair"),
        ('{"\\udc00": 1}', "half of a surrogate pair"),
        ('{"a": "\ud800"}', "must be UTF-8"),
        ('{"a": "\n"}', "is not JSON"),
        ('{"a": "\x00"}', "is not JSON"),
        ('{"a": ' + "[" * 33 + "]" * 33 + "}", "nested more than 32 deep"),
        ('{"a":' * 100_000, "nested more than 32 deep"),
        ("[" * MAX_BYTES, "nested more than 32 deep"),
        ('{"a": "' + "x" * MAX_BYTES + '"}', "must be 2 to 1048576 bytes"),
        ('{"a": "' + "\u00e9" * (MAX_BYTES // 2) + '"}', "must be 2 to 1048576 bytes"),
        ('{"a": "' + "x" * (100 * 1024 * 1024) + '"}', "must be 2 to 1048576 bytes"),
        ('"' * 1_000_000, "is not JSON"),
        ("\\" * 1_000_000, "is not JSON"),
    ],
    ids=range(35),
)
def test_what_has_no_single_reading_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(words)) as caught:
        read_object("arguments_json", text)
    assert caught.value.field == "arguments_json"


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**60), 2**60),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
    ),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(value=st.dictionaries(st.text(), JSON), ascii_only=st.booleans())
def test_good_json_is_read_as_it_is(value: dict[str, object], ascii_only: bool) -> None:
    assert read_object("x", json.dumps(value, ensure_ascii=ascii_only)) == value


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet='{}[]",:\\ua0e1.-tfn ', max_size=60))
def test_any_text_is_read_or_refused_and_nothing_else(text: str) -> None:
    try:
        found = read_object("x", text)
    except InvalidArgumentError:
        return
    assert found == json.loads(text)
