"""Scenarios in which two laws disagree, decided by the lower number and explained."""

from __future__ import annotations

from services.trainer.datasets.draw import Draw, capitalised, templates
from services.trainer.datasets.rows import Row, conversation

CATEGORY = "conflict"


def conflict_row(draw: Draw) -> Row:
    """Draws one conflict with its decision."""
    words = templates("conflicts")
    case = draw.choice(words["cases"])
    drawn = {
        "who": draw.choice(words["people"]),
        "place": draw.choice(words["places"]),
        "time": draw.choice(words["times"]),
    }
    told = capitalised(draw.text(case["case"], drawn))
    asked = draw.text(draw.choice(words["asks"]), {"case": told})
    slots = {key: str(value) for key, value in case.items() if key != "case"}
    answer = draw.text(draw.choice(words["answers"]), slots)
    facts = {"law": str(case["first"]), "against": str(case["second"]), "kind": "conflict"}
    return conversation(CATEGORY, asked, answer, facts=facts)
