"""The OpenAPI document: valid 3.1, an example for everything, and examples that their own schemas and messages take."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway.bridge_routes import Binding, bindings_of, contract_files
from gateway.openapi import OpenApi
from gateway.openapi_bridge import REQUESTS, open_path
from gateway.transcoding import ALL_FIELDS

VERBS = {"get", "post", "put", "patch", "delete"}


@cache
def bindings() -> list[Binding]:
    return bindings_of(contract_files())


@cache
def document() -> dict[str, Any]:
    return OpenApi(bindings(), version="1.2.3").document


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document()["paths"].items():
        for verb in VERBS & set(item):
            yield f"{verb} {path}", item[verb]


def resolved(value: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in value:
        target: Any = document()
        for name in value["$ref"].removeprefix("#/").split("/"):
            target = target[name]
        value = target
    return value


def schema_with_definitions(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "components": document()["components"]}


def examples() -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Every place of the document that has a schema: where, the schema, the example."""
    for where, operation in operations():
        for parameter in map(resolved, operation.get("parameters", [])):
            yield f"{where} {parameter['name']}", parameter["schema"], parameter["example"]
        bodies = [operation.get("requestBody", {}), *map(resolved, operation["responses"].values())]
        for body in bodies:
            for media_type, content in body.get("content", {}).items():
                yield f"{where} {media_type}", content["schema"], content["example"]


def test_the_document_is_openapi_3_1() -> None:
    problems = [
        f"{'/'.join(map(str, error.path))}: {error.message[:200]}"
        for error in OpenAPIV31SpecValidator(document()).iter_errors()
    ]
    assert problems == []


def test_every_parameter_and_body_has_an_example_that_its_schema_takes() -> None:
    wrong = []
    for where, schema, example in examples():
        validator = Draft202012Validator(schema_with_definitions(schema))
        wrong += [f"{where}: {error.message[:200]}" for error in validator.iter_errors(example)]
    assert wrong == []


def test_every_operation_says_who_may_ask_and_what_503_looks_like() -> None:
    names = [operation["operationId"] for _, operation in operations()]
    assert len(names) == len(set(names))
    for where, operation in operations():
        assert operation["summary"], where
        assert ("x-kala-scope" in operation) != (operation.get("security") == []), where
        assert {"200", "503", "default"} <= set(operation["responses"]), where


@pytest.mark.parametrize("binding", bindings(), ids=lambda binding: f"{binding.part}.{binding.kind}")
def test_the_example_of_a_body_is_the_message_that_the_rpc_takes(binding: Binding) -> None:
    operation = document()["paths"][open_path(binding)[0]][binding.verb.lower()]
    assert ("requestBody" in operation) == binding.has_body
    if binding.body == ALL_FIELDS:
        ParseDict(operation["requestBody"]["content"]["application/json"]["example"], binding.input_class())


def test_examples_by_hand_belong_to_rpcs_that_are_there() -> None:
    assert set(REQUESTS) <= {binding.rpc.rpartition("/")[2] for binding in bindings()}


def test_clearances_are_not_described() -> None:
    assert not {"kala.common.v1.Clearance", "kala.common.v1.SealedAction"} & set(
        document()["components"]["schemas"]
    )
