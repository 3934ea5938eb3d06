"""Read the constitution's `guards/*.yaml`: how each family of guard models is asked, and what its answers mean here.

Everything is checked while reading: an unknown key, stage, law or category stops the load with a ConstitutionError
that names the file and the field. Pure.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

from kala.errors import ConstitutionError
from services.ethics.judge import Stage
from services.ethics.signed_yaml import load_yaml

GUARDS_PREFIX: Final = "guards/"
FORMAT: Final = 1
ANY_LANGUAGE: Final = "*"
PLACEHOLDERS: Final = frozenset({"request", "answer", "conversation", "role", "question", "definition"})
PLACEHOLDER: Final = re.compile(r"\{([a-z_]+)\}")
# What any guard model can read, and a verdict with its categories; both far above every published format.
MAX_CHARS: Final = 1_000_000
MAX_OUTPUT_TOKENS: Final = 256
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


class Severity(enum.Enum):
    """What a guard says of a text."""

    SAFE = "safe"
    UNSURE = "unsure"
    UNSAFE = "unsafe"


class PromptKind(enum.Enum):
    """Who writes the prompt that the model reads."""

    SERVER = "server"
    """The model server, by the model's own chat template, around the conversation."""
    WHOLE = "whole"
    """KALA, as one message with everything in it."""


class ReplyKind(enum.Enum):
    """Where the verdict stands in a reply."""

    FIRST_LINE = "first_line"
    """It is the first line, the codes are the second."""
    FIRST_WORD = "first_word"
    """It is the first line's only word, or the word in a <score>."""
    LABELLED = "labelled"
    """It follows a label and a colon on a line of its own."""


class Special(enum.Enum):
    """Meanings that are no category."""

    OPEN = "open"
    """The constitution prohibits no such thing: the question stays open."""
    ASKED = "asked"
    """The law and category of the question that was open."""


@dataclass(frozen=True, slots=True)
class Found:
    """A category of the constitution and its law."""

    law: int
    category: str


Meaning = Found | Special


@dataclass(frozen=True, slots=True)
class Question:
    """One thing to ask; `definitions` has a text for each stage in which it is asked."""

    name: str
    means: Meaning
    definitions: Mapping[Stage, str]


@dataclass(frozen=True, slots=True)
class ReplyRule:
    """How a reply is read; all keys are casefolded."""

    kind: ReplyKind
    values: Mapping[str, Severity]
    verdict_labels: Mapping[Stage, str]
    categories_label: str
    none: str


@dataclass(frozen=True, slots=True)
class GuardFormat:
    """One family of guard models. `codes` are casefolded; the first of `prompts` is the family's own way."""

    name: str
    only_raise: bool
    stages: frozenset[Stage]
    laws: frozenset[int]
    languages: frozenset[str]
    max_chars: int
    max_output_tokens: int
    logprobs: bool
    prompts: tuple[PromptKind, ...]
    system: str
    wholes: Mapping[Stage, str]
    speakers: Mapping[str, str]
    labels: tuple[str, ...]
    questions: tuple[Question, ...]
    reply: ReplyRule
    codes: Mapping[str, Meaning]
    fallback: Found

    def reads_language(self, language: str) -> bool:
        """Whether the model knows this language, an ISO 639-1 code; empty for one that nobody recognised."""
        return ANY_LANGUAGE in self.languages or language in self.languages


_REQUIRED: Final = frozenset(
    {
        "format", "only_raise", "stages", "laws", "languages", "max_chars", "max_output_tokens", "logprobs",
        "prompts", "labels", "reply", "codes", "fallback",
    }
)  # fmt: skip
_OPTIONAL: Final = frozenset({"questions", "speakers"})


def read_formats(files: Mapping[str, bytes], law_of: Mapping[str, int]) -> dict[str, GuardFormat]:
    """Every guard format of these verified files, by name; `law_of` tells the law of every category."""
    paths = sorted(path for path in files if path.startswith(GUARDS_PREFIX))
    formats = (_read(path, files[path], law_of) for path in paths)
    return {guard.name: guard for guard in formats}


def _read(path: str, data: bytes, law_of: Mapping[str, int]) -> GuardFormat:
    name = path.removeprefix(GUARDS_PREFIX).removesuffix(".yaml")
    try:
        _require(path.endswith(".yaml") and _NAME.fullmatch(name) is not None, "must be called <name>.yaml")
        return _format(name, load_yaml(data.decode("utf-8")), law_of)
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ConstitutionError(f"{path}: {type(error).__name__}: {error}") from error


# Any in all of the following: values of a YAML document, checked here.


