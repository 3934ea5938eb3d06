"""The OpenAPI document: valid 3.1, an example for everything, and examples that their own schemas and messages take."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from gateway.bridge_routes import Binding, bindings_of, contract_files
from gateway.openapi import OpenApi
from gateway.openapi_bridge import REQUESTS, open_path
from gateway.transcoding import ALL_FIELDS
from tests.fakes.openapi_document import problems_of


@cache
def bindings() -> list[Binding]:
    return bindings_of(contract_files())


@cache
def document() -> dict[str, Any]:
    return OpenApi(bindings(), version="1.2.3").document


def test_the_document_is_openapi_3_1_and_every_example_is_what_its_schema_takes() -> None:
    assert problems_of(document()) == []


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
