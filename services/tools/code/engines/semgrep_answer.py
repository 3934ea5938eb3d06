"""What semgrep's JSON says, in this product's words: its rules' hits, and what it did not read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Final

import yaml
from pydantic import BaseModel, Field, ValidationError

from services.tools.code.catalogue import by_id
from services.tools.code.model import Confidence, EngineResult, Hit, Region, Rule, Severity, Source

PREFIX: Final = "kala.semgrep"
_FIELDS: Final = frozenset({"title", "cwe", "severity", "confidence", "why", "fix"})
_MAX_PROBLEMS: Final = 20


class SemgrepAnswerError(Exception):
    """The program's output is not what it should be."""


class _Place(BaseModel):
    # Bytes from the beginning of the file.
    offset: int = Field(ge=0)


class _Result(BaseModel):
    check_id: str
    path: str
    start: _Place
    end: _Place


class _ErrorStart(BaseModel):
    line: int = 0


class _ErrorSpan(BaseModel):
    file: str = ""
    start: _ErrorStart = _ErrorStart()


class _Error(BaseModel):
    path: str | None = None
    spans: list[_ErrorSpan] | None = None


class _Paths(BaseModel):
    scanned: list[str]


class _Answer(BaseModel):
    version: str = Field(pattern=r"^[0-9][0-9a-z.+-]{0,31}$")
    results: list[_Result]
    errors: list[_Error]
    paths: _Paths


def rule_texts() -> dict[str, str]:
    """Give the rule files for semgrep, by name."""
    folder = files("services.tools.code").joinpath("semgrep_rules")
    found = [each for each in folder.iterdir() if each.name.endswith(".yaml")]
    return {each.name: each.read_text(encoding="utf-8") for each in sorted(found, key=lambda each: each.name)}


def rules_of(texts: Mapping[str, str]) -> dict[str, Rule]:
    """Read what findings say from the rule files' metadata, by the rules' own ids.

    Raises:
        ValueError: a file is not as it must be, which is a mistake in this product.
    """
    rules: list[Rule] = []
    for name, text in texts.items():
        for raw in yaml.safe_load(text)["rules"]:
            fields = raw["metadata"]
            if set(fields) != _FIELDS or "." in raw["id"]:
                raise ValueError(f"{name}: {raw['id']} must have no dot, and exactly {sorted(_FIELDS)}")
            rules.append(
                Rule(
                    id=f"{PREFIX}.{raw['id']}",
                    title=fields["title"],
                    cwe=tuple(fields["cwe"]),
                    severity=Severity[fields["severity"].upper()],
                    confidence=Confidence[fields["confidence"].upper()],
                    explanation=fields["why"],
                    fix=fields["fix"],
                )
            )
    return {rule_id.removeprefix(f"{PREFIX}."): rule for rule_id, rule in by_id(rules).items()}


def read_answer(
    data: bytes, sources: Mapping[str, Source], rules: Mapping[str, Rule]
) -> tuple[str, dict[str, EngineResult]]:
    """Give semgrep's version, and what each file came to by the names that it was given.

    Raises:
        SemgrepAnswerError: it is no such answer, or speaks of what it was not given.
    """
    try:
        answer = _Answer.model_validate_json(data)
    except ValidationError as error:
        raise SemgrepAnswerError(f"{error.error_count()} fields are not as expected") from error
    if any(result.path not in sources for result in answer.results):
        raise SemgrepAnswerError("a result is of no file that was sent")
    texts = {name: source.text.encode("utf-8", "surrogatepass") for name, source in sources.items()}
    found: dict[str, list[Hit]] = {name: [] for name in sources}
    for result in answer.results:
        rule = rules.get(result.check_id.rsplit(".", 1)[-1])
        if rule is None:
            raise SemgrepAnswerError("a result is of no rule that was sent")
        region = _region(sources[result.path], texts[result.path], result.start.offset, result.end.offset)
        found[result.path].append(Hit(rule, region))
    scanned = set(answer.paths.scanned)
    return answer.version, {
        name: EngineResult(tuple(hits), _problems(name, answer.errors, is_scanned=name in scanned))
        for name, hits in found.items()
    }


def _region(source: Source, text: bytes, start: int, end: int) -> Region:
    places = [
        source.lines.place(len(text[:offset].decode("utf-8", "ignore")))
        for offset in (start, max(start, end))
    ]
    return Region(*places[0], *places[1])


def _problems(name: str, errors: Sequence[_Error], *, is_scanned: bool) -> tuple[str, ...]:
    said: dict[str, None] = {}
    for error in errors:
        spans = error.spans or []
        of_file = [span for span in spans if span.file == name]
        if error.path is None and not spans:
            said["semgrep reports an error of its own; the scan may be incomplete"] = None
        elif error.path == name or of_file:
            line = of_file[0].start.line if of_file else 0
            where = f" at line {line}" if line else ""
            said[f"semgrep could not read or check it completely{where}"] = None
    if not is_scanned:
        said[f"semgrep did not scan this {PurePosixPath(name).suffix} file"] = None
    return tuple(said)[:_MAX_PROBLEMS]
