"""Own insecure samples and their secure twins, one weakness each, in every language; the public sets stay unseen."""

from __future__ import annotations

from functools import partial

import pytest

from services.tools.code.engines.javascript.engine import JavaScriptSyntaxEngine, JavaScriptTaintEngine
from services.tools.code.engines.python import python_engines
from services.tools.code.engines.secrets.engine import SecretsEngine
from services.tools.code.engines.shell.engine import ShellSyntaxEngine, ShellTaintEngine
from services.tools.code.model import ScanOptions, ScanReport, SourceFile
from services.tools.code.validate import validate
from tests.code_samples import Sample, samples

LANGUAGES = {
    "python": ("sample.py", python_engines()),
    "javascript": ("sample.js", (JavaScriptTaintEngine(), JavaScriptSyntaxEngine(), SecretsEngine())),
    "shell": ("sample.sh", (ShellTaintEngine(), ShellSyntaxEngine(), SecretsEngine())),
}


def parameters(*, secure: bool) -> list[object]:
    return [
        pytest.param(language, sample, id=f"{language}-{sample.title}")
        for language in LANGUAGES
        for sample in samples(language)
        if sample.secure is secure
    ]


def scan(language: str, text: str) -> ScanReport:
    name, engines = LANGUAGES[language]
    return validate([SourceFile(name, text)], ScanOptions(), engines)


scan_javascript = partial(scan, "javascript")
scan_shell = partial(scan, "shell")


@pytest.mark.parametrize(("language", "sample"), parameters(secure=False))
def test_an_insecure_sample_is_found_with_its_weakness_class(language: str, sample: Sample) -> None:
    report = scan(language, sample.text)

    assert sample.cwe in {number for finding in report.findings for number in finding.cwe}
    assert report.problems == ()


@pytest.mark.parametrize(("language", "sample"), parameters(secure=True))
def test_a_secure_sample_is_clean(language: str, sample: Sample) -> None:
    report = scan(language, sample.text)

    assert [(finding.rule, finding.span.region.start_line) for finding in report.findings] == []
    assert report.problems == ()


def test_the_way_from_source_to_sink_is_told_in_javascript() -> None:
    report = scan_javascript(
        "const { exec } = require('child_process');\n"
        "app.get('/', (req, res) => {\n  const name = req.query.name;\n  exec('ls ' + name);\n});\n"
    )

    lines = [step.span.region.start_line for step in report.findings[0].flow]
    assert (lines[0], lines[-1]) == (3, 4)


def test_the_way_from_argument_to_shell_is_told() -> None:
    report = scan_shell('#!/bin/bash\nname=$1\nother=$name\nbash -c "ls $other"\n')

    lines = [step.span.region.start_line for step in report.findings[0].flow]
    assert (lines[0], lines[-1]) == (2, 4)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 5_000,
        "[\n" * 5_000,
        "x = " + "+".join(["a"] * 5_000),
        "if (x) {\n" * 3_000,
        "`${" * 3_000,
        "f(a + b);\n" * 100_000,
        "x = '" + "a" * 900_000 + "'",
        "var x = '\ud800\u00e4'; eval(",
    ],
    ids=["parentheses", "brackets", "sum", "blocks", "templates", "calls", "line", "surrogate"],
)
def test_hostile_javascript_is_a_problem_and_no_exception(text: str) -> None:
    assert scan_javascript(text).problems


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
    assert scan_shell(text).problems


def test_functions_that_call_each_other_for_ever_end() -> None:
    text = "".join(
        f"function f{i}(x) {{ return f{(i + 1) % 40}(x) + f{(i + 7) % 40}(x); }}\n" for i in range(40)
    )
    report = scan_javascript("require('child_process').exec('ls ' + process.argv[2]);\n" + text)

    assert 78 in {number for finding in report.findings for number in finding.cwe}


def test_a_finding_has_its_place_in_characters_and_bytes() -> None:
    text = "// \u00e4\u00f6\U0001f600\n/* \u00e4 */ eval(location.hash);\n"
    span = scan_javascript(text).findings[0].span

    assert text.encode()[span.start_byte : span.end_byte] == b"eval(location.hash)"
    assert (span.region.start_line, span.region.start_column) == (2, 9)
