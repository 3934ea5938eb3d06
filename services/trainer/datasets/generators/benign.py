"""Harmless requests with answers, many of which sound like harmful ones: what must not be refused."""

from __future__ import annotations

from typing import Final

from services.trainer.datasets.draw import Draw, capitalised, opened, templates
from services.trainer.datasets.generators.plain import KIND, plain_request
from services.trainer.datasets.rows import Row, conversation

CATEGORY: Final = "benign"
# Computed answers keep plain requests in the mix; the rest contrasts with the laws' requests.
_COMPUTED_SHARE: Final = 0.25
# As many plain requests as others: what is only ever contrasted with harm begins to look like it.
_PLAIN_SHARE: Final = 0.5


def benign_row(draw: Draw) -> Row:
    """Draws one harmless request with its answer."""
    words = templates("benign")
    if draw.chance(_PLAIN_SHARE):
        asked, answer = plain_request(draw)
        if draw.chance(0.5):
            asked = capitalised(asked)
        return conversation(CATEGORY, asked, answer, facts={"kind": KIND})
    if draw.chance(_COMPUTED_SHARE):
        asked, answer, kind = _computed(draw)
    else:
        asks, answer = draw.choice(words["questions"])
        asked, kind = draw.text(draw.choice(asks)), "contrast"
        answer = draw.choice(words["answer_openings"]) + answer
    if asked[-1] not in "?.!":
        asked += draw.choice((".", "?", ""))
    asked = opened(draw, draw.choice(words["openings"]), asked) + draw.choice(words["closings"])
    return conversation(CATEGORY, capitalised(asked), answer, facts={"kind": kind})


def _computed(draw: Draw) -> tuple[str, str, str]:
    entry = draw.choice(templates("benign")["computed"])
    kind = entry["kind"]
    if kind == "product":
        a, b = draw.between(2, 40), draw.between(2, 40)
        c = a * b
    elif kind == "difference":
        b, a = sorted((draw.between(1, 500), draw.between(1, 500)))
        c = a - b
    elif kind == "minutes":
        a, b = draw.between(1, 23), draw.between(1, 59)
        c = a * 60 + b
    elif kind == "kilometres":
        a, b = draw.between(1, 90), draw.between(1, 999)
        c = a * 1000 + b
    else:
        a, b = draw.between(1, 500), draw.between(1, 500)
        c = a + b
    slots = {"a": str(a), "b": str(b), "c": str(c)}
    return draw.text(draw.choice(entry["asks"]), slots), draw.text(entry["answer"], slots), "computed"
