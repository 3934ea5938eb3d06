"""What all engines give together."""

from __future__ import annotations

import pytest

from services.tools.code.engines.every import code_engines
from services.tools.code.model import EngineName, ScanOptions, SourceFile
from services.tools.code.validate import validate

ENGINES = code_engines()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("a.py", "import os\nos.system('ls ' + input())\n"),
        ("a.js", "require('child_process').exec('ls ' + process.argv[2]);\n"),
        ("a.sh", 'eval "$1"\n'),
    ],
)
def test_each_language_has_an_engine_that_knows_command_injection(path: str, text: str) -> None:
    report = validate([SourceFile(path, text)], ScanOptions(), ENGINES)

    assert 78 in {number for finding in report.findings for number in finding.cwe}


def test_no_rule_is_defined_by_two_engines() -> None:
    ids = [rule.id for engine in ENGINES for rule in engine.rules]

    assert len(ids) == len(set(ids))


def test_semgrep_alone_never_gives_a_report_that_looks_clean() -> None:
    options = ScanOptions(engines=frozenset({EngineName.SEMGREP}))
    report = validate([SourceFile("a.py", "x = 1\n")], options, ENGINES)

    assert "KALA_TOOLS_SEMGREP" in report.problems[0].message
    assert validate([SourceFile("a.py", "x = 1\n")], ScanOptions(), ENGINES).problems == ()
