"""Schemas from anybody: held against values rightly, and never for longer than they may take."""

from __future__ import annotations

import json

import pytest

from services.inference.json_schema import Schema, UncheckableSchemaError

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[A-Z]"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


def schema(value: object) -> Schema:
    return Schema(json.dumps(value))


def nested_choices(depth: int) -> dict[str, object]:
    """Write a schema whose ways double with each level."""
    levels = {f"l{level}": {"anyOf": [{"$ref": f"#/$defs/l{level + 1}"}] * 2} for level in range(depth)}
    return {"$defs": {**levels, f"l{depth}": {"type": "string"}}, "$ref": "#/$defs/l0"}


@pytest.mark.parametrize(
    ("value", "keyword", "path"),
    [
        ({"name": 5}, "type", "$.name"),
        ({}, "required", "$"),
        ({"name": "Ada", "x": 1}, "additionalProperties", "$"),
        ({"name": "ada"}, "pattern", "$.name"),
        ({"name": "Ada", "age": -1}, "minimum", "$.age"),
        ([], "type", "$"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(value: object, keyword: str, path: str) -> None:
    fault = schema(PERSON).first_fault(value)
    assert fault is not None
    assert (fault.keyword, fault.path) == (keyword, path)


def test_what_follows_the_schema_has_no_fault() -> None:
    assert schema(PERSON).first_fault({"name": "Ada", "age": 36}) is None


@pytest.mark.parametrize(
    "draft",
    [
        "http://json-schema.org/draft-04/schema#",
        "http://json-schema.org/draft-06/schema#",
        "http://json-schema.org/draft-07/schema",
        "https://json-schema.org/draft/2019-09/schema",
        "https://json-schema.org/draft/2020-12/schema",
    ],
)
def test_every_draft_in_use_is_checked(draft: str) -> None:
    tree = {
        "$schema": draft,
        "type": "object",
        "properties": {"children": {"type": "array", "items": {"$ref": "#"}}},
        "additionalProperties": False,
    }
    assert schema(tree).first_fault({"children": [{"children": []}]}) is None
    assert schema(tree).first_fault({"children": [{"x": 1}]}) is not None


def test_names_are_matched_by_patterns_before_they_count_as_additional() -> None:
    numbers = {"patternProperties": {"^n_": {"type": "number"}}, "additionalProperties": {"type": "string"}}
    assert schema(numbers).first_fault({"n_a": 1, "b": "x"}) is None
    assert schema(numbers).first_fault({"n_a": "x"}) is not None
    assert schema(numbers).first_fault({"b": 1}) is not None


@pytest.mark.parametrize(
    ("items", "is_unique"),
    [([1, 2], True), ([1, 1.0], False), ([{"a": 1, "b": 2}, {"b": 2, "a": 1}], False), ([1, True], True)],
)
def test_items_are_the_same_when_their_values_are(items: list[object], is_unique: bool) -> None:
    assert (schema({"uniqueItems": True}).first_fault(items) is None) is is_unique


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", "JSON object"),
        ("{", "no JSON"),
        ('{"type": 5}', "no JSON Schema"),
        ('{"properties": 3}', "no JSON Schema"),
        ('{"$schema": "urn:mine"}', "not known here"),
        ('{"$ref": "http://169.254.169.254/x"}', "another document"),
        ('{"properties": {"a": {"$ref": "other.json"}}}', "another document"),
        ('{"pattern": "(?=a)b"}', "cannot be checked"),
        (r'{"pattern": "(a)\\1"}', "cannot be checked"),
        ('{"pattern": "((a{500}){500}){500}"}', "cannot be checked"),
        ('{"patternProperties": {"a": {}}, "unevaluatedProperties": false}', "both"),
    ],
)
def test_what_cannot_be_checked_is_said_before_anything_is_generated(text: str, problem: str) -> None:
    with pytest.raises(UncheckableSchemaError, match=problem):
        Schema(text)


def test_data_that_looks_like_a_reference_is_no_reference() -> None:
    assert schema({"const": {"$ref": "http://x/y"}}).first_fault({"$ref": "http://x/y"}) is None


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(nested_choices(40), id="ways that double"),
        pytest.param({"$ref": "#"}, id="endless reference"),
        pytest.param(
            # The library's own class would be taken up here, which counts nothing.
            {"$schema": "https://json-schema.org/draft/2020-12/schema", "allOf": [nested_choices(40)]}
            | {"$defs": nested_choices(40)["$defs"]},
            id="ways that double, under a draft's name",
        ),
    ],
)
def test_a_hostile_schema_ends(hostile: object) -> None:
    with pytest.raises(UncheckableSchemaError, match="too complex"):
        schema(hostile).first_fault(1)


def test_a_pattern_that_explodes_in_backtracking_does_not_here() -> None:
    assert schema({"pattern": "^(a+)+$"}).first_fault("a" * 5000 + "!") is not None


def test_a_reference_that_leads_nowhere_is_said() -> None:
    with pytest.raises(UncheckableSchemaError, match="leads nowhere"):
        schema({"$ref": "#/$defs/none"}).first_fault(1)


def test_an_answer_that_is_nested_without_end_is_not_followed() -> None:
    value: object = 1
    for _ in range(900):
        value = [value]
    with pytest.raises(UncheckableSchemaError, match="too complex"):
        schema({"items": {"$ref": "#"}}).first_fault(value)


def test_an_item_too_deep_to_be_compared_is_not_compared() -> None:
    item = json.loads("[" * 500 + "]" * 500)
    with pytest.raises(UncheckableSchemaError, match="too complex"):
        schema({"type": "array", "uniqueItems": True}).first_fault([item, item])
