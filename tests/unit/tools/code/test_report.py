"""The report: places, fingerprints, merging over engines, levels, limits."""

from __future__ import annotations

import pytest

from kala.errors import InvalidArgumentError
from services.tools.code.catalogue import by_id, owasp_of, ssdf_of
from services.tools.code.engines.python import python_engines
from services.tools.code.model import Confidence, EngineName, Rule, ScanOptions, Severity, SourceFile
from services.tools.code.validate import language_of, validate

ENGINES = python_engines()
QUERY = """from flask import Flask, request
import sqlite3
app = Flask(__name__)

@app.route("/x")
def x():
    s = "ä€"; sqlite3.connect("d").execute("SELECT 1 FROM t WHERE a = '" + request.args["a"] + "'")
    return {}
"""


def test_a_finding_has_its_place_in_characters_and_in_bytes() -> None:
    [finding] = validate([SourceFile("x.py", QUERY)], ScanOptions(), ENGINES).findings

    span, text = finding.span, QUERY.encode()
    assert (span.region.start_line, span.region.start_column) == (7, 15)
    assert text[span.start_byte : span.end_byte].startswith(b'sqlite3.connect("d").execute(')
    assert text[span.start_byte : span.end_byte].endswith(b'"\'")')
    assert finding.cwe == (89,)
    assert finding.owasp == ("A03:2021", "A05:2025")
    assert finding.ssdf == ("PW.5.1",)
    assert [step.what for step in finding.flow] == [
        "flask.request.args holds an HTTP request",
        "becomes part of a text",
    ]


def test_a_fingerprint_survives_lines_that_are_added_elsewhere() -> None:
    before = validate([SourceFile("x.py", QUERY)], ScanOptions(), ENGINES).findings
    after = validate([SourceFile("x.py", "# new\n\n" + QUERY)], ScanOptions(), ENGINES).findings

    assert [finding.fingerprint for finding in before] == [finding.fingerprint for finding in after]
    assert len(before[0].fingerprint) == 32


def test_equal_lines_have_fingerprints_of_their_own() -> None:
    text = "import hashlib\n" + "a = hashlib.md5(b'x')\n" * 3
    found = validate([SourceFile("x.py", text)], ScanOptions(), ENGINES).findings

    assert len({finding.fingerprint for finding in found}) == len(found) == 3


def test_two_engines_that_see_the_same_are_one_finding() -> None:
    text = "import subprocess\n\ndef run(x):\n    subprocess.call('ls ' + x, shell=True)\n"
    found = validate([SourceFile("x.py", text)], ScanOptions(), ENGINES).findings

    assert [(finding.rule, finding.engine) for finding in found] == [
        ("kala.python.command_injection", EngineName.TAINT)
    ]


def test_levels_and_engines_are_as_asked() -> None:
    text = "import subprocess\nassert subprocess\n"
    files = [SourceFile("x.py", text)]
    everything = ScanOptions(Severity.LOW, Confidence.LOW)

    assert validate(files, ScanOptions(), ENGINES).findings == ()
    assert {finding.rule for finding in validate(files, everything, ENGINES).findings} == {"bandit.B101"}
    only = ScanOptions(Severity.LOW, Confidence.LOW, frozenset({EngineName.TAINT}))
    assert validate(files, only, ENGINES).engines == ("kala.taint 1",)


def test_too_many_findings_are_cut_and_said_so() -> None:
    text = "import hashlib\n" + "a = hashlib.md5(b'x')\n" * 30
    report = validate([SourceFile("x.py", text)], ScanOptions(max_findings=10), ENGINES)

    assert (len(report.findings), report.truncated) == (10, True)


def test_equal_rules_give_equal_digests_and_other_engines_another() -> None:
    files = [SourceFile("x.py", "")]
    one, two = (validate(files, ScanOptions(), python_engines()).rules_digest for _ in range(2))

    assert one == two
    assert validate(files, ScanOptions(), ENGINES[:1]).rules_digest != one


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "send 1 to 256"),
        ([SourceFile("", "x")], "must have 1 to 1024 bytes"),
        ([SourceFile("/etc/x.py", "x")], "must be relative"),
        ([SourceFile("a/../b.py", "x")], "must be relative"),
        ([SourceFile("a.py", "x"), SourceFile("a.py", "y")], "second time"),
        ([SourceFile("a.py", "x" * (1024 * 1024 + 1))], "the limit is 1048576"),
        ([SourceFile(f"{i}.py", "#" * 1024 * 1024) for i in range(9)], "together"),
    ],
    ids=["none", "no path", "absolute", "dots", "twice", "large", "large together"],
)
def test_files_out_of_limits_are_named(files: list[SourceFile], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        validate(files, ScanOptions(), ENGINES)


def test_every_rule_has_its_practice_and_most_have_a_category() -> None:
    rules = [rule for engine in ENGINES for rule in engine.rules]

    assert all(ssdf_of(rule.cwe) for rule in rules)
    assert sum(1 for rule in rules if owasp_of(rule.cwe)) / len(rules) > 0.9


def test_a_rule_that_comes_twice_is_refused() -> None:
    rule = Rule("a", "a", (1,), Severity.LOW, Confidence.LOW, "", "")

    with pytest.raises(ValueError, match="twice"):
        by_id([rule], [rule])


def test_a_language_is_told_by_its_ending() -> None:
    assert language_of("a/b.PY").value == "python"
    assert language_of("x.mjs").value == "javascript"
    assert language_of("Makefile").value == "other"
