"""Items of a conversation: as a client sends them, as they are kept, and as messages for the model.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.responses import input_schema as schema
from gateway.responses.ids import ItemIds
from kala.errors import InvalidArgumentError

Json = dict[str, Any]  # Any: JSON

_KINDS: Final = {
    schema.MESSAGE: "msg",
    schema.CALL: "fc",
    schema.CALL_OUTPUT: "fco",
    schema.REASONING: "rs",
    schema.KALA_CALL: "mcp",
    schema.APPROVAL_REQUEST: "mcpr",
    schema.APPROVAL_RESPONSE: "mcpa",
}

_APPROVAL: Final = re.compile(r"approvals/[A-Za-z0-9._-]{1,128}")

NOT_CARRIED_OUT: Final = "This call was not carried out: nobody has approved it."
DECLINED: Final = "This call was not carried out: it was declined."


@dataclass(frozen=True, slots=True)
class Placed:
    """An item and where it came from, as an error about it says."""

    item: Json
    origin: str


@dataclass(slots=True)
class Messages:
    """What the model is told."""

    messages: list[Json] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    """Where each message came from."""
    approvals: dict[str, str] = field(default_factory=dict)
    """Ids of calls that may go on, each with its approval."""


def kept(item: schema.InputItem, ids: ItemIds) -> Json:
    """Give an item of a request as it is kept and listed; references are looked up elsewhere."""
    body: Json
    match item:
        case schema.InputMessage():
            body = {"role": item.role, "status": "completed", "content": _input_parts(item.content)}
        case schema.OutputMessage():
            body = {"role": "assistant", "status": "completed", "content": _output_parts(item.content)}
        case schema.FunctionCall():
            call = {"call_id": item.call_id, "name": item.name, "arguments": item.arguments}
            body = {**call, "status": "completed"}
        case schema.FunctionCallOutput():
            body = {"call_id": item.call_id, "output": _output(item.output), "status": "completed"}
        case schema.ReasoningItem():
            body = {"summary": []}
        case schema.KalaCall():
            body = {**_of_kala(item), "output": item.output, "status": item.status}
            body["approval_request_id"] = item.approval_request_id
        case schema.ApprovalRequest():
            body = {**_of_kala(item), "kala": item.kala}
        case schema.ApprovalResponse():
            body = {"approval_request_id": item.approval_request_id, "approve": item.approve}
            body["reason"] = item.reason
        case _:
            raise InvalidArgumentError("input", f"holds an item of type {item.type!r} that cannot be kept")
    return {"id": item.id or ids.next(_KINDS[item.type]), "type": item.type, **body}


def _of_kala(item: schema.KalaCall | schema.ApprovalRequest) -> Json:
    return {"name": item.name, "arguments": item.arguments, "server_label": item.server_label}


def text_item(text: str, ids: ItemIds) -> Json:
    """Give a text that stands for a whole input as the message that it is."""
    return {
        "id": ids.next("msg"),
        "type": schema.MESSAGE,
        "role": "user",
        "status": "completed",
        "content": [{"type": "input_text", "text": text}],
    }


def messages_of(items: Iterable[Placed]) -> Messages:
    """Tell a conversation as messages, or raise InvalidArgumentError that names the item that cannot be told."""
    teller = _Teller()
    for placed in items:
        teller.tell(placed.item, placed.origin)
    return teller.told


class _Teller:
    def __init__(self) -> None:
        self.told = Messages()
        self._waiting: dict[str, Json] = {}  # calls that wait for a person, by id

    def tell(self, item: Json, origin: str) -> None:
        """Tell one item."""
        match item["type"]:
            case schema.MESSAGE:
                self._give_up_waiting(origin)
                self._message(item, origin)
            case schema.CALL:
                self._call(item["call_id"], item, origin)
            case schema.CALL_OUTPUT:
                self._result(item["call_id"], _plain(item["output"]), origin)
            case schema.KALA_CALL:
                self._kala_call(item, origin)
            case schema.APPROVAL_REQUEST:
                self._waiting[item["id"]] = item
                self._call(item["id"], item, origin)
            case schema.APPROVAL_RESPONSE:
                self._answer(item, origin)
            case _:
                pass  # what the model thought before is not told again

    def _message(self, item: Json, origin: str) -> None:
        role, content = item["role"], item["content"]
        parts = [_chat_part(part) for part in content]
        texts = [part["text"] for part in parts if part["type"] == "text"]
        said: Any = texts[0] if len(parts) == len(texts) == 1 else parts  # Any: a text or parts
        self._add({"role": role, "content": said or ""}, origin)

    def _call(self, call_id: str, item: Json, origin: str) -> None:
        call = {
            "id": call_id,
            "type": "function",
            "function": {"name": item["name"], "arguments": item["arguments"]},
        }
        last = self.told.messages[-1] if self.told.messages else {}
        if last.get("role") == "assistant":
            last.setdefault("tool_calls", []).append(call)
        else:
            self._add({"role": "assistant", "content": None, "tool_calls": [call]}, origin)

    def _kala_call(self, item: Json, origin: str) -> None:
        request = item.get("approval_request_id")
        if request and self._waiting.pop(request, None) is not None:
            # The call was told with its request.
            self.told.approvals.pop(request, None)
            self._result(request, item.get("output") or "", origin)
            return
        self._call(item["id"], item, origin)
        self._result(item["id"], item.get("output") or "", origin)

    def _answer(self, item: Json, origin: str) -> None:
        request_id = item["approval_request_id"]
        request = self._waiting.get(request_id)
        if request is None:
            raise InvalidArgumentError(
                f"{origin}.approval_request_id",
                f"{request_id[:64]!r} names no call of this conversation that waits for a person",
            )
        if item["approve"]:
            approval = (request.get("kala") or {}).get("approval")
            if not (isinstance(approval, str) and _APPROVAL.fullmatch(approval)):
                raise InvalidArgumentError(
                    f"{origin}.approval_request_id",
                    "names a call without its approval; send the item as it came, or use `previous_response_id`",
                )
            self.told.approvals[request_id] = approval
            return
        del self._waiting[request_id]
        reason = item.get("reason")
        self._result(request_id, f"{DECLINED} {reason}" if reason else DECLINED, origin)

    def _give_up_waiting(self, origin: str) -> None:
        """Somebody has spoken on: what still waited is not carried out any more."""
        for request_id in self._waiting:
            self.told.approvals.pop(request_id, None)
            self._result(request_id, NOT_CARRIED_OUT, origin)
        self._waiting.clear()

    def _result(self, call_id: str, content: str, origin: str) -> None:
        self._add({"role": "tool", "tool_call_id": call_id, "content": content}, origin)

    def _add(self, message: Json, origin: str) -> None:
        self.told.messages.append(message)
        self.told.origins.append(origin)


def _chat_part(part: Mapping[str, Any]) -> Json:  # Any: JSON
    match part["type"]:
        case "input_image":
            image = {"url": part["image_url"]}
            if part.get("detail"):
                image["detail"] = part["detail"]
            return {"type": "image_url", "image_url": image}
        case "refusal":
            return {"type": "refusal", "refusal": part["refusal"]}
        case _:
            return {"type": "text", "text": part["text"]}


def _input_parts(content: str | Sequence[schema.InputText | schema.InputImage]) -> list[Json]:
    if isinstance(content, str):
        return [{"type": "input_text", "text": content}]
    return [
        {"type": "input_text", "text": part.text}
        if isinstance(part, schema.InputText)
        else {
            "type": "input_image",
            "image_url": part.image_url,
            "detail": part.detail or "auto",
            "file_id": None,
        }
        for part in content
    ]


def _output_parts(
    content: str | Sequence[schema.OutputText | schema.Refusal | schema.InputText],
) -> list[Json]:
    if isinstance(content, str):
        return [{"type": "output_text", "text": content, "annotations": []}]
    return [
        {"type": "refusal", "refusal": part.refusal}
        if isinstance(part, schema.Refusal)
        else {"type": "output_text", "text": part.text, "annotations": []}
        for part in content
    ]


def _output(output: str | Sequence[schema.InputText]) -> str | list[Json]:
    if isinstance(output, str):
        return output
    return [{"type": "input_text", "text": part.text} for part in output]


def _plain(output: str | Sequence[Mapping[str, Any]]) -> str:  # Any: JSON
    return output if isinstance(output, str) else "\n".join(str(part["text"]) for part in output)
