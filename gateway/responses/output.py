"""The items of an answer, and the response around them, as OpenAI's clients expect them.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from gateway.conversations.records import CANCELLED, COMPLETED, FAILED, INCOMPLETE
from gateway.errors import code_text
from gateway.responses.ids import ItemIds
from gateway.responses.schema import ResponseRequest

if TYPE_CHECKING:
    from gateway.acts import Conclusion
    from gateway.answer import Answer
    from kala.common.v1 import usage_pb2
    from kala.errors import KalaError
    from kala.inference.v1 import inference_pb2

Json = dict[str, Any]  # Any: JSON

KALA: Final = "kala"
"""The label of this platform's own tools."""

_ERROR_CODES: Final = {"rate_limit_exceeded": "rate_limit_exceeded"}
"""OpenAI's own words for what ends a response; everything else is `server_error`, and `message` says what it was."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What every form of one response repeats."""

    id: str
    created_at: int  # seconds since 1970
    request: ResponseRequest
    model: str

    def response(self, status: str, output: Sequence[Json], **fields: object) -> Json:
        """Write the response."""
        request = self.request
        text = request.text
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "background": bool(request.background),
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": request.max_tool_calls,
            "metadata": request.metadata or {},
            "model": self.model,
            "output": list(output),
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": request.previous_response_id,
            "prompt_cache_key": request.prompt_cache_key,
            "reasoning": {
                "effort": None if request.reasoning is None else request.reasoning.effort,
                "summary": None,
            },
            "safety_identifier": request.safety_identifier,
            "service_tier": "default",
            "store": request.is_stored,
            "temperature": request.temperature,
            "text": {
                "format": {"type": "text"}
                if text is None or text.format is None
                else text.format.model_dump(by_alias=True),
                "verbosity": "medium",
            },
            "tool_choice": "auto" if request.tool_choice is None else _dumped(request.tool_choice),
            "tools": [tool.model_dump() for tool in request.tools or ()],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": request.top_p,
            "truncation": request.truncation or "disabled",
            "usage": None,
            "user": request.user,
            **fields,
        }

    def concluded(
        self, conclusion: Conclusion, output: Sequence[Json], kala: Mapping[str, object], now: int
    ) -> Json:
        """Write a response that came to its end."""
        fields: Json = {"usage": usage_json(conclusion.usage), "kala": dict(kala)}
        fields["model"] = conclusion.served.model or self.model
        reason = _INCOMPLETE.get(conclusion.finish_reason)
        if reason is not None:
            return self.response(INCOMPLETE, output, incomplete_details={"reason": reason}, **fields)
        return self.response(COMPLETED, output, completed_at=now, **fields)

    def failed(self, error: KalaError, output: Sequence[Json] = (), **fields: object) -> Json:
        """Write a response that an error ended."""
        code = _ERROR_CODES.get(code_text(error), "server_error")
        return self.response(FAILED, output, error={"code": code, "message": error.message}, **fields)

    def cancelled(self, output: Sequence[Json] = ()) -> Json:
        """Write a response that was cancelled."""
        return self.response(CANCELLED, output)


_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}


def item_status(conclusion: Conclusion) -> str:
    """Give what the last item of an answer is."""
    return "incomplete" if conclusion.finish_reason in _INCOMPLETE else "completed"


@dataclass(slots=True)
class Steps:
    """What KALA's own tools did in an answer, from which its items are written."""

    messages: Sequence[Json]
    by_call: Mapping[str, Json]
    earlier: Mapping[str, tuple[str, str]]
    """Calls of the conversation before: name and arguments by id."""
    told: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, conclusion: Conclusion, earlier: Mapping[str, tuple[str, str]]) -> Steps:
        """Read a conclusion."""
        tools: Mapping[str, Any] = conclusion.tools or {}  # Any: JSON
        return cls(
            tools.get("messages", ()), {step["call_id"]: step for step in tools.get("steps", ())}, earlier
        )

    def items(self, ids: ItemIds) -> list[Json]:
        """Write the items of all turns but the last one's own words."""
        calls = dict(self.earlier)
        items: list[Json] = []
        for message in self.messages:
            if message["role"] == "tool":
                call_id = message["tool_call_id"]
                name, arguments = calls.get(call_id, ("", ""))
                step = self.by_call.get(call_id, {})
                is_resumed = call_id in self.earlier
                items.append(
                    kala_call(ids, name, arguments, message["content"], step, call_id if is_resumed else None)
                )
                self.told.add(call_id)
                continue
            if message.get("content"):
                items.append(message_item(ids.next("msg"), text_parts(message["content"]), "completed"))
            for call in message.get("tool_calls", ()):
                calls[call["id"]] = (call["function"]["name"], call["function"]["arguments"])
        for call_id, step in self.by_call.items():
            if step.get("approval") and call_id not in self.told:
                name, arguments = calls.get(call_id, (step["tool"], "{}"))
                items.append(approval_request(ids, name, arguments, step))
                self.told.add(call_id)
        return items


