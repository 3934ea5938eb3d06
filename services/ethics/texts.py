"""What people are told, in every language that the constitution has texts for. Read strictly; pure.

A file that lacks a text, has one too many, or has a place that nothing fills, stops the load with its key.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from string import Formatter
from typing import Any, Final

# Every text exists in this language, and it speaks where a request's own has none.
DEFAULT_LANGUAGE: Final = "en"
# Beside the laws' categories: a language that the judges read less surely than English, and whatever has no question.
LANGUAGE_CATEGORY: Final = "language"
DEFAULT_QUESTION: Final = "default"
# A text must have so many common words, and such a share of them, to be taken for a text in that language.
MIN_COMMON: Final = 2
MIN_SHARE: Final = 0.2
# The end of a request is enough to know its language.
MAX_CHARS_READ: Final = 2_000
_WORD: Final = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
# Which places a text may have; all others have none.
_PLACES: Final[Mapping[str, frozenset[str]]] = {
    "refuse": frozenset({"law", "name", "reason", "alternative"}),
    "redirect": frozenset({"resources", "alternative"}),
    "clarify": frozenset({"question", "alternative"}),
    "injection": frozenset({"law", "name", "field", "start", "end"}),
}


@dataclass(frozen=True, slots=True)
class Texts:
    """All texts of one language; `laws` are the laws' names in it, the three mappings go by category.

    By its `common_words` a request in the language is known.
    """

    language: str
    common_words: frozenset[str]
    laws: tuple[str, ...]
    refuse: str
    redirect: str
    clarify: str
    undecided: str
    unreadable: str
    too_long: str
    injection: str
    resources: str
    reasons: Mapping[str, str]
    questions: Mapping[str, str]
    alternatives: Mapping[str, str]


def read_texts(
    document: Mapping[str, Any],  # Any: a YAML document, checked here
    language: str,
    law_names: Collection[str],
    categories: Collection[str],
) -> Texts:
    """The texts of one file; ValueError names what is missing, what nobody asked for, and what is no text."""
    _require("", document, {field.name for field in fields(Texts)})
    if document["language"] != language:
        raise ValueError(f"language must be {language}, not {document['language']}")
    if len(document["laws"]) != len(law_names):
        raise ValueError(f"laws must be the names of all {len(law_names)}, in order")
    if language == DEFAULT_LANGUAGE and list(document["laws"]) != list(law_names):
        raise ValueError("laws must be the names in laws.yaml")
    if not all(isinstance(word, str) for word in document["common_words"]):
        raise ValueError("common_words must be words; those that YAML reads otherwise need quotes")
    _require("reasons.", document["reasons"], {*categories})
    _require("questions.", document["questions"], {*categories, LANGUAGE_CATEGORY, DEFAULT_QUESTION})
    _require("alternatives.", document["alternatives"], {*categories, LANGUAGE_CATEGORY})
    for key, text in _texts(document):
        _check_text(key, text)
    lists = {
        "laws": tuple(document["laws"]),
        "common_words": frozenset(map(str.lower, document["common_words"])),
    }
    return Texts(**{**document, **lists})


def language_of(text: str, languages: Mapping[str, Texts]) -> str:
    """In which of these languages a text is written, as far as its common words tell; the default one unless sure.

    It chooses the words of an answer, and decides nothing.
    """
    words = _WORD.findall(text[-MAX_CHARS_READ:].lower())
    shares = {code: sum(word in texts.common_words for word in words) for code, texts in languages.items()}
    likely = max(shares, key=lambda code: (shares[code], code == DEFAULT_LANGUAGE), default=DEFAULT_LANGUAGE)
    is_sure = shares.get(likely, 0) >= max(MIN_COMMON, MIN_SHARE * len(words))
    return likely if is_sure else DEFAULT_LANGUAGE


def _require(prefix: str, found: Mapping[str, object], wanted: Collection[str]) -> None:
    """One wording for all: the texts of a language are complete, and hold nothing else."""
    missing = sorted(set(wanted) - found.keys())
    if missing:
        raise ValueError(f"no text for {', '.join(f'{prefix}{key}' for key in missing)}")
    unknown = sorted(found.keys() - set(wanted))
    if unknown:
        raise ValueError(f"unknown texts {', '.join(f'{prefix}{key}' for key in unknown)}")


def _texts(document: Mapping[str, Any]) -> list[tuple[str, object]]:  # Any: a YAML document, checked here
    found: list[tuple[str, object]] = []
    for key, value in document.items():
        if isinstance(value, Mapping):
            found += [(f"{key}.{inner}", text) for inner, text in value.items()]
        elif key in {"laws", "common_words"}:
            found += [(f"{key}[{number}]", name) for number, name in enumerate(value)]
        else:
            found.append((key, value))
    return found


def _check_text(key: str, text: object) -> None:
    """A text says something, and each of its places is filled; a place that is promised is there."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{key} must be a text")
    try:
        places = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    wanted = _PLACES.get(key, frozenset())
    if places != wanted:
        raise ValueError(
            f"{key} must have the places {sorted(wanted) or 'none'}, and has {sorted(places) or 'none'}"
        )
