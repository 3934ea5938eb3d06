"""Tells a response that is whole as the stream that it could have been: every item in order, each text in one piece.  Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from gateway.files.listing import read_page
from gateway.responses.events import Numbered
from kala.errors import InvalidArgumentError

Json = dict[str, Any]  # Any: JSON

_WORDS: Final = {"output_text": "text", "refusal": "refusal", "reasoning_text": "text"}
_MOST_DIGITS: Final = 9


@dataclass(frozen=True, slots=True)
class Replay:
    """Which events are asked for."""

    starting_after: int = -1


def read_replay(query: str) -> Replay | None:
    """Read the query of a GET: a stream, or None for the response as it is."""
    fields = read_page(
        query,
        default=1,
        also=("stream", "starting_after", "include", "include[]", "include_obfuscation"),
    ).filters
    stream, after = fields.get("stream", "false"), fields.get("starting_after", "")
    if stream not in {"true", "false"}:
        raise InvalidArgumentError("stream", "must be true or false")
    if after and not (after.isascii() and after.isdigit() and len(after) <= _MOST_DIGITS):
        raise InvalidArgumentError("starting_after", "must be the number of an event")
    if stream == "false":
        if after:
            raise InvalidArgumentError("starting_after", "is only allowed with `stream=true`")
        return None
    return Replay(int(after) if after else -1)


def replayed(response: Json) -> Iterator[bytes]:
    """Write the events of a whole response."""
    numbered = Numbered()
    begun = {**response, "status": "in_progress", "output": [], "usage": None, "error": None}
    begun |= {"incomplete_details": None}
    begun.pop("completed_at", None)
    begun.pop("kala", None)
    yield numbered.event("response.created", response=begun)
    yield numbered.event("response.in_progress", response=begun)
    for place, item in enumerate(response["output"]):
        yield from _item(numbered, item, place)
    end = "failed" if response["status"] == "cancelled" else response["status"]
    yield numbered.event(f"response.{end}", response=response)


def _item(numbered: Numbered, item: Json, place: int) -> Iterator[bytes]:
    where: Json = {"item_id": item["id"], "output_index": place}
    kind = item["type"]
    yield numbered.event("response.output_item.added", output_index=place, item=_opened(item))
    if kind in {"message", "reasoning"}:
        for index, part in enumerate(item["content"]):
            yield from _part(numbered, part, {**where, "content_index": index})
    elif kind == "function_call":
        head = "response.function_call_arguments"
        yield numbered.event(f"{head}.delta", **where, delta=item["arguments"])
        yield numbered.event(f"{head}.done", **where, arguments=item["arguments"])
    elif kind == "mcp_call":
        yield numbered.event("response.mcp_call.in_progress", **where)
        yield numbered.event("response.mcp_call_arguments.delta", **where, delta=item["arguments"])
        yield numbered.event("response.mcp_call_arguments.done", **where, arguments=item["arguments"])
        end = "completed" if item["status"] == "completed" else "failed"
        yield numbered.event(f"response.mcp_call.{end}", **where)
    yield numbered.event("response.output_item.done", output_index=place, item=item)


def _opened(item: Json) -> Json:
    """Give an item as it was before its first word."""
    match item["type"]:
        case "message" | "reasoning":
            return {**item, "status": "in_progress", "content": []}
        case "function_call":
            return {**item, "status": "in_progress", "arguments": ""}
        case "mcp_call":
            return {**item, "status": "in_progress", "arguments": "", "output": None}
        case _:
            return item


def _part(numbered: Numbered, part: Json, where: Json) -> Iterator[bytes]:
    kind = part["type"]
    field = _WORDS[kind]
    logprobs: Json = {"logprobs": part.get("logprobs") or []} if kind == "output_text" else {}
    empty = {**part, field: "", **({"logprobs": []} if logprobs else {})}
    yield numbered.event("response.content_part.added", **where, part=empty)
    if part[field]:
        yield numbered.event(f"response.{kind}.delta", **where, delta=part[field], **logprobs)
    yield numbered.event(f"response.{kind}.done", **where, **{field: part[field]}, **logprobs)
    yield numbered.event("response.content_part.done", **where, part=part)
