"""Own insecure samples of JavaScript and their secure twins, one weakness each; and source that is meant to hurt."""

from __future__ import annotations

import pytest

from services.tools.code.engines.javascript.engine import JavaScriptSyntaxEngine, JavaScriptTaintEngine
from services.tools.code.engines.secrets.engine import SecretsEngine
from services.tools.code.model import ScanOptions, ScanReport, SourceFile
from services.tools.code.validate import validate
from tests.code_samples import Sample, samples

ENGINES = (JavaScriptTaintEngine(), JavaScriptSyntaxEngine(), SecretsEngine())
SAMPLES = samples("javascript")


def scan(text: str) -> ScanReport:
    return validate([SourceFile("sample.js", text)], ScanOptions(), ENGINES)


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


def test_the_way_from_source_to_sink_is_told() -> None:
    report = scan(
        "const { exec } = require('child_process');\n"
        "app.get('/', (req, res) => {\n  const name = req.query.name;\n  exec('ls ' + name);\n});\n"
    )

    lines = [step.span.region.start_line for step in report.findings[0].flow]
    assert (lines[0], lines[-1]) == (3, 4)


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
def test_hostile_source_is_a_problem_and_no_exception(text: str) -> None:
    assert scan(text).problems


def test_functions_that_call_each_other_for_ever_end() -> None:
    text = "".join(
        f"function f{i}(x) {{ return f{(i + 1) % 40}(x) + f{(i + 7) % 40}(x); }}\n" for i in range(40)
    )
    report = scan("require('child_process').exec('ls ' + process.argv[2]);\n" + text)

    assert 78 in {number for finding in report.findings for number in finding.cwe}


def test_a_finding_has_its_place_in_characters_and_bytes() -> None:
    text = "// \u00e4\u00f6\U0001f600\n/* \u00e4 */ eval(location.hash);\n"
    span = scan(text).findings[0].span

    assert text.encode()[span.start_byte : span.end_byte] == b"eval(location.hash)"
    assert (span.region.start_line, span.region.start_column) == (2, 9)