def _format(name: str, document: Any, law_of: Mapping[str, int]) -> GuardFormat:
    _require_keys(document, _REQUIRED, _OPTIONAL, "the file")
    _require(document["format"] == FORMAT, f"format must be {FORMAT}")
    stages = frozenset(Stage(stage) for stage in document["stages"])
    _require(bool(stages), "stages must name one")
    laws = frozenset(document["laws"])
    _require(laws <= frozenset(law_of.values()), "laws must be numbers of laws")
    _require(
        all(isinstance(document[key], bool) for key in ("only_raise", "logprobs")), "must be true or false"
    )
    _require(not (document["only_raise"] and laws), "a guard that may only raise settles no law")
    prompts = document["prompts"]
    _require_keys(prompts, frozenset(), frozenset(kind.value for kind in PromptKind), "prompts")
    _require(bool(prompts), "prompts must name one")

    def meaning(value: Any) -> Meaning:
        return _meaning(value, law_of)

    fallback = meaning(document["fallback"])
    if not isinstance(fallback, Found):
        raise ValueError("fallback must be a law and a category")  # noqa: TRY004 - every wrong value is one
    return GuardFormat(
        name=name,
        only_raise=document["only_raise"],
        stages=stages,
        laws=laws,
        languages=_texts(document["languages"], "languages"),
        max_chars=_number(document["max_chars"], "max_chars", MAX_CHARS),
        max_output_tokens=_number(document["max_output_tokens"], "max_output_tokens", MAX_OUTPUT_TOKENS),
        logprobs=document["logprobs"],
        prompts=tuple(PromptKind(kind) for kind in prompts),
        system=_system(prompts.get("server")),
        wholes=_wholes(prompts.get("whole"), stages),
        speakers=_speakers(document.get("speakers")),
        labels=tuple(sorted(_texts(document["labels"], "labels"))),
        questions=tuple(_questions(document.get("questions"), stages, meaning)),
        reply=_reply(document["reply"], stages),
        codes={_text(code).casefold(): meaning(value) for code, value in document["codes"].items()},
        fallback=fallback,
    )


def _meaning(value: Any, law_of: Mapping[str, int]) -> Meaning:
    if isinstance(value, str):
        return Special(value)
    law, category = value
    _require(law_of.get(category) == law, f"law {law} has no category {category}")
    return Found(law, category)


def _system(server: Any) -> str:
    if server is None:
        return ""
    _require_keys(server, frozenset(), frozenset({"system"}), "prompts.server")
    return _template(server.get("system", ""), "prompts.server.system")


def _wholes(whole: Any, stages: frozenset[Stage]) -> dict[Stage, str]:
    if whole is None:
        return {}
    _require_keys(whole, frozenset(stage.value for stage in stages), frozenset(), "prompts.whole")
    return {Stage(stage): _template(text, f"prompts.whole.{stage}") for stage, text in whole.items()}


def _template(text: Any, where: str) -> str:
    unknown = set(PLACEHOLDER.findall(_text(text))) - PLACEHOLDERS
    _require(not unknown, f"{where} has unknown placeholders {', '.join(sorted(unknown))}")
    return str(text)


def _speakers(value: Any) -> dict[str, str]:
    if value is None:
        return {"user": "User", "assistant": "Assistant"}
    _require_keys(value, frozenset({"user", "assistant"}), frozenset(), "speakers")
    return {role: _text(name) for role, name in value.items()}


def _questions(value: Any, stages: frozenset[Stage], meaning: Callable[[Any], Meaning]) -> Iterable[Question]:
    if value is None:
        # The model asks itself all it knows; what its verdict means is in its codes.
        yield Question("", Special.ASKED, dict.fromkeys(stages, ""))
        return
    for name, asked in value.items():
        _require_keys(
            asked, frozenset({"means"}), frozenset(stage.value for stage in stages), f"questions.{name}"
        )
        definitions = {Stage(stage): _text(text) for stage, text in asked.items() if stage != "means"}
        yield Question(_text(name), meaning(asked["means"]), definitions)
    for stage in stages:
        _require(any(stage.value in asked for asked in value.values()), f"no question for {stage.value}")


_REPLY_KEYS: Final[Mapping[ReplyKind, tuple[frozenset[str], frozenset[str]]]] = {
    ReplyKind.FIRST_LINE: (frozenset({"kind", "values"}), frozenset()),
    ReplyKind.FIRST_WORD: (frozenset({"kind", "values"}), frozenset()),
    ReplyKind.LABELLED: (frozenset({"kind", "values", "verdict"}), frozenset({"categories", "none"})),
}


def _reply(value: Any, stages: frozenset[Stage]) -> ReplyRule:
    kind = ReplyKind(value["kind"])
    _require_keys(value, *_REPLY_KEYS[kind], "reply")
    values = {_text(word).casefold(): Severity(severity) for word, severity in value["values"].items()}
    _require({Severity.SAFE, Severity.UNSAFE} <= set(values.values()), "reply.values needs safe and unsafe")
    labels = value.get("verdict", {})
    if kind is ReplyKind.LABELLED:
        _require_keys(labels, frozenset(stage.value for stage in stages), frozenset(), "reply.verdict")
    return ReplyRule(
        kind,
        values,
        {Stage(stage): _text(label).casefold() for stage, label in labels.items()},
        _text(value.get("categories", "")).casefold(),
        _text(value.get("none", "")).casefold(),
    )


def _require(holds: bool, problem: str) -> None:  # noqa: FBT001 - reads as the condition it states
    if not holds:
        raise ValueError(problem)


def _require_keys(value: Any, required: frozenset[str], optional: frozenset[str], where: str) -> None:
    _require(isinstance(value, dict), f"{where} must be a mapping")
    wrong = sorted(map(str, (required - value.keys()) | (value.keys() - required - optional)))
    _require(not wrong, f"{where} has missing or unknown keys {', '.join(wrong)}")


def _text(value: Any) -> str:
    _require(isinstance(value, str), f"{value!r} must be a text")
    return str(value)


def _texts(value: Any, where: str) -> frozenset[str]:
    _require(isinstance(value, list), f"{where} must be a list")
    return frozenset(_text(item) for item in value)


def _number(value: Any, where: str, most: int) -> int:
    _require(
        isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most,
        f"{where} must be 1 to {most}",
    )
    return int(value)
