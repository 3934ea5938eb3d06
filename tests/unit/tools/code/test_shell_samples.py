"""Own insecure shell scripts and their secure twins, one weakness each; and source that is meant to hurt."""

from __future__ import annotations

import pytest

from services.tools.code.engines.secrets.engine import SecretsEngine
from services.tools.code.engines.shell.engine import ShellSyntaxEngine, ShellTaintEngine
from services.tools.code.model import ScanOptions, ScanReport, SourceFile
from services.tools.code.validate import validate
from tests.code_samples import Sample, samples

ENGINES = (ShellTaintEngine(), ShellSyntaxEngine(), SecretsEngine())
SAMPLES = samples("shell")


def scan(text: str) -> ScanReport:
    return validate([SourceFile("sample.sh", text)], ScanOptions(), ENGINES)


@pytest.mark.parametrize("sample", [each for each in SAMPLES if not each.secure], ids=lambda each: each.title)
def test_an_insecure_sample_is_found_with_its_weakness_class(sample: Sample) -> None:
    report = scan(sample.text)

    assert sample.cwe in {number for finding in report.findings for number in finding.cwe}
    assert report.problems == ()


@pytest.mark.parametrize("sample", [each for each in SAMPLES if each.secure], ids=lambda each: each.title)
def test_a_secure_sample_is_clean(sample: Sample) -> None:
    report = scan(sample.text)

    assert [(finding.rule, finding.span.region.start_line) for finding in report.findings] == []
    assert report.problems == ()


def test_the_way_from_argument_to_shell_is_told() -> None:
    report = scan('#!/bin/bash\nname=$1\nother=$name\nbash -c "ls $other"\n')

    lines = [step.span.region.start_line for step in report.findings[0].flow]
    assert (lines[0], lines[-1]) == (2, 4)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 19_000,
        "$(" * 5_000,
        "if x; then\n" * 5_000,
        "cat <<E\n" * 5_000,
        "a|\n" * 50_000,
        "((a" * 50_000,
        "rm $a\n" * 100_000,
        "x='" + "a" * 900_000 + "'",
    ],
    ids=["parentheses", "substitutions", "ifs", "documents", "pipes", "arithmetic", "commands", "line"],
)
def test_a_hostile_script_is_a_problem_and_no_exception(text: str) -> None:
    assert scan(text).problems
