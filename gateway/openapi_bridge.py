"""What `/openapi.json` says of the REST bridge: every RPC, from the contracts' descriptors and comments.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import orjson

from gateway.bridge_routes import Binding
from gateway.call_options import FIELDS, MAX_TIMEOUT_SECONDS, MIN_SECONDS, TIMEOUT
from gateway.examples import IDS, Examples
from gateway.framing import NDJSON
from gateway.openapi_parts import JSON, REQUEST_ID_HEADER, content, error_responses, stream
from gateway.schemas import Schemas, descriptor_of
from gateway.transcoding import ALL_FIELDS
from kala.common.v1 import options_pb2

if TYPE_CHECKING:
    from google.protobuf.descriptor import FieldDescriptor

Json = dict[str, Any]  # Any: JSON

_VARIABLE: Final = re.compile(r"\{([a-z_.]+)(?:=([^}]+))?\}")

_HI: Final[Json] = {"role": "ROLE_USER", "content": [{"text": "What is the capital of France?"}]}

REQUESTS: Final[Mapping[str, Json]] = {
    "Score": {"text": "What is the capital of France?"},
    "Chat": {"model": "auto", "messages": [_HI], "sampling": {"max_output_tokens": 256}},
    "Complete": {"model": "auto", "prompt": "The capital of France is"},
    "Embed": {"model": "auto", "inputs": ["Paris", "Berlin"]},
    "Rerank": {"query": "capital of France", "documents": ["Paris", "Berlin"]},
    "CountTokens": {"model": "auto", "messages": [_HI]},
    "CreateKey": {"display_name": "a laptop", "scopes": ["SCOPE_CHAT"], "ttl": "86400s"},
}
"""Where a person's example is plainer than one from the descriptors, by the RPC's name; a test sends each of them."""


class BridgePaths:
    """Writes path items; schemas that they refer to are collected by the way."""

    def __init__(self, schemas: Schemas, comments: Mapping[str, str]) -> None:
        self._schemas = schemas
        self._examples = Examples(comments)

    def paths(self, bindings: Iterable[Binding]) -> Json:
        """Describe every binding."""
        paths: Json = {}
        for binding in bindings:
            path, parameters = open_path(binding)
            paths.setdefault(path, {})[binding.verb.lower()] = self._operation(binding, parameters)
        return paths

    def _operation(self, binding: Binding, path_parameters: list[str]) -> Json:
        name = binding.rpc.removeprefix("/").replace("/", ".")
        comment = self._schemas.comment(name)
        operation: Json = {
            "operationId": name,
            "tags": [binding.part],
            "summary": comment.partition(". ")[0],
            "description": comment,
            "x-kala-scope": options_pb2.Scope.Name(binding.scope).removeprefix("SCOPE_").lower(),  # type: ignore[arg-type]
            "x-kala-guarded": binding.action_class is not None,
            "parameters": [
                *map(_path_parameter, path_parameters),
                *self._query_parameters(binding),
                {"$ref": f"#/components/parameters/{TIMEOUT}"},
                self._fields_parameter(binding),
            ],
            "responses": {
                "200": {
                    "description": "The answer.",
                    "headers": REQUEST_ID_HEADER,
                    "content": self._answer(binding),
                },
                **error_responses("Error", "501", "504"),
            },
        }
        if binding.has_body:
            operation["requestBody"] = {"content": self._body(binding)}
        return operation

    def _body(self, binding: Binding) -> Json:
        message = descriptor_of(binding.input_class)
        method = binding.rpc.rpartition("/")[2]
        if binding.body != ALL_FIELDS:
            field = message.fields_by_name[binding.body]
            return content(self._schemas.field(field), self._examples.field(field, 1))
        in_path = {match[1] for match in _VARIABLE.finditer(binding.template)}
        made = {name: value for name, value in self._examples.of(message).items() if name not in in_path}
        return content(self._schemas.of_class(binding.input_class), REQUESTS.get(method, made))

    def _answer(self, binding: Binding) -> Json:
        schema = self._schemas.of_class(binding.response_class)
        example = self._examples.of(descriptor_of(binding.response_class))
        if not binding.is_streaming:
            return content(schema, example)
        line = orjson.dumps(example).decode()
        return {**stream(schema, line + "\n", NDJSON), **stream(schema, f"data: {line}\n\n")}

    def _query_parameters(self, binding: Binding) -> list[Json]:
        if binding.body == ALL_FIELDS:
            return []
        taken = {match[1] for match in _VARIABLE.finditer(binding.template)} | {binding.body}
        fields = self._schemas.query_fields(descriptor_of(binding.input_class))
        return [
            self._query_parameter(path, field)
            for path, field in fields
            if path not in taken and path.partition(".")[0] not in taken
        ]

    def _query_parameter(self, path: str, field: FieldDescriptor) -> Json:
        return {
            "name": path,
            "in": "query",
            "description": self._schemas.comment(field.full_name),
            "schema": self._schemas.field(field),
            "example": self._examples.field(field),
        }

    def _fields_parameter(self, binding: Binding) -> Json:
        names = [field.name for field in descriptor_of(binding.response_class).fields]
        one = "(" + "|".join(["\\*", *names]) + r")(\.[a-z0-9_]+)*"
        return {
            "name": FIELDS,
            "in": "header",
            "description": "Which fields of the answer to send, by their paths, as in `a,b.c`; all of them when absent.",
            "schema": {"type": "string", "pattern": f"^{one}(,{one})*$"},
            "example": names[0] if names else "*",
        }


PARAMETERS: Final[Json] = {
    TIMEOUT: {
        "name": TIMEOUT,
        "in": "header",
        "description": f"Seconds after which the call is of no use any more, from {MIN_SECONDS:g} on; then it ends with 504.",
        "schema": {"type": "number", "minimum": MIN_SECONDS, "maximum": MAX_TIMEOUT_SECONDS},
        "example": 30,
    }
}


def open_path(binding: Binding) -> tuple[str, list[str]]:
    """Write a template as OpenAPI can: `{name=entries/*}` becomes `entries/{entries_id}`."""
    parameters: list[str] = []

    def expand(match: re.Match[str]) -> str:
        segments = (match[2] or "*").split("/")
        written = []
        for position, segment in enumerate(segments):
            if not segment.startswith("*"):
                written.append(segment)
                continue
            name = f"{segments[position - 1]}_id" if position else match[1]
            parameters.append(name)
            written.append("{" + name + "}")
        return "/".join(written)

    return _VARIABLE.sub(expand, binding.template), parameters


def _path_parameter(name: str) -> Json:
    is_path = not name.endswith("_id")
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1} | ({} if is_path else {"pattern": "^[^/:]+$"}),
        "example": "notes/today.txt" if is_path else IDS[name.removesuffix("_id")],
    }


__all__ = ["JSON", "PARAMETERS", "REQUESTS", "BridgePaths", "open_path"]
