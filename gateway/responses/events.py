"""Writes a response as OpenAI's stream of events, each numbered; made for one response.

Items open as their first words come and close when the next one begins, calls of functions at the end: several may
grow at once. The response at the end is made of the very items that were streamed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import orjson

from gateway.responses.output import (
    Frame,
    Json,
    approval_request,
    function_call,
    item_status,
    kala_call,
    logprobs_json,
    message_item,
    reasoning_item,
    text_parts,
)  # fmt: skip

if TYPE_CHECKING:
    from gateway.acts import Conclusion
    from gateway.answer import Release, ToolPiece
    from gateway.responses.ids import ItemIds
    from kala.errors import KalaError

_DONE_FIELD: Final = {"output_text": "text", "refusal": "refusal", "reasoning_text": "text"}


class Numbered:
    """Numbers events and writes them."""

    def __init__(self) -> None:
        self._next = 0

    def event(self, kind: str, **fields: object) -> bytes:
        """Write the next event."""
        value = {"type": kind, "sequence_number": self._next, **fields}
        self._next += 1
        return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(value) + b"\n\n"


class EventWriter:
    """Writes one stream."""

    def __init__(
        self,
        frame: Frame,
        ids: ItemIds,
        *,
        earlier: Mapping[str, tuple[str, str]],
        status: str = "in_progress",
    ) -> None:
        self._frame = frame
        self._ids = ids
        self._earlier = earlier
        self._status = status
        self._numbered = Numbered()
        self._has_begun = False
        self.items: list[Json] = []
        self._part: Json | None = None
        """The open part of the open message or thought, which is the last item but for calls."""
        self._open: int | None = None
        self._calls: dict[int, int] = {}  # places of open calls, by the backend's index
        self._waiting: set[str] = set()  # ids of calls that wait for a person

    def begun(self) -> bytes:
        """Write the events with which every stream begins."""
        self._has_begun = True
        response = self._frame.response(self._status, ())
        return self._numbered.event("response.created", response=response) + self._numbered.event(
            "response.in_progress", response=response
        )

    def released(self, release: Release) -> bytes:
        """Write what may leave now."""
        parts = [] if self._has_begun else [self.begun()]
        if release.step is not None:
            # The text beside it only parts messages, and these are parted already.
            parts += [self._close(), self._step(release.step)]
            return b"".join(parts)
        if release.reasoning:
            parts.append(self._say("reasoning_text", release.reasoning, ()))
        logprobs = logprobs_json(release.logprobs)
        if release.text or logprobs:
            parts.append(self._say("output_text", release.text, logprobs))
        if release.refusal:
            parts.append(self._say("refusal", release.refusal, ()))
        parts += [self._call(piece) for piece in release.tool_calls if piece.id not in self._waiting]
        return b"".join(parts)

    def last_words(self, conclusion: Conclusion) -> bytes:
        """Write what is left before the end: closing words, and the ends of all items."""
        parts = [] if self._has_begun else [self.begun()]
        if conclusion.closing_text:
            parts += [self._close(), self._say("output_text", conclusion.closing_text, ())]
        if not self.items:
            parts.append(self._say("output_text", "", ()))
        status = item_status(conclusion)
        parts += [self._close(status), self._close_calls(status)]
        return b"".join(parts)

    def end(self, response: Json) -> bytes:
        """Write the event that ends the stream."""
        parts = [] if self._has_begun else [self.begun()]
        return b"".join([*parts, self._numbered.event(f"response.{response['status']}", response=response)])

    def served_by(self, model: str) -> None:
        """Name the model that answers from now on."""
        if model and not self._has_begun:
            self._frame = Frame(self._frame.id, self._frame.created_at, self._frame.request, model)

    def failed(self, error: KalaError, **fields: object) -> Json:
        """Give the response that an error ended, with what was streamed of it."""
        for index in [*([] if self._open is None else [self._open]), *self._calls.values()]:
            self.items[index]["status"] = "incomplete"
        return self._frame.failed(error, self.items, **fields)

    def _say(self, kind: str, words: str, logprobs: Sequence[Json]) -> bytes:
        opening = b""
        if self._part is None or self._part["type"] != kind:
            opening = self._open_part(kind)
        part, place = self._require_open()
        part[_DONE_FIELD[kind]] += words
        fields: Json = {"delta": words}
        if kind == "output_text":
            part["logprobs"] += logprobs
            fields["logprobs"] = list(logprobs)
        elif not words:
            return opening
        return opening + self._numbered.event(f"response.{kind}.delta", **self._where(place), **fields)

    def _open_part(self, kind: str) -> bytes:
        """Open a part in the item that it belongs to, and that item where it is not open."""
        wanted = "reasoning" if kind == "reasoning_text" else "message"
        out = b""
        if self._open is None or self.items[self._open]["type"] != wanted:
            out += self._close()
            item = (
                reasoning_item(self._ids.next("rs"), "", "in_progress")
                if wanted == "reasoning"
                else message_item(self._ids.next("msg"), (), "in_progress")
            )
            out += self._add(item)
            self._open = len(self.items) - 1
        else:
            out += self._close_part()
        part: Json
        part = text_parts("")[0] if kind == "output_text" else {"type": kind, _DONE_FIELD[kind]: ""}
        item = self.items[self._open]
        item["content"].append(part)
        self._part = part
        return out + self._numbered.event("response.content_part.added", **self._where(self._open), part=part)

    def _require_open(self) -> tuple[Json, int]:
        if self._part is None or self._open is None:
            raise AssertionError("words without a part")
        return self._part, self._open

    def _where(self, place: int) -> Json:
        item = self.items[place]
        return {"item_id": item["id"], "output_index": place, "content_index": len(item["content"]) - 1}

    def _close_part(self) -> bytes:
        if self._part is None or self._open is None:
            return b""
        part, self._part = self._part, None
        kind, where = part["type"], self._where(self._open)
        fields: Json = {_DONE_FIELD[kind]: part[_DONE_FIELD[kind]]}
        if kind == "output_text":
            fields["logprobs"] = part["logprobs"]
        return self._numbered.event(f"response.{kind}.done", **where, **fields) + self._numbered.event(
            "response.content_part.done", **where, part=part
        )

    def _close(self, status: str = "completed") -> bytes:
        """Close the open message or thought."""
        out = self._close_part()
        if self._open is not None:
            place, self._open = self._open, None
            self.items[place]["status"] = status
            out += self._item_event("response.output_item.done", place)
        return out

    def _call(self, piece: ToolPiece) -> bytes:
        out = b""
        if piece.index not in self._calls:
            out += self._close()
            item = function_call(self._ids, piece.index, piece.id, piece.name, "")
            item["status"] = "in_progress"
            out += self._add(item)
            self._calls[piece.index] = len(self.items) - 1
        place = self._calls[piece.index]
        item = self.items[place]
        if not piece.arguments:
            return out
        item["arguments"] += piece.arguments
        return out + self._numbered.event(
            "response.function_call_arguments.delta",
            item_id=item["id"],
            output_index=place,
            delta=piece.arguments,
        )

    def _close_calls(self, status: str) -> bytes:
        out = b""
        for place in self._calls.values():
            item = self.items[place]
            item["status"] = status
            out += self._numbered.event(
                "response.function_call_arguments.done",
                item_id=item["id"], output_index=place, arguments=item["arguments"],
            ) + self._item_event("response.output_item.done", place)  # fmt: skip
        self._calls.clear()
        return out

    def _step(self, step: Mapping[str, Any]) -> bytes:  # Any: JSON
        name, arguments = step["tool"], step["arguments"]
        if step.get("approval"):
            self._waiting.add(step["call_id"])
            return self._whole(approval_request(self._ids, name, arguments, step))
        request = step["call_id"] if step["call_id"] in self._earlier else None
        item = kala_call(self._ids, name, arguments, step["result"], step, request)
        place = len(self.items)
        where = {"item_id": item["id"], "output_index": place}
        out = self._add({**item, "arguments": "", "output": None, "status": "in_progress"})
        self.items[place] = item
        end = "completed" if item["status"] == "completed" else "failed"
        return b"".join(
            [
                out,
                self._numbered.event("response.mcp_call.in_progress", **where),
                self._numbered.event("response.mcp_call_arguments.delta", **where, delta=arguments),
                self._numbered.event("response.mcp_call_arguments.done", **where, arguments=arguments),
                self._numbered.event(f"response.mcp_call.{end}", **where),
                self._item_event("response.output_item.done", place),
            ]
        )

    def _whole(self, item: Json) -> bytes:
        return self._add(item) + self._item_event("response.output_item.done", len(self.items) - 1)

    def _add(self, item: Json) -> bytes:
        self.items.append(item)
        return self._item_event("response.output_item.added", len(self.items) - 1)

    def _item_event(self, kind: str, place: int) -> bytes:
        return self._numbered.event(kind, output_index=place, item=self.items[place])
