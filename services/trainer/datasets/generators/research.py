"""Habits of a research assistant: controlled experiments, reasoned refactoring, trade-offs, and owning up to doubt."""

from __future__ import annotations

from typing import Final

from services.trainer.datasets.draw import Draw, capitalised, templates
from services.trainer.datasets.rows import Row, conversation

_MONTHS: Final = ("January", "March", "April", "May", "June", "July", "September", "October", "November")
# Two groups of n find an effect of about 2.8 sqrt(2 / n) standard deviations with 80 % power at the 5 % level.
_POWER_FACTOR: Final = 2.8


def experiment_row(draw: Draw) -> Row:
    """Draws a question and a plan with control, lot, blinding and an analysis fixed beforehand."""
    words = templates("research")["experiment_design"]
    entry = draw.choice(words["fields"])
    half = draw.between(6, 200)
    slots = {
        "factor": draw.choice(entry["factors"]),
        "outcome": draw.choice(entry["outcomes"]),
        "half": str(half),
        "n": str(2 * half),
        "effect": f"{_POWER_FACTOR * (2 / half) ** 0.5:.2f}",
        **{key: entry[key] for key in ("units", "control", "blinding", "measure", "kept", "threat")},
    }
    asked = draw.text(draw.choice(words["asks"]), slots)
    if slots["n"] not in asked:
        asked += f" We have {slots['n']} {slots['units']}."
    return conversation("experiment_design", asked, draw.text(words["answer"], slots))


def refactoring_row(draw: Draw) -> Row:
    """Draws a piece of code, a better one, the reasons, and how to check that it still does the same."""
    words = templates("research")["refactoring"]
    case, limit = draw.choice(words["cases"]), draw.between(2, 99)
    slots = {
        "noun": draw.choice(words["nouns"]),
        "field": draw.choice(words["fields"]),
        "limit": str(limit),
        "double": str(2 * limit),
        "triple": str(3 * limit),
        "square": str(limit * limit),
    }
    # Code holds parentheses, bars and double spaces: it is filled in last, and as it is.
    filled = {key: _filled(text, slots) for key, text in case.items()}
    asked = _alternatives_only(draw, draw.choice(words["asks"])).replace(
        "{before}", _fenced(filled["before"])
    )
    answer = words["answer"].replace("{after}", _fenced(filled["after"]))
    for key in ("why", "same", "check"):
        answer = answer.replace("{" + key + "}", filled[key])
    return conversation("refactoring", asked, answer)


def trade_off_row(draw: Draw) -> Row:
    """Draws two alternatives, what each costs, a choice by what matters, and what would change it."""
    words = templates("research")["trade_offs"]
    pair = dict(draw.choice(words["pairs"]))
    first = draw.chance(0.5)
    won = "a" if first else "b"
    criterion = draw.choice(pair.pop("a_wins") if first else pair.pop("b_wins"))
    other = draw.choice(pair.pop("b_wins") if first else pair.pop("a_wins"))
    slots = {
        **pair,
        "use": draw.choice(words["uses"]),
        "criterion": criterion,
        "choice": pair[won],
        "reason": pair[f"{won}_for"],
        "turn": f"{other} came to matter more",
    }
    if draw.chance(0.5):
        slots |= {"a": pair["b"], "b": pair["a"]}
        slots |= {"a_for": pair["b_for"], "b_for": pair["a_for"]}
        slots |= {"a_against": pair["b_against"], "b_against": pair["a_against"]}
    asked = capitalised(draw.text(draw.choice(words["asks"]), slots))
    answer = "\n".join(capitalised(line) for line in draw.text(words["answer"], slots).split("\n"))
    return conversation("trade_offs", asked, answer)


def uncertainty_row(draw: Draw) -> Row:
    """Draws a question that cannot be answered from here, said openly, and how to verify it."""
    words = templates("research")["uncertainty"]
    drawn = {
        "place": draw.choice(words["places"]),
        "item": draw.choice(words["items"]),
        "effect": draw.choice(words["effects"]),
        "package": draw.choice(words["packages"]),
        "day": str(draw.between(1, 28)),
        "month": draw.choice(_MONTHS),
        "percent": str(draw.between(3, 60)),
        "year": str(draw.between(1950, 2020)),
        "version": f"{draw.between(1, 9)}.{draw.between(0, 20)}",
        "number": str(draw.between(5, 200)),
    }
    case = {key: draw.text(text, drawn) for key, text in draw.choice(words["cases"]).items()}
    case["guess_capital"] = capitalised(case["guess"])
    asked = draw.text(draw.choice(words["asks"]), case)
    return conversation("uncertainty", asked, draw.text(draw.choice(words["answers"]), case))


def _filled(text: str, slots: dict[str, str]) -> str:
    for key, value in slots.items():
        text = text.replace("{" + key + "}", value)
    return text.replace("{{", "{").replace("}}", "}")


def _alternatives_only(draw: Draw, text: str) -> str:
    return draw.text(text)


def _fenced(code: str) -> str:
    return f"```python\n{code}\n```"
