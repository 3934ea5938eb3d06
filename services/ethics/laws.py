"""Read the verified constitution into values: the laws, their hard blocks, the decision order, the texts.

Everything is checked while reading: an unknown key, an unknown category or a block that breaks a rule stops
the load with a ConstitutionError that names the file. It reads bytes that were verified, never the disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import yaml

from kala.errors import ConstitutionError
from kala.ethics.constitution import VerifiedConstitution
from services.ethics.judge import Outcome, Stage
from services.ethics.pattern_width import longest_match
from services.ethics.patterns import Pattern, expand
from services.ethics.signed_yaml import load_yaml
from services.ethics.texts import DEFAULT_LANGUAGE, Texts, read_texts

LAW_NUMBERS: Final = (0, 1, 2, 3, 4)
BLOCKS_PREFIX: Final = "hard_blocks/"
TEXTS_PREFIX: Final = "texts/"
STAGES: Final[Mapping[str, frozenset[Stage]]] = {
    "request": frozenset({Stage.REQUEST}),
    "output": frozenset({Stage.OUTPUT}),
    "both": frozenset({Stage.REQUEST, Stage.OUTPUT}),
    "tool_result": frozenset({Stage.TOOL_RESULT}),
    "any": frozenset(Stage),
}


@dataclass(frozen=True, slots=True)
class Law:
    """One of the Five Laws."""

    number: int
    name: str
    text: str
    categories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HardBlock:
    """One deterministic rule.

    A match counts only right after a match of `frame`, if there is one, and not where `unless` matches. `max_chars` bounds the match in folded characters
    and is set exactly for rules that judge output. `needs_opaque` rules count only where the material holds
    encoded text that could not be read.
    """

    id: str
    law: int
    category: str
    stages: frozenset[Stage]
    outcome: Outcome
    frame: Pattern | None
    pattern: Pattern
    unless: tuple[Pattern, ...]
    max_chars: int | None
    needs_opaque: bool


@dataclass(frozen=True, slots=True)
class DecisionOrder:
    """How evidence becomes one outcome: laws from first to last, and outcomes within a law from strongest to weakest."""

    laws: tuple[int, ...]
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class Constitution:
    """The constitution as values; `digest` names it in every decision, `languages` holds the texts of each language."""

    version: str
    digest: bytes
    laws: tuple[Law, ...]
    order: DecisionOrder
    blocks: tuple[HardBlock, ...] = field(repr=False)
    languages: Mapping[str, Texts] = field(repr=False)
    look_alikes: Mapping[str, str] = field(repr=False)

    @property
    def texts(self) -> Texts:
        """The texts in the language that has all of them."""
        return self.languages[DEFAULT_LANGUAGE]

    def texts_in(self, language: str) -> Texts:
        """The texts in this language (an ISO 639 code), or in the one that has all of them."""
        return self.languages.get(language, self.texts)


def read_constitution(verified: VerifiedConstitution) -> Constitution:
    """The constitution's values; ConstitutionError names the file that does not make sense."""
    files = verified.files
    laws = _read("laws.yaml", files, _laws)
    fragments = _read("fragments.yaml", files, dict)
    blocks: list[HardBlock] = []
    for path in sorted(name for name in files if name.startswith(BLOCKS_PREFIX)):
        blocks += _read(path, files, lambda document: tuple(_blocks(document, laws, fragments)))
    if len({block.id for block in blocks}) != len(blocks):
        raise ConstitutionError(f"{BLOCKS_PREFIX}: two blocks share an id")
    return Constitution(
        version=verified.version,
        digest=verified.digest,
        laws=laws,
        order=_read("decision_order.yaml", files, _order),
        blocks=tuple(blocks),
        languages=_languages(files, laws),
        look_alikes=_read("confusables.json", files, lambda document: dict(document["letters"])),
    )


def _read(
    path: str, files: Mapping[str, bytes], build: Any
) -> Any:  # Any: one reader for files of every shape
    if path not in files:
        raise ConstitutionError(f"{path}: missing from the signed files")
    try:
        text = files[path].decode("utf-8")
        return build(json.loads(text) if path.endswith(".json") else load_yaml(text))
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ConstitutionError(f"{path}: {type(error).__name__}: {error}") from error
    except ConstitutionError as error:
        raise ConstitutionError(f"{path}: {error.message}") from error


