from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from kala.errors import ConstitutionError
from kala.ethics.constitution import Trust, VerifiedConstitution, verify_constitution
from services.ethics.judge import Outcome
from services.ethics.laws import Constitution, read_constitution
from services.ethics.signed_yaml import load_yaml
from services.ethics.texts import language_of
from tests.unit.ethics.conftest import CONSTITUTION


@pytest.fixture(scope="module")
def verified() -> VerifiedConstitution:
    return verify_constitution(CONSTITUTION, Trust.development())


def changed(
    verified: VerifiedConstitution, path: str, change: Callable[[Any], object]
) -> VerifiedConstitution:
    document = yaml.safe_load(verified.files[path])
    files = dict(verified.files) | {path: yaml.safe_dump(change(document) or document).encode()}
    return VerifiedConstitution(verified.manifest, files, verified.key_ids, verified.development)


def test_the_five_laws_are_read_in_their_order(constitution: Constitution) -> None:
    assert [law.number for law in constitution.laws] == [0, 1, 2, 3, 4]
    assert [law.name for law in constitution.laws] == [
        "Civilizational risk",
        "Individual safety",
        "Obedience within the law",
        "Limits of self-preservation",
        "Equivalence",
    ]
    assert all(law.text and law.categories for law in constitution.laws)


def test_the_decision_order_is_law_zero_first(constitution: Constitution) -> None:
    assert constitution.order.laws == (0, 1, 2, 3, 4)
    assert constitution.order.outcomes == (Outcome.REFUSE, Outcome.REDIRECT, Outcome.ASK_CLARIFICATION)


def test_every_category_has_a_safe_alternative(constitution: Constitution) -> None:
    for law in constitution.laws:
        for category in law.categories:
            assert constitution.texts.alternatives[category]


def test_the_crisis_text_names_places_that_help(constitution: Constitution) -> None:
    assert "988" in constitution.texts.resources
    assert "116 123" in constitution.texts.resources


def test_every_language_has_all_texts_and_the_crisis_text_names_lines_of_its_countries(
    constitution: Constitution,
) -> None:
    assert set(constitution.languages) == {"en", "de", "fr", "es"}
    lines = {"en": "988", "de": "0800 111 0 111", "fr": "3114", "es": "024"}
    for language, texts in constitution.languages.items():
        assert lines[language] in texts.resources
        assert "findahelpline.com" in texts.resources
        assert texts.questions.keys() == constitution.texts.questions.keys()


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Wie baue ich einen Tisch?", "de"),
        ("Je veux mourir", "fr"),
        ("Quiero morir, no puedo más", "es"),
        ("How do I build a table?", "en"),
        ("The German word die is an article.", "en"),
        ("SELECT * FROM table", "en"),
        ("Jinsi ya kujenga meza", "en"),
        ("", "en"),
    ],
)
def test_the_language_of_a_request_is_known_by_its_common_words(
    constitution: Constitution, text: str, language: str
) -> None:
    assert language_of(text, constitution.languages) == language


def _drop_law(document: Any) -> None:
    document["laws"].pop()


def _repeat_law(document: Any) -> None:
    document["laws"][1] = 0


def _allow(document: Any) -> None:
    document["outcomes"][0] = "ALLOW"


def _forget_alternative(document: Any) -> None:
    del document["alternatives"]["self_harm"]


def _forget(*keys: str) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        del document[keys[-1]]

    return change


def _set(**values: object) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        document["blocks"][0].update(values)

    return change


def _copy_id(document: Any) -> None:
    document["blocks"][1]["id"] = document["blocks"][0]["id"]


BLOCKS = "hard_blocks/law1.yaml"


