"""Paths have one meaning; patterns match inside one segment."""

from __future__ import annotations

import os.path
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kala.errors import InvalidArgumentError
from services.tools.files.paths import (
    MAX_PATH_BYTES,
    MAX_PATTERNS,
    Pattern,
    parse_patterns,
    readable_path,
    require_path,
    shown_path,
)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("", "must be 1 to 1024 bytes, not 0"),
        ("/etc/passwd", "must be relative"),
        ("..", "must not hold the segment '..'"),
        ("../secret.txt", "must not hold the segment '..'"),
        ("a/../../secret.txt", "must not hold the segment '..'"),
        ("a/..", "must not hold the segment '..'"),
        (".", "must not hold the segment '.'"),
        ("./a", "must not hold the segment '.'"),
        ("a//b", "must not hold the segment ''"),
        ("a/", "must not hold the segment ''"),
        ("a\0b", "must not hold a NUL"),
        ("\ud800", "must be UTF-8"),
        ("a" * 256, "has a segment of more than 255 bytes"),
        ("ä/" * 342, "must be 1 to 1024 bytes, not 1026"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else None,
)
def test_a_path_that_could_mean_something_else_is_refused(path: str, problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(f"path: {problem}")):
        require_path("path", path)


@pytest.mark.parametrize(
    "path",
    ["a", "a/b.txt", ".hidden", "...", "..a", "a b", "ä/日本", "%2e%2e/x", "..\\secret.txt", "a\nb", "*"],
)
def test_a_plain_path_is_taken_as_it_stands(path: str) -> None:
    assert require_path("path", path) == path


@given(st.text(st.sampled_from("ab./\\\0 ä%"), max_size=12))
def test_no_accepted_path_leaves_the_top(path: str) -> None:
    try:
        require_path("path", path)
    except InvalidArgumentError:
        return
    assert os.path.normpath("/top/" + path) == "/top/" + path


@given(st.binary(min_size=1, max_size=24))
def test_bytes_that_have_no_path_are_shown_but_cannot_be_asked_for(raw: bytes) -> None:
    path = readable_path(raw)
    assert path is None or path.encode() == raw
    assert shown_path(raw).encode()


def test_bytes_that_are_not_utf_8_are_shown_replaced() -> None:
    assert (shown_path(b"out/\xff"), readable_path(b"out/\xff")) == ("out/�", None)


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("out/*", "out/a", True),
        ("out/*", "out/a/b", False),
        ("out/*", "out", False),
        ("*", "a", True),
        ("*", ".a", True),
        ("*/b", "a/b", True),
        ("*.png", "a.png", True),
        ("*.png", "a/b.png", False),
        ("a*b*c", "abc", True),
        ("a*b*c", "aXbXc", True),
        ("a*b*c", "acb", False),
        ("a*a", "a", False),
        ("ab*ba", "aba", False),
        ("a**b", "ab", True),
        ("a?", "ab", False),
        ("[ab]", "a", False),
        ("[ab]", "[ab]", True),
    ],
)
def test_a_star_stands_for_any_characters_of_one_segment(pattern: str, path: str, matches: bool) -> None:
    assert Pattern.parse("artifacts", pattern).matches(path) is matches


@given(st.text("ab*", min_size=1, max_size=8), st.text("ab", min_size=1, max_size=10))
def test_a_segment_matches_as_the_regular_expression_would(pattern: str, name: str) -> None:
    expected = re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), name) is not None
    assert Pattern.parse("artifacts", pattern).matches(name) is expected


def test_a_pattern_of_many_stars_costs_no_time() -> None:
    assert not Pattern.parse("artifacts", "a*" * 127).matches("a" * 126 + "b")


def test_a_pattern_that_leaves_the_workspace_names_its_place() -> None:
    with pytest.raises(InvalidArgumentError, match=r"artifacts\[1\]: must not hold the segment '\.\.'"):
        parse_patterns("artifacts", ["out/*", "../*"])


def test_too_many_patterns_name_the_limit() -> None:
    with pytest.raises(InvalidArgumentError, match=f"artifacts: names 65 patterns, at most {MAX_PATTERNS}"):
        parse_patterns("artifacts", ["a"] * 65)


def test_the_longest_path_is_taken() -> None:
    path = "/".join(["a" * 255] * 4) + "b"
    assert len(path) == MAX_PATH_BYTES
    with pytest.raises(InvalidArgumentError, match="a segment of more than 255"):
        require_path("path", path)
    assert require_path("path", "/".join(["a" * 203] * 5)).count("/") == 4
