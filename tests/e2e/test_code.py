"""Code in a whole suite: repaired with its tests over REST, and generated under a prompt that tools presents."""

from __future__ import annotations

import shutil
from typing import Any

import httpx
import pytest

from tests.e2e.suites import Suite
from tests.fakes.lm_studio import FakeLMStudio

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")

CODE = """\
import sqlite3


def find(db, name):
    # Rows of one person.
    return db.execute(f"SELECT age FROM people WHERE name = '{name}'").fetchall()


def connect():
    return sqlite3.connect(":memory:")
"""
TEST = """\
import unittest

import people


class People(unittest.TestCase):
    def test_find(self):
        db = people.connect()
        db.execute("CREATE TABLE people (name TEXT, age INT)")
        db.execute("INSERT INTO people VALUES ('ann', 7)")
        self.assertEqual(people.find(db, "ann"), [(7,)])
"""


def post(suite: Suite, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(
        f"{suite.url}/kala/v1/tools/{path}",
        json=body,
        headers={"authorization": f"Bearer {suite.key}"},
        timeout=120,
    )


def test_code_is_repaired_and_its_tests_still_pass(tool_suite: Suite) -> None:
    tests = {
        "files": [{"path": "test_people.py", "content": TEST}],
        "command": ["python3", "-m", "unittest", "test_people"],
    }
    files = [{"path": "people.py", "content": CODE}]
    response = post(tool_suite, "code:repair", {"files": files, "tests": tests})
    assert response.status_code == 200, response.text
    outcome = response.json()["outcome"]
    assert [each["rewrite"] for each in outcome["repairs"]] == ["kala.rewrite.parameterised_query"]
    assert "WHERE name = ?" in outcome["files"][0]["content"]
    assert outcome["tests_before"]["passed"], outcome["tests_before"]
    assert outcome["tests_after"]["passed"], outcome["tests_after"]
    assert outcome["after"]["findings"] == []


def test_a_model_is_asked_for_code_under_a_clearance_that_tools_presents(
    tool_suite: Suite, upstream: FakeLMStudio
) -> None:
    body = {"task": "Write a function that adds two numbers.", "language": "LANGUAGE_PYTHON"}
    response = post(tool_suite, "code:generate", body)
    assert response.status_code == 200, response.text
    made = response.json()
    # The scripted model answers in words.
    assert made["reasons"] == ["the model's answer holds no code"]
    assert made["accepted"] is False
    assert made["generation_id"]
    system, user = upstream.asked[-1]["messages"]
    assert "```python" in str(system["content"])
    assert "adds two numbers" in str(user["content"])
