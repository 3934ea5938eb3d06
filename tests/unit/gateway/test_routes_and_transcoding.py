"""Path templates, queries and the contracts behind the REST bridge."""

from __future__ import annotations

import pytest

from gateway.bridge_routes import Routes, bindings_of, compile_template, contract_files
from gateway.framing import framing_for
from gateway.openapi_bridge import open_path
from gateway.transcoding import read_message, read_query, texts_of
from kala.audit.v1 import audit_pb2
from kala.common.v1 import options_pb2
from kala.errors import InvalidArgumentError
from kala.inference.v1 import inference_pb2


@pytest.mark.parametrize(
    ("template", "path", "expected"),
    [
        ("/v1/{name=entries/*}", "/v1/entries/5", {"name": "entries/5"}),
        ("/v1/{name=entries/*}", "/v1/entries/5/payloads", None),
        ("/v1/{name=entries/*}", "/v1/entries/5:erase", None),
        ("/v1/{name=entries/*/payloads/*}:read", "/v1/entries/5/payloads/request:read", {"name": "entries/5/payloads/request"}),
        ("/v1/{name=entries/*/payloads/*}:read", "/v1/entries/5/payloads/request", None),
        ("/v1/{a=x/*}/files/{path=**}", "/v1/x/1/files/a/b:c.txt", {"a": "x/1", "path": "a/b:c.txt"}),
        ("/v1/a.b", "/v1/aXb", None),
    ],
)  # fmt: skip
def test_templates_match_what_they_say(template: str, path: str, expected: dict[str, str] | None) -> None:
    match = compile_template(template).fullmatch(path)
    assert (None if match is None else match.groupdict()) == expected


def test_every_rpc_is_bridged_once_but_internal_ones() -> None:
    bindings = bindings_of(contract_files())
    expected = {
        f"/{service.full_name}/{method.name}"
        for file in contract_files()
        for service in file.services_by_name.values()
        for method in service.methods
        if method.GetOptions().Extensions[options_pb2.scope] != options_pb2.SCOPE_INTERNAL
    }
    assert {binding.rpc for binding in bindings} == expected
    assert len({(binding.verb, binding.template) for binding in bindings}) == len(bindings)
    assert not {"/kala.ethics.v1.EthicsService/CheckAction", "/kala.audit.v1.AuditService/Append"} & expected


def test_guarded_rpcs_take_their_action() -> None:
    routes = Routes(bindings_of(contract_files()))
    found = routes.find("POST", "/kala/v1/inference/chat")
    assert found is not None
    assert found[0].input_class is inference_pb2.ChatAction
    assert found[0].kind == "chat"
    assert routes.verbs_at("/kala/v1/inference/chat") == ["POST"]
    assert routes.find("GET", "/kala/v1/inference/chat") is None


def test_openapi_paths_name_each_segment() -> None:
    binding = next(b for b in bindings_of(contract_files()) if b.rpc.endswith("/ReadPayload"))
    assert open_path(binding) == (
        "/kala/v1/audit/entries/{entries_id}/payloads/{payloads_id}:read", ["entries_id", "payloads_id"]
    )  # fmt: skip


def test_a_query_reaches_nested_and_repeated_fields() -> None:
    message = read_message(
        audit_pb2.QueryRequest,
        body=b"",
        query="filter.types=a&filter.types=b&filter.law=0&descending=true&page_size=5&filter.from=2026-01-01T00:00:00Z",
        variables={},
        taken="",
    )
    assert list(message.filter.types) == ["a", "b"]
    assert message.filter.HasField("law")
    assert message.descending
    assert message.page_size == 5


@pytest.mark.parametrize(
    "query",
    [
        "nothing=1",
        "filter=1",
        "filter.types.x=1",
        "descending=yes",
        "page_size=1&page_size=2",
        "%ff=1",
        "filter.from.seconds=1",
    ],
)
def test_a_query_that_cannot_be_meant_is_refused(query: str) -> None:
    with pytest.raises(InvalidArgumentError):
        read_query(audit_pb2.QueryRequest, query)


def test_texts_of_a_stream_are_joined_by_field() -> None:
    pieces = [
        inference_pb2.ChatResponse(delta=inference_pb2.ChatDelta(text=text)) for text in ("for", "bidden")
    ]
    assert texts_of(list(pieces)) == {"delta.text": "forbidden"}


@pytest.mark.parametrize(
    ("accept", "is_events"),
    [("", False), ("*/*", False), ("text/event-stream", True), ("application/json, TEXT/event-stream", True)],
)
def test_events_are_sent_where_they_are_named(accept: str, is_events: bool) -> None:
    assert framing_for(accept).is_events is is_events


def test_a_clearance_inside_an_action_is_not_taken_from_outside() -> None:
    found = Routes(bindings_of(contract_files())).find("POST", "/kala/v1/tools/code:generate")
    assert found is not None
    with pytest.raises(InvalidArgumentError, match="generation: is not taken from outside"):
        read_message(
            found[0].input_class,
            body=b'{"generation": {"clearance": {"key_id": "x"}}}',
            query="",
            variables={},
            taken="*",
        )
