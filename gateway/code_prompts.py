"""The prompt that a GenerateCode carries: built here, with the hints of the tools service, and judged as any chat.

A client never brings one: what a model is asked is always what ethics read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from gateway.acts import CHAT_KIND, CHAT_RPC, Act
from gateway.chat_action import AUTO_MODEL
from gateway.guarded import GuardedCalls
from kala.errors import InvalidArgumentError
from kala.inference.v1 import inference_pb2
from kala.tools.v1 import execution_pb2, tools_pb2
from services.common.peers import TOOLS
from services.common.sealing import pack

if TYPE_CHECKING:
    from google.protobuf.message import Message

HINT_RPC: Final = "/kala.tools.v1.ToolsService/HintVulnerabilities"
MAX_HINTED_CHARS: Final = 16_384
"""The contract's limit for the task that hints are given for; of a longer one its beginning."""

_LANGUAGES: Final = {
    execution_pb2.LANGUAGE_PYTHON: "Python",
    execution_pb2.LANGUAGE_JAVASCRIPT: "JavaScript for Node.js",
    execution_pb2.LANGUAGE_SHELL: "bash",
}
_MARKS: Final = {
    execution_pb2.LANGUAGE_PYTHON: "python",
    execution_pb2.LANGUAGE_JAVASCRIPT: "javascript",
    execution_pb2.LANGUAGE_SHELL: "bash",
}

Ask = Callable[[str, "Message"], Awaitable["Message"]]
"""Makes an unguarded call by its RPC's name, on the caller's behalf."""


class CodePrompts:
    """Adds the cleared prompt to a GenerateCodeAction; one per process."""

    def __init__(self, guarded: GuardedCalls) -> None:
        self._guarded = guarded

    async def added(self, act: Act, action: tools_pb2.GenerateCodeAction, ask: Ask) -> Act:
        """Give the act with the prompt in it; raises RefusedError, recorded, when the prompt is not allowed.

        Raises InvalidArgumentError for an action that brings a prompt of its own, or names no language.
        """
        if action.HasField("generation"):
            raise InvalidArgumentError("generation", "is the gateway's to add; leave it out")
        hints = tools_pb2.HintVulnerabilitiesResponse()
        if action.task:
            answer = await ask(
                HINT_RPC,
                tools_pb2.HintVulnerabilitiesRequest(
                    task=action.task[:MAX_HINTED_CHARS],
                    language=action.language,
                    frameworks=action.frameworks,
                ),
            )
            if isinstance(answer, tools_pb2.HintVulnerabilitiesResponse):
                hints = answer
        prompt = prompt_of(action, hints.prompt_text)
        asking = replace(
            act,
            rpc=CHAT_RPC,
            kind=CHAT_KIND,
            action=pack(prompt),
            model=prompt.model,
            presenter=TOOLS,
            request_text=action.task,
        )
        cleared = await self._guarded.admit(asking)
        whole = tools_pb2.GenerateCodeAction()
        whole.CopyFrom(action)
        whole.generation.CopyFrom(cleared.sealed)
        facts = {**act.facts, "generation.decision": cleared.decision.id}
        return replace(act, action=pack(whole), request_text=action.task, facts=facts)


def prompt_of(action: tools_pb2.GenerateCodeAction, hints: str) -> inference_pb2.ChatAction:
    """Write the prompt for a task."""
    language = _LANGUAGES.get(action.language)
    if language is None:
        raise InvalidArgumentError(
            "language", "must be LANGUAGE_PYTHON, LANGUAGE_JAVASCRIPT or LANGUAGE_SHELL"
        )
    rules = [
        f"Write {language} for the task.",
        f"Answer with one file in one code block that begins with ```{_MARKS[action.language]}, and nothing else.",
        "The code must be complete and safe for input of strangers.",
    ]
    if action.frameworks:
        rules.append(f"You may use: {', '.join(action.frameworks)}.")
    if action.path:
        rules.append(f"The file is called {action.path}.")
    if hints:
        rules.append(hints)
    return inference_pb2.ChatAction(
        model=AUTO_MODEL,
        messages=[
            inference_pb2.ChatMessage(
                role=inference_pb2.ROLE_SYSTEM,
                content=[inference_pb2.ContentPart(text="\n".join(rules))],
            ),
            inference_pb2.ChatMessage(
                role=inference_pb2.ROLE_USER, content=[inference_pb2.ContentPart(text=action.task)]
            ),
        ],
    )
