"""The signed guard formats are read strictly: what makes no sense stops the load and names the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import yaml

from kala.errors import ConstitutionError
from services.ethics.config import default_constitution_dir
from services.ethics.guard.formats import Found, GuardFormat, Special, read_formats

PATH = "guards/llama-guard-3.yaml"


def shipped(name: str = "llama-guard-3") -> dict[str, Any]:
    """A shipped file as a document that a test may change."""
    return dict(yaml.safe_load((default_constitution_dir() / f"guards/{name}.yaml").read_text()))


def test_the_shipped_formats(formats: Mapping[str, GuardFormat]) -> None:
    assert set(formats) == {
        "llama-guard-3",
        "llama-guard-4",
        "shieldgemma",
        "granite-guardian",
        "wildguard",
        "qwen3guard",
        "kala-guardian",
    }
    assert [name for name, guard in formats.items() if guard.only_raise] == ["kala-guardian"]


@pytest.mark.parametrize("name", ["llama-guard-3", "llama-guard-4"])
def test_llama_guard_names_fourteen_hazards(formats: Mapping[str, GuardFormat], name: str) -> None:
    codes = formats[name].codes
    assert set(codes) == {f"s{number}" for number in range(1, 15)}
    assert codes["s9"] == Found(0, "weapons.chemical")
    assert codes["s11"] == Found(1, "self_harm")


def test_the_guardian_knows_every_category(
    formats: Mapping[str, GuardFormat], law_of: Mapping[str, int]
) -> None:
    codes = formats["kala-guardian"].codes
    assert codes == {category: Found(law, category) for category, law in law_of.items()}


def test_a_version_without_guards_has_no_formats(law_of: Mapping[str, int]) -> None:
    assert read_formats({"laws.yaml": b""}, law_of) == {}


def changed(**fields: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update(fields)


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.pop(key)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (changed(format=2), "format must be 1"),
        (changed(extra=1), "unknown keys extra"),
        (without("reply"), "keys reply"),
        (without("fallback"), "keys fallback"),
        (changed(stages=["thought"]), "thought"),
        (changed(stages=[]), "stages must name one"),
        (changed(laws=[7]), "laws must be numbers of laws"),
        (changed(only_raise="no"), "true or false"),
        (changed(only_raise=True), "settles no law"),
        (changed(max_chars=0), "max_chars must be 1"),
        (changed(max_chars=True), "max_chars must be 1"),
        (changed(max_output_tokens=10_000), "max_output_tokens must be 1"),
        (changed(languages="en"), "languages must be a list"),
        (changed(labels=[1]), "must be a text"),
        (changed(prompts={}), "prompts must name one"),
        (changed(prompts={"mine": {}}), "keys mine"),
        (changed(prompts={"server": {"system": "{secret}"}}), "unknown placeholders secret"),
        (changed(prompts={"whole": {"request": "x"}}), "keys output"),
        (changed(prompts={"whole": {"request": "x", "output": "{evil}"}}), "unknown placeholders evil"),
        (changed(speakers={"user": "U"}), "keys assistant"),
        (changed(codes={"S1": [0, "violence.assault"]}), "law 0 has no category violence.assault"),
        (changed(codes={"S1": "harmless"}), "harmless"),
        (changed(fallback="open"), "fallback must be a law and a category"),
        (changed(reply={"kind": "guess", "values": {}}), "guess"),
        (changed(reply={"kind": "first_line", "values": {"safe": "safe"}}), "needs safe and unsafe"),
        (changed(reply={"kind": "first_line", "values": {}, "extra": 1}), "keys extra"),
        (
            changed(reply={"kind": "labelled", "values": {"a": "safe", "b": "unsafe"}, "verdict": {}}),
            "keys output, request",
        ),
        (changed(questions={"a": {"means": "asked", "request": "x"}}), "no question for output"),
        (changed(questions={"a": {"request": "x", "output": "y"}}), "keys means"),
    ],
)
def test_a_format_that_makes_no_sense_is_named(
    law_of: Mapping[str, int], change: Callable[[dict[str, Any]], None], problem: str
) -> None:
    document = shipped()
    change(document)
    with pytest.raises(ConstitutionError) as caught:
        read_formats({PATH: yaml.safe_dump(document).encode()}, law_of)
    assert caught.value.message.startswith(PATH)
    assert problem in caught.value.message


@pytest.mark.parametrize("data", [b"\xff", b"- a", b"{", b"null"])
def test_bytes_that_are_no_format_are_named(law_of: Mapping[str, int], data: bytes) -> None:
    with pytest.raises(ConstitutionError, match=PATH):
        read_formats({PATH: data}, law_of)


@pytest.mark.parametrize("path", ["guards/Bad Name.yaml", "guards/x.json", "guards/.yaml"])
def test_a_file_must_be_named_after_its_format(law_of: Mapping[str, int], path: str) -> None:
    with pytest.raises(ConstitutionError, match="must be called"):
        read_formats({path: yaml.safe_dump(shipped()).encode()}, law_of)


def test_the_language_that_nobody_recognised_is_read_only_by_a_guard_for_all(
    formats: Mapping[str, GuardFormat],
) -> None:
    assert formats["qwen3guard"].reads_language("")
    assert not formats["llama-guard-3"].reads_language("")
    assert formats["llama-guard-3"].codes["s12"] is Special.OPEN
