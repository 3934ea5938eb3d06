"""A manifest says exactly what it may say, and when the version is due for review."""

from __future__ import annotations

import datetime as dt
import json

import pytest

from kala.errors import ConstitutionError
from kala.ethics.manifest import build_manifest, parse_manifest

FILES = {"laws.yaml": b"laws: []\n", "hard_blocks/law0.yaml": b"law: 0\n"}


def test_the_manifest_carries_the_review_date_the_amended_version_and_its_sources() -> None:
    review_by = dt.date(2027, 1, 31)
    raw = build_manifest(FILES, "2", review_by=review_by, previous=b"p" * 32, sources=b"s" * 32)
    manifest = parse_manifest(raw)
    assert (manifest.review_by, manifest.previous, manifest.sources) == (review_by, b"p" * 32, b"s" * 32)
    assert manifest.review_problem(review_by) is None
    late = manifest.review_problem(review_by + dt.timedelta(days=1))
    assert late == "constitution 2 was to be reviewed by 2027-01-31"


def test_a_version_without_a_review_date_is_always_due() -> None:
    problem = parse_manifest(build_manifest(FILES, "1")).review_problem(dt.date(2027, 1, 1))
    assert problem == "constitution 1 names no date by which it is to be reviewed"


GOOD_ENTRY = {"sha256": "00" * 32, "size": 1}


@pytest.mark.parametrize(
    "document",
    [
        b"[]",
        b"\xff",
        b"{",
        b'{"files": {}, "files": {}, "format": "kala-constitution-v1", "version": "1"}',
        json.dumps({"files": {}, "format": "v2", "version": "1"}).encode(),
        json.dumps({"files": {}, "format": "kala-constitution-v1"}).encode(),
        json.dumps({"files": {}, "format": "kala-constitution-v1", "version": 1}).encode(),
        json.dumps({"files": {}, "format": "kala-constitution-v1", "version": "x" * 65}).encode(),
        json.dumps({"files": [], "format": "kala-constitution-v1", "version": "1"}).encode(),
        *(
            json.dumps({"files": {}, "format": "kala-constitution-v1", "version": "1"} | wrong).encode()
            for wrong in (
                {"review_by": "20270101"},
                {"review_by": "2027-02-30"},
                {"review_by": None},
                {"previous": "00" * 31},
                {"previous": "AA" * 32},
                {"sources": 5},
                {"colour": "red"},
            )
        ),
        json.dumps({"files": {"a": 1}, "format": "kala-constitution-v1", "version": "1"}).encode(),
        json.dumps(
            {"files": {"a": GOOD_ENTRY | {"x": 1}}, "format": "kala-constitution-v1", "version": "1"}
        ).encode(),
        json.dumps(
            {"files": {"a": {"sha256": 5, "size": 1}}, "format": "kala-constitution-v1", "version": "1"}
        ).encode(),
    ],
    ids=str,
)
def test_a_manifest_that_is_not_exactly_one_is_refused(document: bytes) -> None:
    with pytest.raises(ConstitutionError, match=r"manifest\.json: not a manifest"):
        parse_manifest(document)
