"""Datasets as people write them in YAML, turned into the JSON of a kala.trainer.v1.DatasetSpec.

A file holds one dataset, or a training job whose `build` lists those that it needs. Words stand for enumerations
(`category: law_0`, `format: gsm8k`) and names for references; the trainer fills in digests and sizes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from kala.errors import FailedPreconditionError, InvalidArgumentError

MAX_FILE_BYTES: Final = 256 * 1024
"""As much as the trainer takes of a job's YAML."""

CATEGORIES: Final = (
    "law_0", "law_1", "law_2", "law_3", "law_4", "conflict", "benign", "multi_turn", "experiment_design",
    "refactoring", "derivation", "trade_offs", "uncertainty", "template_task",
)  # fmt: skip
FORMATS: Final = (
    "messages", "prompt_completion", "preference", "labelled", "humaneval", "mbpp", "gsm8k", "math",
    "stack_overflow", "code_with_docs", "bug_fix", "secure_coding", "textbook", "claims",
)  # fmt: skip

_SPEC: Final = (
    "name", "sources", "duplicate_similarity", "evaluation_files", "contamination_words", "validation_share",
    "seed", "licences", "max_tokens", "tokenizer", "summary",
)  # fmt: skip
_SOURCE: Final = ("name", "generator", "files", "hub", "max_rows")
_KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "generator": ("category", "rows", "seed"),
    "files": ("files", "format", "licence", "attribution"),
    "hub": ("dataset", "revision", "split", "format", "licence"),
}

# Any: YAML and JSON.
Json = dict[str, Any]


def read_yaml(path: Path) -> tuple[str, Any]:
    """Read a file of YAML: its text, and what it says; raises InvalidArgumentError with the line of a mistake."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InvalidArgumentError(str(path), f"has {size} bytes; at most {MAX_FILE_BYTES} are read")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FailedPreconditionError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(str(path), f"is not UTF-8: byte {error.start} is wrong") from error
    try:
        return text, yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise InvalidArgumentError(str(path), f"{place}{error.problem or 'is no YAML'}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidArgumentError(str(path), f"is no YAML: {error}") from error


def datasets_in(document: Any) -> list[Json]:  # Any: YAML
    """Give the datasets that a file says how to build: itself, or those under `build`; none for a job without."""
    if not isinstance(document, Mapping):
        raise InvalidArgumentError("", "must be a mapping of keys to values")
    if "sources" in document:
        return [dataset_spec(document)]
    built = document.get("build") or ()
    if not isinstance(built, list | tuple):
        raise InvalidArgumentError("build", "must be a list of datasets")
    return [dataset_spec(each, at=f"build[{index}]") for index, each in enumerate(built)]


def dataset_spec(written: Any, *, at: str = "") -> Json:  # Any: YAML
    """Turn one dataset into a spec; raises InvalidArgumentError that names the key."""
    fields = _mapping(written, _SPEC, at)
    spec = dict(fields)
    if not isinstance(fields.get("name"), str):
        raise InvalidArgumentError(_path(at, "name"), "must name the dataset")
    spec["name"] = f"datasets/{str(fields['name']).removeprefix('datasets/')}"
    sources = fields.get("sources")
    if not isinstance(sources, list) or not sources:
        raise InvalidArgumentError(_path(at, "sources"), "must list where rows come from")
    spec["sources"] = [_source(each, _path(at, f"sources[{index}]")) for index, each in enumerate(sources)]
    if "evaluation_files" in fields:
        spec["evaluation_files"] = _references(fields["evaluation_files"], _path(at, "evaluation_files"))
    if "tokenizer" in fields:
        spec["tokenizer"] = _reference(fields["tokenizer"])
    return spec


def _source(written: Any, at: str) -> Json:  # Any: YAML
    fields = _mapping(written, _SOURCE, at)
    kinds = [kind for kind in _KINDS if kind in fields]
    if len(kinds) != 1:
        raise InvalidArgumentError(at, "must have exactly one of generator, files, hub")
    kind = kinds[0]
    inner = dict(_mapping(fields[kind], _KINDS[kind], _path(at, kind)))
    if kind == "generator":
        inner["category"] = _word(
            inner.get("category"), CATEGORIES, "GENERATOR_CATEGORY_", f"{at}.{kind}.category"
        )
    else:
        inner["format"] = _word(inner.get("format"), FORMATS, "SOURCE_FORMAT_", f"{at}.{kind}.format")
    if kind == "files":
        inner["files"] = _references(inner.get("files"), f"{at}.{kind}.files")
    if kind == "hub" and "dataset" in inner:
        inner["dataset"] = _reference(inner["dataset"])
    name = fields.get("name") or (fields[kind].get("category") if kind == "generator" else "")
    if not isinstance(name, str) or not name:
        raise InvalidArgumentError(_path(at, "name"), "must name the source")
    return {**fields, "name": name, kind: inner}


def _mapping(written: Any, known: Iterable[str], at: str) -> Mapping[str, Any]:  # Any: YAML
    if not isinstance(written, Mapping):
        raise InvalidArgumentError(at, "must be a mapping of keys to values")
    for key in written:
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
            raise InvalidArgumentError(_path(at, str(key)), f"is no key here{hint}")
    return written


def _word(written: Any, known: tuple[str, ...], prefix: str, at: str) -> str:  # Any: YAML
    word = str(written).lower().replace("-", "_").removeprefix(prefix.lower())
    if word not in known:
        near = difflib.get_close_matches(word, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it must be one of {', '.join(known)}"
        raise InvalidArgumentError(at, f"is {written!r}; {hint}")
    return prefix + word.upper()


def _references(written: Any, at: str) -> list[Json]:  # Any: YAML
    if not isinstance(written, list):
        raise InvalidArgumentError(at, "must be a list of file names")
    return [_reference(each) for each in written]


def _reference(written: Any) -> Json:  # Any: YAML
    return dict(written) if isinstance(written, Mapping) else {"name": str(written)}


def _path(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key
