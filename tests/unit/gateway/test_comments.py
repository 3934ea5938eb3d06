"""The OpenAPI document knows what the contracts say."""

from __future__ import annotations

from gateway.bridge_routes import bindings_of, contract_files
from gateway.openapi import load_comments


def test_every_rpc_and_field_has_its_comment() -> None:
    comments = load_comments()
    missing = [
        name
        for binding in bindings_of(contract_files())
        for name in (
            binding.rpc.removeprefix("/").replace("/", "."),
            *(field.full_name for field in binding.input_class.DESCRIPTOR.fields),
        )
        if name not in comments
    ]
    assert not missing, "run python scripts/gencomments.py"
