"""Which weaknesses a programming task invites, from its words; the same task always gets the same hints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Final, cast

import yaml

from kala.errors import InvalidArgumentError
from services.tools.code.catalogue import owasp_of
from services.tools.code.model import CodeLanguage

# As the contract says.
MAX_TASK_CHARS: Final = 16_384
MAX_FRAMEWORKS: Final = 32
MAX_HINTS: Final = 16
MAX_PROMPT_CHARS: Final = 2_048
DEFAULT_HINTS: Final = 5

_MAX_FRAMEWORK_CHARS: Final = 128
# How much one word says; several add up as independent evidence does, and below the threshold nothing is said.
_STRONG: Final = 0.5
_WEAK: Final = 0.17
_FRAMEWORK: Final = 0.25
_FEW_WEAK: Final = 2
_THRESHOLD: Final = 0.4
# A task that uses every word of the field is no surer than this.
_CERTAIN: Final = 0.99
_FIELDS: Final = frozenset({"title", "cwe", "strong", "weak", "frameworks", "languages", "why", "advice"})
_OPTIONAL: Final = frozenset({"frameworks", "languages"})
_WORD: Final = re.compile(r"[^\W_]+(?:[-.][^\W_]+)*")
_ARTICLES: Final = frozenset({"a", "an", "the", "its", "their"})
_HEADING: Final = "Write this securely. Weaknesses that this task invites:"


@dataclass(frozen=True, slots=True)
class Hint:
    """A weakness to look out for; `relevance` is from 0 to 1."""

    title: str
    cwe: tuple[int, ...]
    owasp: tuple[str, ...]
    why: str
    advice: str
    relevance: float


@dataclass(frozen=True, slots=True)
class _Topic:
    title: str
    cwe: tuple[int, ...]
    why: str
    advice: dict[str, str]
    languages: frozenset[str]
    strong: tuple[re.Pattern[str], ...]
    weak: tuple[re.Pattern[str], ...]
    frameworks: tuple[re.Pattern[str], ...]


class Hints:
    """The topics, read once."""

    def __init__(self) -> None:
        text = files("services.tools.code").joinpath("hints.yaml").read_text(encoding="utf-8")
        raw = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
        self._topics = tuple(_topic(name, fields) for name, fields in raw.items())

    def hints_for(
        self,
        task: str,
        *,
        language: CodeLanguage | None = None,
        frameworks: Sequence[str] = (),
        max_hints: int = 0,
    ) -> tuple[Hint, ...]:
        """Give what a task invites, the most relevant first; empty when it invites nothing known.

        `max_hints` 0 means 5.

        Raises:
            InvalidArgumentError: a field is out of its limits.
        """
        _check(task, frameworks, max_hints)
        words = _normal(task)
        used = [_normal(each) for each in frameworks]
        found: list[Hint] = []
        for topic in self._topics:
            if language is not None and topic.languages and language.value not in topic.languages:
                continue
            relevance = _relevance(topic, words, used)
            if relevance < _THRESHOLD:
                continue
            advice = topic.advice.get("" if language is None else language.value, topic.advice["default"])
            found.append(Hint(topic.title, topic.cwe, owasp_of(topic.cwe), topic.why, advice, relevance))
        # Equal ones keep the file's order, which puts the worst first.
        found.sort(key=lambda hint: -hint.relevance)
        return tuple(found[: max_hints or DEFAULT_HINTS])


def prompt_text(hints: Sequence[Hint]) -> str:
    """Give hints as one text for a prompt, at most 2,048 characters; hints that do not fit are left out whole."""
    if not hints:
        return ""
    text = _HEADING
    for hint in hints:
        line = f"\n- {hint.title} (CWE-{hint.cwe[0]}): {hint.why} {hint.advice}"
        if len(text) + len(line) > MAX_PROMPT_CHARS:
            break
        text += line
    return text


def _relevance(topic: _Topic, words: str, frameworks: Sequence[str]) -> float:
    strong = sum(bool(each.search(words)) for each in topic.strong)
    weak = sum(bool(each.search(words)) for each in topic.weak)
    if not strong and weak < _FEW_WEAK:
        # A framework says where the code will run and nothing about what it will do; nor does one common word.
        return 0.0
    used = sum(
        bool(each.search(words)) or any(each.search(name) for name in frameworks) for each in topic.frameworks
    )
    doubt = (1 - _STRONG) ** strong * (1 - _WEAK) ** weak * (1 - _FRAMEWORK) ** min(used, 2)
    return round(min(1 - doubt, _CERTAIN), 3)


def _normal(text: str) -> str:
    """Lower case, words parted by one space, articles left out, with a space at both ends."""
    return f" {' '.join(word for word in _WORD.findall(text.lower()) if word not in _ARTICLES)} "


def _check(task: str, frameworks: Sequence[str], max_hints: int) -> None:
    if not 1 <= len(task) <= MAX_TASK_CHARS:
        raise InvalidArgumentError("task", f"must have 1 to {MAX_TASK_CHARS} characters")
    if len(frameworks) > MAX_FRAMEWORKS:
        raise InvalidArgumentError(
            "frameworks", f"has {len(frameworks)} entries; the limit is {MAX_FRAMEWORKS}"
        )
    for index, name in enumerate(frameworks):
        if not 1 <= len(name) <= _MAX_FRAMEWORK_CHARS:
            raise InvalidArgumentError(
                f"frameworks[{index}]", f"must have 1 to {_MAX_FRAMEWORK_CHARS} characters"
            )
    if not 0 <= max_hints <= MAX_HINTS:
        raise InvalidArgumentError("max_hints", f"must be 1 to {MAX_HINTS}; 0 means {DEFAULT_HINTS}")


def _topic(name: str, fields: dict[str, object]) -> _Topic:
    if not _FIELDS - _OPTIONAL <= set(fields) <= _FIELDS:
        raise ValueError(f"hints.yaml: {name} must have {sorted(_FIELDS - _OPTIONAL)} and nothing unknown")
    advice = cast("dict[str, str]", fields["advice"])  # checked below
    cwe = cast("list[int]", fields["cwe"])  # checked below
    if "default" not in advice or not set(advice) <= {"default", *(each.value for each in CodeLanguage)}:
        raise ValueError(f"hints.yaml: {name}.advice must have a default, and languages only beside it")
    if not cwe or not all(isinstance(number, int) for number in cwe):
        raise ValueError(f"hints.yaml: {name}.cwe must be a list of numbers")
    return _Topic(
        title=str(fields["title"]),
        cwe=tuple(cwe),
        why=str(fields["why"]),
        advice=advice,
        languages=frozenset(_texts(fields.get("languages", []))),
        strong=_patterns(fields["strong"]),
        weak=_patterns(fields["weak"]),
        frameworks=_patterns(fields.get("frameworks", [])),
    )


def _patterns(value: object) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(f" {_phrase(text)} ") for text in _texts(value))


def _phrase(text: str) -> str:
    word = _normal(text.removesuffix("*")).strip()
    return re.escape(word) + (r"\S*" if text.endswith("*") else "(?:s|ed|ing)?")


def _texts(value: object) -> Iterable[str]:
    return [
        str(each) for each in cast("list[object]", value)
    ]  # a list in the file, or iterating fails at start