def _laws(document: Any) -> tuple[Law, ...]:  # Any: a YAML document, checked here
    laws = tuple(
        Law(int(law["number"]), str(law["name"]), " ".join(law["text"].split()), tuple(law["categories"]))
        for law in document["laws"]
    )
    if tuple(law.number for law in laws) != LAW_NUMBERS:
        raise ValueError("the laws must be 0 to 4, in order")
    return laws


def _order(document: Any) -> DecisionOrder:  # Any: a YAML document, checked here
    order = DecisionOrder(tuple(document["laws"]), tuple(Outcome(name) for name in document["outcomes"]))
    if sorted(order.laws) != list(LAW_NUMBERS):
        raise ValueError("laws must name each of the five laws once")
    if set(order.outcomes) != set(Outcome) - {Outcome.ALLOW} or len(order.outcomes) != len(Outcome) - 1:
        raise ValueError("outcomes must name every outcome but ALLOW once")
    return order


def _languages(files: Mapping[str, bytes], laws: tuple[Law, ...]) -> dict[str, Texts]:
    """Every language that has texts, the default one included; each file is named after its language."""
    paths = {name for name in files if name.startswith(TEXTS_PREFIX)} | {_texts_path(DEFAULT_LANGUAGE)}
    languages = {path.removeprefix(TEXTS_PREFIX).removesuffix(".yaml"): path for path in sorted(paths)}
    names = [law.name for law in laws]
    categories = [category for law in laws for category in law.categories]
    return {
        language: _read(
            path, files, partial(read_texts, language=language, law_names=names, categories=categories)
        )
        for language, path in languages.items()
    }


def _texts_path(language: str) -> str:
    return f"{TEXTS_PREFIX}{language}.yaml"


def _blocks(document: Any, laws: tuple[Law, ...], fragments: Mapping[str, str]) -> Iterator[HardBlock]:
    law = laws[document["law"]]
    shared = tuple(document.get("unless", ()))
    for entry in document["blocks"]:
        try:
            yield _block(law, entry | {"unless": (*entry.get("unless", ()), *shared)}, fragments)
        except (ValueError, KeyError, TypeError, ConstitutionError) as error:
            raise ConstitutionError(f"{entry.get('id')}: {error}") from error


_BLOCK_KEYS: Final = frozenset(
    {
        "id",
        "category",
        "stage",
        "outcome",
        "frame",
        "pattern",
        "unless",
        "max_chars",
        "needs_opaque",
        "match",
        "no_match",
    }
)


def _block(law: Law, entry: Mapping[str, Any], fragments: Mapping[str, str]) -> HardBlock:
    unknown = entry.keys() - _BLOCK_KEYS
    if unknown:
        raise ValueError(f"unknown keys {', '.join(sorted(unknown))}")
    if entry["category"] not in law.categories:
        raise ValueError(f"law {law.number} has no category {entry['category']}")
    if not entry["match"] or not entry["no_match"]:
        raise ValueError("match and no_match must each hold an example")
    bounded, frame = "max_chars" in entry, entry.get("frame")
    block = HardBlock(
        id=entry["id"],
        law=law.number,
        category=entry["category"],
        stages=STAGES[entry["stage"]],
        outcome=Outcome(entry.get("outcome", Outcome.REFUSE.value)),
        frame=expand(frame, fragments, whole_words=False) if frame else None,
        pattern=expand(entry["pattern"], fragments, bounded=bounded),
        unless=tuple(expand(pattern, fragments, whole_words=False) for pattern in entry["unless"]),
        max_chars=entry.get("max_chars"),
        needs_opaque=entry.get("needs_opaque", False),
    )
    _check_block(block)
    return block


def _check_block(block: HardBlock) -> None:
    judges_output = block.stages != STAGES["request"]
    if judges_output != (block.max_chars is not None):
        raise ValueError("max_chars is required exactly where a block judges more than requests")
    if judges_output and (not block.pattern.is_bounded() or block.needs_opaque or block.frame):
        raise ValueError("a block that judges output has no *, + or {n,}, no frame and no needs_opaque")
    if block.outcome is Outcome.ALLOW:
        raise ValueError("a block cannot allow")
    if block.max_chars is not None:
        # The hold-back of outputs is made of this number.
        longest = max(longest_match(source) or 0 for source in (block.pattern.spaced, block.pattern.joined))
        if longest > block.max_chars:
            raise ValueError(
                f"a match can have {longest} characters, so max_chars must be at least {longest}"
            )
