"""RepairCode as it really runs: real tests in the real sandbox, as a user without rights."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kala.tools.v1 import code_pb2, execution_pb2
from kala.tools.v1 import tools_pb2 as pb
from tests.fakes.tools_process import process
from tests.service.tools.conftest import Tools
from tests.service.tools.test_repair import repair
from tests.tools_runtime import unprivileged_directory

pytestmark = [
    pytest.mark.skipif(not Path("/usr/bin/bwrap").exists(), reason="bubblewrap is not installed"),
    pytest.mark.asyncio(loop_scope="module"),
]

CODE = textwrap.dedent("""\
    import hashlib
    import os
    import sqlite3
    import subprocess


    def find(path, name):
        # Rows of one person.
        with sqlite3.connect(path) as db:
            return db.execute(f"SELECT age FROM people WHERE name = '{name}'").fetchall()


    def listed(path):
        return subprocess.run(f"cat {path}", shell=True, capture_output=True).stdout


    def stamp(text):
        return hashlib.md5(text).hexdigest()


    def share(path):
        os.chmod(path, 0o777)
    """)
TEST = textwrap.dedent("""\
    import os, sqlite3, unittest
    import people


    class People(unittest.TestCase):
        def setUp(self):
            with sqlite3.connect("p.db") as db:
                db.execute("CREATE TABLE IF NOT EXISTS people (name TEXT, age INT)")
                db.execute("DELETE FROM people")
                db.execute("INSERT INTO people VALUES ('ann', 7)")

        def test_find(self):
            self.assertEqual(people.find("p.db", "ann"), [(7,)])
            self.assertEqual(people.find("p.db", "ben"), [])

        def test_listed(self):
            with open("a.txt", "w") as file:
                file.write("text")
            self.assertEqual(people.listed("a.txt"), b"text")

        def test_stamp_is_the_one_that_others_keep(self):
            self.assertEqual(people.stamp(b"a"), "0cc175b9c0f1b6a831c399e269772661")

        def test_share(self):
            open("b.txt", "w").close()
            people.share("b.txt")
            self.assertTrue(os.access("b.txt", os.R_OK | os.W_OK))
    """)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tools(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tools]:
    with unprivileged_directory() as home:
        async with process(tmp_path_factory.mktemp("repair"), home, POOL_SLOTS="0") as (found, _):
            yield found


def action(test: str = TEST, **tests: Any) -> pb.RepairCodeAction:
    return pb.RepairCodeAction(
        files=[code_pb2.CodeFile(path="people.py", content=CODE)],
        tests=code_pb2.CodeTests(
            files=[code_pb2.CodeFile(path="test_people.py", content=test)],
            command=["python3", "-m", "unittest", "test_people"],
            **tests,
        ),
    )


async def test_what_breaks_a_test_is_taken_back_and_the_rest_stands(tools: Tools) -> None:
    outcome = await repair(tools, action())
    assert outcome.tests_before.passed, outcome.tests_before.stderr_tail
    assert outcome.tests_after.passed, outcome.tests_after.stderr_tail
    assert outcome.tests_after.isolation.tier == execution_pb2.ISOLATION_TIER_BUBBLEWRAP
    content = outcome.files[0].content
    assert 'WHERE name = ?", (name,))' in content
    assert '["cat", str(path)], capture_output=True)' in content
    assert "# Rows of one person." in content
    assert "hashlib.md5(text)" in content, "others keep these digests, as the tests say"
    assert {each.rewrite for each in outcome.repairs} >= {
        "kala.rewrite.parameterised_query",
        "kala.rewrite.subprocess_shell_false",
        "kala.rewrite.owner_only",
    }
    weak = [each.fingerprint for each in outcome.before.findings if each.rule == "kala.python.weak_hash"]
    reasons = {each.fingerprint: each.reason for each in outcome.unrepaired}
    assert "tests" in reasons[weak[0]]
    assert {each.rule for each in outcome.after.findings} == {"kala.python.weak_hash"}


async def test_tests_that_failed_before_take_nothing_back(tools: Tools) -> None:
    outcome = await repair(tools, action("import people\nraise SystemExit(3)\n"))
    assert not outcome.tests_before.passed
    assert outcome.tests_before.exit_code != 0
    assert not outcome.tests_after.passed
    assert "hashlib.sha256(text)" in outcome.files[0].content


async def test_tests_are_held_to_their_limits(tools: Tools) -> None:
    limits = execution_pb2.Limits()
    limits.wall_time.FromMilliseconds(900)
    async with asyncio.timeout(120):
        outcome = await repair(tools, action("import time\ntime.sleep(60)\n", limits=limits))
    assert outcome.tests_before.status == execution_pb2.RUN_STATUS_TIMEOUT
    assert not outcome.tests_before.HasField("exit_code")
