"""Own insecure samples and their secure twins, one weakness each; the public sets stay unseen."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from services.tools.code.engines.python import python_engines
from services.tools.code.model import ScanOptions, SourceFile
from services.tools.code.validate import validate

SAMPLES = Path(__file__).parents[3] / "fixtures" / "code" / "python"
ENGINES = python_engines()


class Sample(NamedTuple):
    title: str
    secure: bool
    cwe: int
    text: str


def samples() -> list[Sample]:
    found = []
    for path in sorted(SAMPLES.glob("*.txt")):
        for part in path.read_text(encoding="utf-8").split("### ")[1:]:
            head, _, text = part.partition("\n")
            words = head.split()
            cwe = 0 if words[0] == "secure" else int(words[1])
            found.append(Sample(f"{path.stem}-{'-'.join(words[1:])}", words[0] == "secure", cwe, text))
    return found


INSECURE = [sample for sample in samples() if not sample.secure]
SECURE = [sample for sample in samples() if sample.secure]


@pytest.mark.parametrize("sample", INSECURE, ids=lambda sample: sample.title)
def test_an_insecure_sample_is_found_with_its_weakness_class(sample: Sample) -> None:
    report = validate([SourceFile("sample.py", sample.text)], ScanOptions(), ENGINES)

    assert sample.cwe in {number for finding in report.findings for number in finding.cwe}


@pytest.mark.parametrize("sample", SECURE, ids=lambda sample: sample.title)
def test_a_secure_sample_is_clean(sample: Sample) -> None:
    report = validate([SourceFile("sample.py", sample.text)], ScanOptions(), ENGINES)

    assert [(finding.rule, finding.span.region.start_line) for finding in report.findings] == []
    assert report.problems == ()
