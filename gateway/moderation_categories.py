"""From a verdict by the Five Laws to a moderation result in OpenAI's shape.  Pure.

Every result says the same categories: OpenAI's thirteen, `law_0` to `law_4`, and the constitution's own as
`kala/<category>`. A category is true when ethics found it and did not allow the text; scores are ethics' own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from gateway.acts import decision_json
from kala.common.v1 import decision_pb2
from kala.ethics.v1 import ethics_pb2

Json = dict[str, Any]  # Any: JSON

LAWS: Final = (0, 1, 2, 3, 4)

OPENAI_CATEGORIES: Final = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/intent", "self-harm/instructions", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip

NEVER_JUDGED: Final = frozenset(
    {"hate/threatening", "self-harm/intent", "self-harm/instructions", "violence/graphic"}
)
"""The constitution draws no such line, so these are always false, with score 0 and no applied input type."""

_WEAPON: Final = ("illicit", "illicit/violent")
_VIOLENCE: Final = ("violence", "illicit", "illicit/violent")

OPENAI_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "weapons.chemical": _WEAPON,
    "weapons.biological": _WEAPON,
    "weapons.nuclear": _WEAPON,
    "infrastructure.attack": _WEAPON,
    "humanity.control": _WEAPON,
    "weapons.explosives": _WEAPON,
    "weapons.firearms": _WEAPON,
    "violence.killing": _VIOLENCE,
    "violence.terror": _VIOLENCE,
    "violence.assault": _VIOLENCE,
    "violence.poison": _VIOLENCE,
    "violence.abduction": _VIOLENCE,
    "sexual.minors": ("sexual", "sexual/minors"),
    "sexual.assault": ("sexual", *_VIOLENCE),
    "harassment.threats": ("harassment", "harassment/threatening"),
    "self_harm": ("self-harm",),
    "health.danger": (),
    "animals.cruelty": ("violence",),
    "cyber.intrusion": ("illicit",),
    "cyber.malware": ("illicit",),
    "cyber.credentials": ("illicit",),
    "fraud.money": ("illicit",),
    "fraud.identity": ("illicit",),
    "fraud.scams": ("illicit",),
    "crime.drugs": ("illicit",),
    "crime.theft": ("illicit",),
    "crime.trafficking": ("illicit",),
    "crime.evasion": ("illicit",),
    "crime.corruption": ("illicit",),
    "privacy.surveillance": ("illicit",),
    "privacy.doxxing": ("harassment", "illicit"),
    "deception.disinformation": ("illicit",),
    "integrity.jailbreak": (),
    "integrity.prompt_injection": (),
    "integrity.sandbox_escape": (),
    "integrity.oversight_evasion": (),
    "integrity.encoded_instructions": (),
    "dignity.hate": ("hate",),
    "dignity.discrimination": ("hate",),
    "dignity.extremism": ("hate",),
}
"""The constitution's categories, in the order of the laws, with OpenAI's that speak of the same; docs/ethics/moderation.md
shows this table. A category that an amended constitution adds appears under its own name and its law's."""

SCORE_DIGITS: Final = 6
"""Millionths, as the log keeps scores; ethics' own differ by more between machines."""

ROUNDING: Final = 1e-6
"""How far above 1 a sum of single-precision probabilities may come."""


def is_whole(verdict: ethics_pb2.ScoreResponse) -> bool:
    """Tell whether a verdict can be trusted to say something: an outcome, every law, and scores that are probabilities."""
    if verdict.decision.outcome == decision_pb2.OUTCOME_UNSPECIFIED:
        return False
    if [law.law for law in verdict.laws] != list(LAWS):
        return False
    scores = [
        *(law.score for law in verdict.laws),
        *(category.score for category in verdict.categories),
        *(evidence.score for evidence in verdict.decision.evidence),
    ]
    return all(math.isfinite(score) and 0 <= score <= 1 + ROUNDING for score in scores)


def result_of(verdict: ethics_pb2.ScoreResponse, *, stage: str, unjudged: tuple[str, ...] = ()) -> Json:
    """Give one entry of `results`; the verdict must be whole."""
    decision = verdict.decision
    is_flagged = decision.outcome != decision_pb2.OUTCOME_ALLOW
    found = [item for item in decision.evidence if item.outcome != decision_pb2.OUTCOME_ALLOW]
    scores = _scores(verdict, found)
    spoken = {item.category for item in found} | {decision.category}
    broken = {item.law for item in found if item.HasField("law")}
    if decision.HasField("law"):
        broken.add(decision.law)
    flags = {name: is_flagged and name in spoken for name in scores}
    categories, strengths = {}, {}
    for name in OPENAI_CATEGORIES:
        own = [category for category, names in OPENAI_OF.items() if name in names]
        categories[name] = any(flags[category] for category in own)
        strengths[name] = max((scores[category] for category in own), default=0.0)
    for law in verdict.laws:
        categories[f"law_{law.law}"] = is_flagged and law.law in broken
        strengths[f"law_{law.law}"] = law.score
    for category, score in scores.items():
        categories[f"kala/{category}"] = flags[category]
        strengths[f"kala/{category}"] = score
    return {
        "flagged": is_flagged,
        "categories": categories,
        "category_scores": {name: round(min(1.0, score), SCORE_DIGITS) for name, score in strengths.items()},
        "category_applied_input_types": {
            name: [] if name in NEVER_JUDGED else ["text"] for name in categories
        },
        "kala": {"decision": decision_json(decision, stage), "unjudged": list(unjudged)},
    }


def _scores(verdict: ethics_pb2.ScoreResponse, found: list[decision_pb2.Evidence]) -> dict[str, float]:
    """Give each category's strongest score; what decided without one (an unfinished check) counts as certain."""
    scores = dict.fromkeys(OPENAI_OF, 0.0)
    told = [
        *((category.category, category.score) for category in verdict.categories),
        *((law.category, law.score) for law in verdict.laws),
        *((item.category, item.score) for item in found),
    ]
    for category, score in told:
        if category:
            scores[category] = max(score, scores.get(category, 0.0))
    if verdict.decision.category:
        scores.setdefault(verdict.decision.category, 1.0)
    return scores
