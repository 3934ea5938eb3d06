"""Read the classifier's calibration: what its columns mean, how sure they are, and from which certainty on they decide.

It is one of the signed files. Everything in it is checked while reading; ConstitutionError names the field. Pure.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kala.errors import ConstitutionError

MODEL_FILE: Final = "classifier/model.onnx"
TOKENIZER_FILE: Final = "classifier/tokenizer.json"
CALIBRATION_FILE: Final = "classifier/calibration.json"
FORMAT: Final = 1
LAWS: Final = 5
# A temperature outside this range does not calibrate a network, it hides or drowns it.
MIN_TEMPERATURE: Final = 0.05
MAX_TEMPERATURE: Final = 20.0
_SHA256: Final = re.compile("[0-9a-f]{64}")
_TOP_KEYS: Final = frozenset(
    {"format", "model_sha256", "tokenizer_sha256", "categories", "temperatures", "thresholds"}
)
_TEMPERATURES: Final = ("unsafe", "jailbreak", "injection")
_THRESHOLDS: Final = (
    "window_refuse",
    "uncertain",
    "ambiguous",
    "jailbreak",
    "injection",
    "output_refuse",
    "output_uncertain",
)


@dataclass(frozen=True, slots=True)
class Temperatures:
    """What the logits of the yes/no columns are divided by before they become probabilities."""

    unsafe: float
    jailbreak: float
    injection: float


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Probabilities from which on the classifier speaks; `refuse` by law, 0 to 4.

    `window_refuse` holds for windows of a text longer than one pass and for joined turns. From `uncertain` to
    `refuse` the question is open; `ambiguous` is about the intent, within that band.
    """

    refuse: tuple[float, ...]
    window_refuse: float
    uncertain: float
    ambiguous: float
    jailbreak: float
    injection: float
    output_refuse: float
    output_uncertain: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """The calibration; `category_laws[i]` is the law of `categories[i]`."""

    model_sha256: str
    tokenizer_sha256: str
    categories: tuple[str, ...]
    category_laws: tuple[int, ...]
    temperatures: Temperatures
    thresholds: Thresholds

    @property
    def rule(self) -> str:
        """What its evidence names as the rule: which weights spoke."""
        return f"classifier:{self.model_sha256[:12]}"


def read_calibration(data: bytes, law_of: Mapping[str, int]) -> Calibration:
    """The calibration in these bytes; `law_of` tells the law of every category that the constitution knows."""
    try:
        document = json.loads(data.decode("utf-8"))
    except ValueError as error:
        raise _wrong("", f"is not JSON: {error}") from None
    _require_keys(document, _TOP_KEYS, "")
    if document["format"] != FORMAT:
        raise _wrong("format", f"must be {FORMAT}")
    categories = _categories(document["categories"], law_of)
    temperatures, thresholds = document["temperatures"], document["thresholds"]
    _require_keys(temperatures, _TEMPERATURES, "temperatures")
    _require_keys(thresholds, (*_THRESHOLDS, "refuse"), "thresholds")
    _require_keys(thresholds["refuse"], [str(law) for law in range(LAWS)], "thresholds.refuse")
    return Calibration(
        model_sha256=_digest(document, "model_sha256"),
        tokenizer_sha256=_digest(document, "tokenizer_sha256"),
        categories=categories,
        category_laws=tuple(law_of[category] for category in categories),
        temperatures=Temperatures(**{name: _temperature(temperatures, name) for name in _TEMPERATURES}),
        thresholds=Thresholds(
            tuple(_probability(thresholds["refuse"], str(law), "thresholds.refuse") for law in range(LAWS)),
            **{name: _probability(thresholds, name, "thresholds") for name in _THRESHOLDS},
        ),
    )


def _categories(value: Any, law_of: Mapping[str, int]) -> tuple[str, ...]:  # Any: a JSON value, checked here
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise _wrong("categories", "must be a list of names")
    unknown = sorted(set(value) - law_of.keys())
    if unknown:
        raise _wrong("categories", f"no law has {', '.join(unknown)}")
    if len(set(value)) != len(value):
        raise _wrong("categories", "names one twice")
    missing = sorted(set(range(LAWS)) - {law_of[name] for name in value})
    if missing:
        raise _wrong("categories", f"has none of law {missing[0]}")
    return tuple(value)


def _digest(document: Mapping[str, Any], name: str) -> str:  # Any: JSON values, checked here
    value = document[name]
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise _wrong(name, "must be 64 lower-case hexadecimal digits")
    return value


def _temperature(values: Mapping[str, Any], name: str) -> float:  # Any: JSON values, checked here
    value = _number(values[name], f"temperatures.{name}")
    if not MIN_TEMPERATURE <= value <= MAX_TEMPERATURE:
        raise _wrong(f"temperatures.{name}", f"must be {MIN_TEMPERATURE} to {MAX_TEMPERATURE}")
    return value


def _probability(
    values: Mapping[str, Any], name: str, within: str
) -> float:  # Any: JSON values, checked here
    value = _number(values[name], f"{within}.{name}")
    # At 0 everything would be refused, above 1 nothing: neither is a threshold.
    if not 0 < value <= 1:
        raise _wrong(f"{within}.{name}", "must be above 0 and at most 1")
    return value


def _number(value: Any, field: str) -> float:  # Any: a JSON value, checked here
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong(field, "must be a number")
    return float(value)


def _require_keys(value: Any, keys: Sequence[str] | frozenset[str], field: str) -> None:  # Any: a JSON value
    if not isinstance(value, dict):
        raise _wrong(field, "must be an object")
    for name in sorted(set(keys) - value.keys()):
        raise _wrong(f"{field}.{name}".lstrip("."), "is missing")
    for name in sorted(value.keys() - set(keys)):
        raise _wrong(f"{field}.{name}".lstrip("."), "is unknown")


def _wrong(field: str, problem: str) -> ConstitutionError:
    return ConstitutionError(f"{CALIBRATION_FILE}: {field} {problem}".replace(":  ", ": "))
