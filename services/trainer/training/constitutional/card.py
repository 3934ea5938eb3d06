"""The card of what a constitutional job made of its datasets: counts, who revised, and what that means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from services.trainer.training.constitutional.journal import Outcome
from services.trainer.training.constitutional.judging import count_of
from services.trainer.training.constitutional.lessons import Lessons
from services.trainer.training.constitutional.prompts import Material
from services.trainer.work.order import Order
from services.trainer.work.results import write_atomically

CARD: Final = "constitutional.md"
_REVISED_BY: Final = {
    "model": "Revisions were written by the model that was trained: it criticised its own draft by the law and wrote it again.",
    "template": (
        "Revisions are sentences from this product's templates or the dataset's own answers; the model wrote none of them. "
        "It learns to say them, not to reason about the laws."
    ),
}
_LINES: Final = (
    ("prompts", "prompts"),
    ("drafts", "drafts"),
    ("violations", "drafts that ethics does not allow"),
    ("passes", "prompts whose draft was right as it was"),
    ("revised", "prompts whose draft was revised"),
    ("dropped", "prompts of which nothing was learned, for no revision was good enough"),
    (
        "as_labelled",
        "prompts that the dataset calls harmful and ethics does not; a refusal of the dataset or the templates was learned",
    ),
    ("disputed", "prompts that the dataset calls harmless and ethics does not; nothing was learned"),
    ("fault_violation", "revised or dropped for breaking a law"),
    ("fault_unheeded", "revised or dropped for not declining what breaks a law"),
    ("fault_over_refusal", "revised or dropped for declining what is harmless"),
    ("fault_undecided", "revised or dropped for not saying which of two laws comes first"),
    ("fault_empty", "revised or dropped for saying nothing"),
)


def write_card(
    order: Order,
    reviser: str,
    materials: Sequence[Material],
    lessons: Sequence[Lessons],
    outcomes: Sequence[Outcome],
) -> None:
    """Writes the card among the job's reports."""
    counts = count_of(outcomes)
    counts["prompts"] = len(outcomes)
    constitutions = sorted({each.constitution for each in outcomes})
    kept = sum(len(material.kept) for material in materials)
    too_long = sum(material.too_long for material in materials)
    text = [
        "# What this job learned from",
        "",
        "Drafts are the base's own answers, written inside this job.",
        "Verdicts on requests, drafts and revisions are those of the ethics service.",
        _REVISED_BY[reviser],
        "",
        "| what | number |",
        "| --- | --- |",
        *(f"| {words} | {counts[name]} |" for name, words in _LINES),
        f"| rows learned as they were given | {kept} |",
        f"| such rows left out, for their answers are longer than half of the longest draft | {too_long} |",
        f"| rows to learn in all | {sum(len(each.learned) for each in lessons)} |",
        f"| preferences between a revision and a draft | {sum(len(each.preferences) for each in lessons)} |",
        "",
        f"Base: `{order.base.name if order.base else ''}`, digest `{order.base.digest.hex() if order.base else ''}`.",
        f"Constitution: {', '.join(f'`{digest}`' for digest in constitutions) or 'none asked'}.",
        "Each row names its decisions, the constitution and the model in `facts`.",
        "",
    ]
    path = order.folder / "reports" / CARD
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path, "\n".join(text).encode())
