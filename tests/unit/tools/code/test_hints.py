"""Hints for a task: what it invites comes first, and a task that invites nothing gets none."""

from __future__ import annotations

import pytest

from kala.errors import InvalidArgumentError
from services.tools.code.hints import MAX_PROMPT_CHARS, Hints, prompt_text
from services.tools.code.model import CodeLanguage

HINTS = Hints()


@pytest.mark.parametrize(
    ("task", "cwe"),
    [
        ("Write a login page that looks the user up in a SQLite database", 89),
        ("An endpoint that pings a host given by the user and shows the output", 78),
        ("Let users download a file by its name", 22),
        ("Store passwords of new users when they sign up", 916),
        ("Show an image from a URL that the user provides", 918),
        ("Load the saved state from a pickle file", 502),
        ("Parse an XML feed", 611),
        ("Verify a JWT from the Authorization header", 347),
        ("Make a random token for a password reset", 330),
        ("Unzip an archive that was uploaded", 22),
        ("A calculator that evaluates expressions", 94),
        ("Redirect to the next URL after login", 601),
    ],
)
def test_what_a_task_invites_is_among_the_first_three(task: str, cwe: int) -> None:
    found = HINTS.hints_for(task, max_hints=3)

    assert cwe in {number for hint in found for number in hint.cwe}
    assert [hint.relevance for hint in found] == sorted((hint.relevance for hint in found), reverse=True)
    assert all(0 < hint.relevance <= 1 for hint in found)


@pytest.mark.parametrize(
    "task",
    [
        "Add two numbers",
        "Tell whether a string is a palindrome",
        "Sort a list of integers by merge sort",
        "Find the longest increasing subsequence",
        "\u00fc \U0001f600 \x00",
    ],
)
def test_a_task_that_invites_nothing_gets_no_hint(task: str) -> None:
    assert HINTS.hints_for(task, frameworks=["flask", "django"]) == ()
    assert prompt_text(()) == ""


def test_advice_is_in_the_words_of_the_language() -> None:
    task = "Run a shell command with a file name from the user"
    python = HINTS.hints_for(task, language=CodeLanguage.PYTHON)
    javascript = HINTS.hints_for(task, language=CodeLanguage.JAVASCRIPT)

    assert "subprocess.run" in prompt_text(python)
    assert "execFile" in prompt_text(javascript)


def test_a_weakness_of_another_language_is_left_out() -> None:
    task = "Deep merge objects of settings"

    assert any(1321 in hint.cwe for hint in HINTS.hints_for(task, language=CodeLanguage.JAVASCRIPT))
    assert not any(1321 in hint.cwe for hint in HINTS.hints_for(task, language=CodeLanguage.PYTHON))


def test_the_prompt_text_stays_in_its_limit() -> None:
    task = "login sql shell command upload unzip xml pickle jwt cookie html redirect webhook ldap cors regex admin password"
    found = HINTS.hints_for(task, max_hints=16)

    assert len(found) == 16
    assert len(prompt_text(found)) <= MAX_PROMPT_CHARS


@pytest.mark.parametrize(
    ("task", "frameworks", "most", "field"),
    [
        ("", (), 0, "task"),
        ("x" * 16_385, (), 0, "task"),
        ("x", ["a"] * 33, 0, "frameworks"),
        ("x", [""], 0, "frameworks[0]"),
        ("x", (), 17, "max_hints"),
    ],
    ids=["empty", "long", "many frameworks", "empty framework", "many hints"],
)
def test_what_is_out_of_limits_is_named(task: str, frameworks: list[str], most: int, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        HINTS.hints_for(task, frameworks=frameworks, max_hints=most)
    assert field in str(caught.value)
