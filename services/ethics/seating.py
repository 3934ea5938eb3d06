"""Seat the judges over a verified constitution: the same ones in the service, in a replay and offline."""

from __future__ import annotations

from kala.ethics.constitution import VerifiedConstitution
from services.ethics.bench import Bench
from services.ethics.judgement import OnFault
from services.ethics.laws import read_constitution


def seat_judges(verified: VerifiedConstitution, *, allow_unreadable: bool, on_fault: OnFault) -> Bench:
    """The bench of that version, ready to judge; ConstitutionError names a file that makes no sense."""
    return Bench(read_constitution(verified), allow_unreadable=allow_unreadable, on_fault=on_fault)
