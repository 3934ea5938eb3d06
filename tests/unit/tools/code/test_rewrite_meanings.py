"""A rewritten program still does what it did: both are run, and what they do is compared."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import given, settings

from tests.fakes.rewriting import FLASK, repaired


# Behaviour: both versions run on the same inputs.
def run(code: str, name: str = "f") -> Any:
    space: dict[str, Any] = {"__name__": "main"}
    exec(compile(code, "main.py", "exec"), space)
    return space[name]


QUERY = """\
import sqlite3


def f(db, name, age):
    return db.execute(f"SELECT name, age FROM people WHERE name = '{name}' AND age >= {age}").fetchall()


def connect():
    return sqlite3.connect(":memory:")
"""


def test_queries_find_the_same_rows_and_no_others() -> None:
    after, done, _ = repaired(QUERY)
    assert done.standing, done.left
    old, new = run(QUERY), run(after)
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE people (name TEXT, age INT)")
    db.executemany("INSERT INTO people VALUES (?, ?)", [("ann", 7), ("b e n", 9), ("5", 5), ("%_", 1)])

    @given(
        st.sampled_from(["ann", "b e n", "5", "%_", "", "x"]) | st.text("ab %_-;é", max_size=5),
        st.integers(-9, 99),
    )
    @settings(max_examples=60, deadline=None)
    def same(name: str, age: int) -> None:
        assert old(db, name, age) == new(db, name, age)

    same()
    attack = "' OR '1'='1"
    assert old(db, attack, 0)
    assert new(db, attack, 0) == []
    db.close()


COMMAND = """\
import subprocess


def f(word):
    return subprocess.run(f"printf %s {word}", shell=True, stdout=subprocess.PIPE).stdout
"""


def test_commands_print_the_same_and_obey_nothing_in_a_value(tmp_path: Path) -> None:
    after, done, _ = repaired(COMMAND)
    if not done.standing:
        # Without a source the scanner may know nothing against it; the rewrite is what is tested here.
        pytest.skip(f"not rewritten: {done.left}")
    old, new = run(COMMAND), run(after)
    for word in ("a", "abc.txt", "x-y_z", "5"):
        assert old(word) == new(word)
    mark = tmp_path / "mark"
    assert new(f"a; touch {mark}") == f"a; touch {mark}".encode()
    assert not mark.exists()
    assert subprocess.run(["true"], check=False).returncode == 0


def test_yaml_reads_plain_data_the_same() -> None:
    code = "import yaml\n\n\ndef f(text):\n    return yaml.load(text, Loader=yaml.Loader)\n"
    old, new = run(code), run(repaired(code)[0])
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text("abc:-# \n'\"", max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3)
        ),
        max_leaves=8,
    )

    @given(values)
    @settings(max_examples=60, deadline=None)
    def same(value: Any) -> None:
        text = yaml.safe_dump(value)
        assert old(text) == new(text) == value

    same()
    with pytest.raises(yaml.YAMLError):
        new("!!python/object/apply:os.getcwd []")


def test_literals_read_the_same() -> None:
    code = FLASK + '\n@app.route("/")\ndef f():\n    return {"x": len(eval(request.args["x"]))}\n'
    assert "ast.literal_eval" in repaired(code)[0]


def test_temporary_names_and_modes_do_what_they_did() -> None:
    code = (
        "import os\nimport tempfile\n\n\ndef f():\n    path = tempfile.mktemp('.k')\n"
        "    with open(path, 'w') as file:\n        file.write('x')\n    os.chmod(path, 0o777)\n    return path\n"
    )
    path = run(repaired(code)[0])()
    try:
        assert path.endswith(".k")
        assert os.path.dirname(path) == tempfile.gettempdir()  # noqa: PTH120 - as the code does
        assert Path(path).read_text() == "x"
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o700
    finally:
        Path(path).unlink()


@given(st.text("abé'\"(){}\n =:#\\", max_size=60))
@settings(max_examples=40, deadline=None)
def test_any_text_comes_back_as_it_was_or_is_named(text: str) -> None:
    after, done, report = repaired(text)
    if not done.standing:
        assert after == text
    assert set(done.left) <= {each.fingerprint for each in report.findings}
