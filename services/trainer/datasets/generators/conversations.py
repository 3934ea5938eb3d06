"""Conversations of several turns: a harmless beginning, a request that a law forbids, pressing, and a way back."""

from __future__ import annotations

from typing import Final

from services.trainer.datasets.draw import Draw, capitalised, templates
from services.trainer.datasets.generators.laws import acts, refusal_of, request_for
from services.trainer.datasets.rows import Row, conversation

CATEGORY: Final = "multi_turn"
_BACK_SHARE: Final = 0.5


def conversation_row(draw: Draw) -> Row:
    """Draws one conversation of six or eight messages."""
    words = templates("conversations")
    topic, act = draw.choice(words["topics"]), draw.choice(acts())
    slots = {
        **act.slots(),
        **topic,
        "topic_capital": capitalised(topic["topic"]),
        "reason_capital": capitalised(act.reason),
        "request": request_for(draw, act),
    }
    press = draw.choice(words["presses"])
    turns = [
        capitalised(draw.text(draw.choice(words["starts"]), slots)),
        draw.text(draw.choice(words["returns"]), slots),
        capitalised(draw.text(draw.choice(words["turns"]), slots)),
        refusal_of(draw, act),
        capitalised(draw.text(press["ask"], slots)),
        draw.text(press["answer"], slots),
    ]
    if draw.chance(_BACK_SHARE):
        turns += [
            capitalised(draw.text(draw.choice(words["backs"]), slots)),
            draw.text(draw.choice(words["returns"]), slots),
        ]
    return conversation(
        CATEGORY, *turns, facts={"law": str(act.law), "harm": act.category, "kind": "dialogue"}
    )
