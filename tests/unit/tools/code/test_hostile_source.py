"""Source that is broken, old or meant to hurt the scanner: what can be read is scanned, and the report says what cannot."""

from __future__ import annotations

import pytest

from services.tools.code.engines.python import python_engines
from services.tools.code.model import ScanOptions, ScanReport, SourceFile
from services.tools.code.validate import validate

ENGINES = python_engines()


def scan(text: str) -> ScanReport:
    return validate([SourceFile("sample.py", text)], ScanOptions(), ENGINES)


def classes(report: ScanReport) -> set[int]:
    return {number for finding in report.findings for number in finding.cwe}


def test_a_broken_line_hides_nothing_else_and_is_reported() -> None:
    report = scan("import os\nos.system('ls ' + input())\nfor x in\n")

    assert 78 in classes(report)
    assert [(problem.engine, problem.message) for problem in report.problems] == [
        (None, "syntax error at line 3: invalid syntax; the rest was scanned")
    ]


def test_a_fragment_of_an_indented_block_is_read() -> None:
    report = scan("    import pickle, sys\n    data = sys.stdin.read()\n    pickle.loads(data)\n")

    assert 502 in classes(report)


def test_python_2_is_read() -> None:
    report = scan(
        "import os\ntry:\n    print 'x', os.system('ls ' + raw_input())\nexcept OSError, error:\n    pass\n"
    )

    assert 78 in classes(report)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 5000,
        "x = " + "-" * 8000 + "1",
        "x = " + "a." * 9000 + "b",
        "x = " + " + ".join(["a"] * 5000),
        "\n".join(" " * depth + "if x:" for depth in range(400)),
        "\x00",
        "\ufeffx = 1\n",
        "def f(): return \ud800",
        "x = '\\N{DIGIT ONE}' \\",
    ],
    ids=["parentheses", "signs", "attributes", "sums", "blocks", "nul", "mark", "surrogate", "open line"],
)
def test_hostile_source_is_no_exception(text: str) -> None:
    scan(text)


def test_a_line_that_is_too_long_is_named_and_not_searched() -> None:
    report = scan("x = '" + "except " + " " * 900_000 + "'\n")

    assert report.findings == ()
    assert "limit is 20000" in report.problems[0].message
    assert report.problems[0].engine is None


def test_a_report_can_be_sent_whatever_literals_hold() -> None:
    text = """import logging
from flask import Flask, request
app = Flask(__name__)

@app.route("/x")
def x():
    data = request.json
    password = data["\\ud800password"]
    logging.info("got %s", password)
    return password
"""
    findings = scan(text).findings

    assert findings
    for finding in findings:
        for said in (finding.explanation, *(step.what for step in finding.flow)):
            said.encode()


def test_functions_that_call_each_other_for_ever_end() -> None:
    text = "".join(f"def f{i}(x):\n    return f{(i + 1) % 40}(x) + f{(i + 7) % 40}(x)\n" for i in range(40))

    assert classes(scan("import os\nos.system(input())\n" + text)) >= {78}


def test_comments_cannot_silence_a_finding() -> None:
    report = scan("import subprocess\n\ndef run(x):\n    subprocess.call('ls ' + x, shell=True)  # nosec\n")

    assert 78 in classes(report)
