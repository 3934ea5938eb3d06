"""What is known of each format before a byte is read: the kind of its rows and what may not be trained on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from kala.trainer.v1 import dataset_pb2 as pb

SFT: Final = "conversations"
PREFERENCES: Final = "preferences"
LABELS: Final = "labelled texts"

EVALUATION_ONLY: Final = frozenset({pb.SOURCE_FORMAT_HUMANEVAL})
TEST_PARTS: Final = frozenset({pb.SOURCE_FORMAT_MBPP, pb.SOURCE_FORMAT_GSM8K, pb.SOURCE_FORMAT_MATH})
"""Formats of evaluation sets whose test part must not be trained on."""
_TEST_NAME: Final = re.compile(r"(?:^|[^a-z])(?:test|eval|validation)(?:[^a-z]|$)")
_TEST_FOLDERS: Final = frozenset({"test", "tests", "eval", "evaluation", "validation"})
"""MATH's files are MATH/test/algebra/1.json: only the folder says which part they are."""

KINDS: Final[Mapping[pb.SourceFormat.ValueType, str]] = {
    pb.SOURCE_FORMAT_MESSAGES: SFT,
    pb.SOURCE_FORMAT_PROMPT_COMPLETION: SFT,
    pb.SOURCE_FORMAT_PREFERENCE: PREFERENCES,
    pb.SOURCE_FORMAT_LABELLED: LABELS,
    pb.SOURCE_FORMAT_MBPP: SFT,
    pb.SOURCE_FORMAT_GSM8K: SFT,
    pb.SOURCE_FORMAT_MATH: SFT,
    pb.SOURCE_FORMAT_STACK_OVERFLOW: SFT,
    pb.SOURCE_FORMAT_CODE_WITH_DOCS: SFT,
    pb.SOURCE_FORMAT_BUG_FIX: SFT,
    pb.SOURCE_FORMAT_SECURE_CODING: SFT,
    pb.SOURCE_FORMAT_TEXTBOOK: SFT,
    pb.SOURCE_FORMAT_CLAIMS: LABELS,
}
"""By format, what its rows are."""


def label_of(form: pb.SourceFormat.ValueType) -> str:
    """Returns a format's short name, e.g. "gsm8k"."""
    return pb.SourceFormat.Name(form).removeprefix("SOURCE_FORMAT_").lower()


def names_test_part(name: str) -> bool:
    """Says whether a file's or split's name speaks of a test or evaluation part, or a folder of it is called so."""
    *folders, last = name.lower().split("/")
    return not _TEST_FOLDERS.isdisjoint(folders) or _TEST_NAME.search(last) is not None