def output_of(
    conclusion: Conclusion,
    ids: ItemIds,
    logprobs: Sequence[inference_pb2.TokenLogprob],
    earlier: Mapping[str, tuple[str, str]],
) -> list[Json]:
    """Write the items of a whole answer."""
    steps = Steps.of(conclusion, earlier)
    items = steps.items(ids)
    status = item_status(conclusion)
    answer = conclusion.answer
    # Where calls are left to others, the turn's own words stand among the messages already.
    told = {call["id"] for message in steps.messages for call in message.get("tool_calls", ())}
    if not any(call.id in told for call in answer.tool_calls.values()):
        items += _words(answer, ids, status, logprobs)
    items += [
        function_call(ids, index, call.id, call.name, call.arguments)
        for index, call in sorted(answer.tool_calls.items())
        if call.id not in steps.told
    ]
    return items or [message_item(ids.next("msg"), text_parts(""), status)]


def _words(
    answer: Answer, ids: ItemIds, status: str, logprobs: Sequence[inference_pb2.TokenLogprob]
) -> list[Json]:
    items = []
    if answer.reasoning:
        items.append(reasoning_item(ids.next("rs"), answer.reasoning))
    parts = text_parts(answer.text, logprobs_json(logprobs)) if answer.text else []
    if answer.refusal:
        parts.append({"type": "refusal", "refusal": answer.refusal})
    if parts:
        items.append(message_item(ids.next("msg"), parts, status))
    return items


def message_item(item_id: str, content: Sequence[Json], status: str) -> Json:
    """Write a message of the model's."""
    return {
        "id": item_id,
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": list(content),
    }


def text_parts(text: str, logprobs: Sequence[Json] = ()) -> list[Json]:
    """Write a text as the one part of a message."""
    return [{"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}]


def reasoning_item(item_id: str, text: str, status: str = "completed") -> Json:
    """Write what the model thought."""
    content = [{"type": "reasoning_text", "text": text}] if text else []
    return {"id": item_id, "type": "reasoning", "summary": [], "content": content, "status": status}


def function_call(ids: ItemIds, index: int, call_id: str, name: str, arguments: str) -> Json:
    """Write a call of one of the client's functions; one that its backend gave no id gets one."""
    item_id = ids.next("fc")
    return {
        "id": item_id,
        "type": "function_call",
        "call_id": call_id or f"call_{item_id.removeprefix('fc_')}_{index}",
        "name": name,
        "arguments": arguments,
        "status": "completed",
    }


def kala_call(
    ids: ItemIds, name: str, arguments: str, result: str, step: Mapping[str, Any], request: str | None
) -> Json:  # Any: JSON
    """Write a call of one of KALA's tools that was carried out, or was not and why."""
    return {
        "id": ids.next("mcp"),
        "type": "mcp_call",
        "server_label": KALA,
        "name": name,
        "arguments": arguments,
        "output": result,
        "error": None,
        "status": "completed" if step.get("status") == "OK" else "failed",
        "approval_request_id": request,
        "kala": {key: value for key, value in step.items() if key not in {"arguments", "result"}},
    }


def approval_request(ids: ItemIds, name: str, arguments: str, step: Mapping[str, Any]) -> Json:  # Any: JSON
    """Write a call of one of KALA's tools that waits for a person."""
    return {
        "id": ids.next("mcpr"),
        "type": "mcp_approval_request",
        "server_label": KALA,
        "name": name,
        "arguments": arguments,
        "kala": {"approval": step.get("approval"), "call_id": step.get("call_id")},
    }


def usage_json(usage: usage_pb2.Usage | None) -> Json | None:
    """Write the tokens, or nothing when the backend did not count them."""
    if usage is None or not (usage.HasField("input_tokens") or usage.HasField("output_tokens")):
        return None
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_input_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def logprobs_json(entries: Iterable[inference_pb2.TokenLogprob]) -> list[Json]:
    """Write log probabilities."""
    return [{**_logprob(entry), "top_logprobs": [_logprob(top) for top in entry.top]} for entry in entries]


def _logprob(entry: inference_pb2.TokenLogprob) -> Json:
    return {"token": entry.token, "logprob": entry.logprob, "bytes": list(entry.token_bytes)}


def _dumped(choice: Any) -> Any:  # Any: a word or a model; JSON
    return choice if isinstance(choice, str) else choice.model_dump()
