"""Documents in order: by scores, and by the likeness of vectors."""

from __future__ import annotations

from array import array

import pytest

from services.inference.chat import Usage
from services.inference.reranking import best_first, likeness
from services.inference.tasks import Vectors


def test_the_best_come_first_and_equals_as_they_were_given() -> None:
    assert best_first([0.1, 0.9, 0.1, 0.5], top_n=None) == [(1, 0.9), (3, 0.5), (0, 0.1), (2, 0.1)]
    assert best_first([0.1, 0.9, 0.1], top_n=2) == [(1, 0.9), (0, 0.1)]
    assert best_first([0.1], top_n=9) == [(0, 0.1)]


def test_likeness_is_the_cosine_whatever_the_length() -> None:
    vectors = [[3.0, 0.0], [0.5, 0.0], [0.0, 7.0], [-2.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    scores = likeness(Vectors(tuple(array("f", vector) for vector in vectors), Usage(input_tokens=6)))
    assert scores.values == pytest.approx((1.0, 0.0, -1.0, 0.5**0.5, 0.0))
    assert scores.usage.input_tokens == 6