@pytest.mark.parametrize(
    ("path", "change", "problem"),
    [
        ("laws.yaml", _drop_law, "0 to 4"),
        ("decision_order.yaml", _repeat_law, "each of the five laws once"),
        ("decision_order.yaml", _allow, "every outcome but ALLOW"),
        ("texts/en.yaml", _forget_alternative, "no text for alternatives.self_harm"),
        ("texts/en.yaml", lambda document: document | {"language": "fr"}, "language must be en"),
        ("texts/de.yaml", lambda document: document | {"language": "en"}, "language must be de"),
        ("texts/fr.yaml", _forget("injection"), "no text for injection"),
        (
            "texts/es.yaml",
            _forget("reasons", "self_harm"),
            "no text for reasons.self_harm",
        ),
        ("texts/es.yaml", lambda document: document["questions"].update(x="y"), "unknown texts questions.x"),
        ("texts/de.yaml", lambda document: document | {"refuse": "Nein."}, "refuse must have the places"),
        (
            "texts/de.yaml",
            lambda document: document | {"undecided": "{law}"},
            "undecided must have the places",
        ),
        ("texts/de.yaml", lambda document: document | {"clarify": "{question"}, "clarify: "),
        ("texts/de.yaml", lambda document: document | {"too_long": ""}, "too_long must be a text"),
        ("texts/de.yaml", lambda document: document | {"laws": ["x"]}, "the names of all 5"),
        ("texts/de.yaml", lambda document: document | {"common_words": [True]}, "common_words must be words"),
        ("texts/en.yaml", lambda document: document | {"laws": list("abcde")}, "the names in laws.yaml"),
        (BLOCKS, _set(match=[]), "must each hold an example"),
        (BLOCKS, _set(category="unknown"), "law 1 has no category unknown"),
        (BLOCKS, _set(colour="red"), "unknown keys colour"),
        (BLOCKS, _set(stage="never"), "never"),
        (BLOCKS, _set(outcome="ALLOW"), "a block cannot allow"),
        (BLOCKS, _set(outcome="MAYBE"), "MAYBE"),
        (BLOCKS, _set(stage="output"), "max_chars is required"),
        (BLOCKS, _set(max_chars=9), "max_chars is required exactly where"),
        (BLOCKS, _set(stage="output", max_chars=9, pattern="a+"), "no \\*"),
        (BLOCKS, _set(pattern="<nowhere>"), "there is no fragment <nowhere>"),
        (BLOCKS, _copy_id, "two blocks share an id"),
        ("fragments.yaml", lambda _: ["not a mapping"], "fragments.yaml"),
        ("laws.yaml", lambda _: {"rules": []}, "KeyError"),
    ],
)
def test_a_signed_file_that_makes_no_sense_is_named(
    verified: VerifiedConstitution, path: str, change: Callable[[Any], object], problem: str
) -> None:
    with pytest.raises(ConstitutionError, match=problem) as caught:
        read_constitution(changed(verified, path, change))
    assert caught.value.message.startswith(path.partition("law1")[0])


def test_a_file_that_was_never_signed_is_named(verified: VerifiedConstitution) -> None:
    files = {name: content for name, content in verified.files.items() if name != "laws.yaml"}
    with pytest.raises(ConstitutionError, match=r"laws\.yaml: missing from the signed files"):
        read_constitution(VerifiedConstitution(verified.manifest, files, (), development=False))


@pytest.mark.parametrize("content", [b"\xff", b"a: [", b""], ids=["not utf-8", "not yaml", "empty"])
def test_a_signed_file_that_is_not_yaml_is_named(verified: VerifiedConstitution, content: bytes) -> None:
    files = dict(verified.files) | {"laws.yaml": content}
    with pytest.raises(ConstitutionError, match=r"laws\.yaml: "):
        read_constitution(VerifiedConstitution(verified.manifest, files, (), development=False))


def test_both_readers_of_yaml_read_the_constitution_alike() -> None:
    paths = sorted(CONSTITUTION.rglob("*.yaml"))
    assert paths
    for path in paths:
        text = path.read_text("utf-8")
        assert load_yaml(text) == yaml.safe_load(text), path.name
