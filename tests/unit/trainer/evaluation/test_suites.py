"""Suites and profiles: what is read, what is refused, and that the shipped ones are what they say."""

from __future__ import annotations

import gzip
import json
import runpy
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from services.common.gate_profile import read_profile
from services.trainer.evaluation import suites
from services.trainer.evaluation.profiles import PACKAGED_PROFILES, PACKAGED_SUITES, Profiles
from services.trainer.evaluation.suites import parse_suite, read_suite

ROOT = Path(__file__).parents[4]
HEAD = {"suite": "few", "kind": "exact"}
ITEM = {"id": "1", "text": "Which law?", "answers": ["Law 2."]}


def lines(*rows: object) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def test_every_item_is_asked_in_every_dress() -> None:
    suite = parse_suite(lines({**HEAD, "wrappers": ["{text}", "Please: {text}"]}, ITEM), "few")
    assert [item.asked for item in suite.items] == ["Which law?", "Please: Which law?"]
    assert len({item.id for item in suite.items}) == 2


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is empty"),
        (b"\xff\xfe", "is no JSON"),
        (b"[]", "is no JSON object"),
        (lines({**HEAD, "suite": "other"}, ITEM), "must name the suite"),
        (lines({**HEAD, "kind": "guess"}, ITEM), "must name the suite"),
        (lines({**HEAD, "wrappers": ["no slot"]}, ITEM), "must hold {text}"),
        (lines(HEAD), "has 0 questions"),
        (lines(HEAD, ITEM, ITEM), "two items '1'"),
        (lines(HEAD, {"id": "1", "text": "Which law?"}), "lacks what"),
        (lines(HEAD, {"text": "Which law?", "answers": ["x"]}), "line 2: is no item"),
        (lines(HEAD, {**ITEM, "law": 7}), "line 2: is no item"),
        (lines(HEAD, {**ITEM, "text": ""}), "lacks what"),
        (lines({**HEAD, "max_tokens": 10**9}, ITEM), "max_tokens"),
        (lines({**HEAD, "kind": "refusal"}, {**ITEM, "label": "perhaps"}), "lacks what"),
        (lines({**HEAD, "max_tokens": "many"}, ITEM), "max_tokens must be a whole number"),
        (lines({**HEAD, "wrappers": 5}, ITEM), "must hold {text}"),
        (lines({**HEAD, "kind": ["exact"]}, ITEM), "must name the suite"),
        (b"[" * 100_000, "line 1: is no JSON"),
        # One letter would be a right answer.
        (lines(HEAD, {**ITEM, "answers": "yes"}), "answers must be a list"),
        (lines({**HEAD, "kind": "number"}, {**ITEM, "answers": ["many"]}), "lacks what"),
        (lines(HEAD, {**ITEM, "law": True}), "line 2: is no item"),
    ],
)
def test_a_suite_that_cannot_be_judged_is_refused_by_line(data: bytes, problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem.replace("{", r"\{")):
        parse_suite(data, "few")


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(lines(HEAD, ITEM))
    (tmp_path / "few.jsonl.gz").write_bytes(whole[:12] + bytes([0xFF, 0x00, 0xFF]) + whole[15:])
    with pytest.raises(InvalidArgumentError, match=r"few\.jsonl\.gz: cannot be read"):
        read_suite(tmp_path / "few.jsonl.gz")


def test_published_files_are_read_as_they_are(tmp_path: Path) -> None:
    row = {"question": "How many?", "answer": "2 * 600 = <<2*600=1200>>1200\n#### 1,200"}
    (tmp_path / "gsm8k.jsonl.gz").write_bytes(gzip.compress(lines(row)))
    suite = read_suite(tmp_path / "gsm8k.jsonl.gz")
    assert (suite.kind, suite.items[0].answers) == (suites.NUMBER, ("1200",))
    assert suite.digest == sha256(lines(row)).digest()


def test_a_file_that_only_claims_to_be_packed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gsm8k.jsonl.gz").write_bytes(b"plain")
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        read_suite(tmp_path / "gsm8k.jsonl.gz")


def test_the_shipped_suites_and_profiles_are_what_their_script_makes() -> None:
    """Otherwise a profile would name other questions than are asked; `python scripts/make_gates.py` writes them anew."""
    made = runpy.run_path(str(ROOT / "scripts" / "make_gates.py"))["files"]()
    assert {path.name for path, data in made.items() if path.read_bytes() != data} == set()


def test_each_law_has_a_thousand_adversarial_prompts_and_as_many_harmless_twins() -> None:
    for law in range(5):
        suite = read_suite(PACKAGED_SUITES / f"law_{law}.jsonl")
        labels = Counter(item.label for item in suite.items)
        assert labels["harmful"] >= 1_000
        assert labels["harmless"] >= 1_000
        assert {item.law for item in suite.items if item.label == "harmful"} == {law}


@pytest.mark.parametrize("name", ["embedded", "standard", "physics", "guardian"])
def test_a_shipped_profile_can_be_asked_with_what_is_shipped(name: str) -> None:
    data = (PACKAGED_PROFILES / f"{name}.json").read_bytes()
    gate = Profiles().open(read_profile(data))
    assert gate.profile.content.demo is (name == "embedded")
    for asked in gate.profile.content.requirements:
        run = next(run for run in gate.runs if run.suite.name == asked.suite)
        assert len(run.suite.items) >= asked.min_total
        assert asked.reason


@pytest.mark.parametrize(("name", "file"), [("code", "humaneval"), ("math", "gsm8k")])
def test_a_profile_whose_questions_are_not_shipped_says_where_they_go(name: str, file: str) -> None:
    profile = read_profile((PACKAGED_PROFILES / f"{name}.json").read_bytes())
    with pytest.raises(FailedPreconditionError, match=f"place it as {file}.jsonl in KALA_TRAINER_SUITES_DIR"):
        Profiles().open(profile)


def test_another_file_in_a_suites_place_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "gsm8k.jsonl").write_bytes(lines({"question": "1 + 1?", "answer": "#### 2"}))
    profile = read_profile((PACKAGED_PROFILES / "math.json").read_bytes())
    with pytest.raises(FailedPreconditionError, match="no file with SHA-256 3730d312"):
        Profiles(suite_dirs=[tmp_path]).open(profile)


def test_a_profile_that_asks_for_what_nobody_counts_is_refused(tmp_path: Path) -> None:
    document = json.loads((PACKAGED_PROFILES / "guardian.json").read_bytes())
    document["requirements"][1]["metric"] = "charm"
    with pytest.raises(FailedPreconditionError, match="charm/all is nothing that its measurer counts"):
        Profiles().open(read_profile(json.dumps(document).encode()))


def test_a_count_of_ethics_may_not_be_the_trainers_own(tmp_path: Path) -> None:
    document = json.loads((PACKAGED_PROFILES / "embedded.json").read_bytes())
    document["requirements"][2]["measuredBy"] = "MEASURER_TRAINER"
    with pytest.raises(FailedPreconditionError, match="output_harmful/all is nothing"):
        Profiles().open(read_profile(json.dumps(document).encode()))


def test_an_unknown_profile_is_answered_with_those_there_are() -> None:
    with pytest.raises(NotFoundError, match="code, embedded, guardian, math, physics, standard"):
        Profiles().find(ContentReference(name="embedded", sha256=bytes(32)))
