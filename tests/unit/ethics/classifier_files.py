"""The shipped classifier, and the shipped judge over it, for the tests that need the weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from kala.ethics.constitution import Trust, VerifiedConstitution, verify_constitution
from services.ethics.classifier.classifier import Classifier, load_classifier
from services.ethics.classifier.judge import ClassifierJudge
from services.ethics.fold import Folder
from services.ethics.judge import Extent, Material, Part, Stage
from services.ethics.laws import read_constitution
from services.ethics.views import Reader

CONSTITUTION = Path(__file__).parents[3] / "constitution"


@cache
def verified() -> VerifiedConstitution:
    return verify_constitution(CONSTITUTION, Trust.development())


@cache
def folder() -> Folder:
    return Folder(read_constitution(verified()).look_alikes)


@cache
def classifier() -> Classifier:
    return load_classifier(verified().files, read_constitution(verified()).laws)


@cache
def judge() -> ClassifierJudge:
    return ClassifierJudge(classifier(), folder())


def part(
    text: str, stage: Stage = Stage.REQUEST, *, context: str = "", extent: Extent = Extent.WHOLE
) -> Part:
    return Part("text", stage, Reader(folder()).read(text), extent, (), context)


def material(text: str, stage: Stage = Stage.REQUEST) -> Material:
    return Material((part(text, stage),))
