"""Reads an OpenAPI document as its users do: what is wrong with it, and what its operations are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

VERBS = {"get", "post", "put", "patch", "delete"}

Json = dict[str, Any]


def operations_of(document: Json) -> Iterator[tuple[str, str, Json]]:
    """Every operation: its verb in capitals, its path, and itself."""
    for path, item in document["paths"].items():
        for verb in sorted(VERBS & set(item)):
            yield verb.upper(), path, item[verb]


def problems_of(document: Json) -> list[str]:
    """What the specification, the examples and our own rules find wrong."""
    return [*_against_the_specification(document), *_examples(document), *_rules(document)]


def _against_the_specification(document: Json) -> Iterator[str]:
    for error in OpenAPIV31SpecValidator(document).iter_errors():
        yield f"{'/'.join(map(str, error.path))}: {error.message[:200]}"


def _examples(document: Json) -> Iterator[str]:
    """Every parameter and body has an example, which its own schema takes."""
    for verb, path, operation in operations_of(document):
        places = [
            (_resolved(document, each)["name"], _resolved(document, each)) for each in operation["parameters"]
        ]
        bodies = [
            operation.get("requestBody", {}),
            *(_resolved(document, each) for each in operation["responses"].values()),
        ]
        places += [(kind, each) for body in bodies for kind, each in body.get("content", {}).items()]
        for name, place in places:
            if "example" not in place:
                yield f"{verb} {path} {name}: has no example"
                continue
            validator = Draft202012Validator({**place["schema"], "components": document["components"]})
            for error in validator.iter_errors(place["example"]):
                yield f"{verb} {path} {name}: {error.message[:200]}"


def _rules(document: Json) -> Iterator[str]:
    names: set[str] = set()
    for verb, path, operation in operations_of(document):
        where = f"{verb} {path}"
        if operation["operationId"] in names:
            yield f"{where}: another operation has its id"
        names.add(operation["operationId"])
        if not operation["summary"]:
            yield f"{where}: has no summary"
        if ("x-kala-scope" in operation) == (operation.get("security") == []):
            yield f"{where}: does not say who may ask"
        if not {"200", "503", "default"} <= set(operation["responses"]):
            yield f"{where}: lacks 200, 503 or the rest"


def _resolved(document: Json, value: Json) -> Json:
    while "$ref" in value:
        target: Any = document
        for name in value["$ref"].removeprefix("#/").split("/"):
            target = target[name]
        value = target
    return value
