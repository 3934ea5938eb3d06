"""Seat the judges over a verified constitution: the same ones in the service, in a replay and offline."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kala.ethics.constitution import VerifiedConstitution
from services.ethics.bench import Bench
from services.ethics.classifier.classifier import load_classifier
from services.ethics.classifier.judge import ClassifierJudge
from services.ethics.fold import Folder
from services.ethics.guard.formats import GuardFormat, read_formats
from services.ethics.judge import Judge
from services.ethics.judgement import OnFault
from services.ethics.laws import read_constitution

SeatGuard = Callable[[Mapping[str, GuardFormat], bytes], Judge]
"""Makes the guard by the formats of a constitution and its digest."""


def seat_judges(
    verified: VerifiedConstitution,
    *,
    allow_unreadable: bool,
    on_fault: OnFault,
    guard: SeatGuard | None = None,
    workers: int | None = None,
) -> Bench:
    """The bench of that version, ready to judge; ConstitutionError names a file that makes no sense.

    `workers` is how many cores its classifier may use at once; None means a share of those that there are.
    """
    constitution = read_constitution(verified)
    law_of = {category: law.number for law in constitution.laws for category in law.categories}
    # Read also where no guard is asked: what is signed makes sense, or nothing starts.
    formats = read_formats(verified.files, law_of)
    classifier = ClassifierJudge(
        load_classifier(verified.files, constitution.laws, workers=workers), Folder(constitution.look_alikes)
    )
    return Bench(
        constitution,
        further_judges=(classifier,) if guard is None else (classifier, guard(formats, constitution.digest)),
        rater=classifier,
        allow_unreadable=allow_unreadable,
        on_fault=on_fault,
    )
