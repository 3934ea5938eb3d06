"""`UnifiedKALASession`: a conversation whose every turn is judged, answered by a local model, checked and logged."""

from __future__ import annotations

import time
import uuid
import warnings
import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from kala.errors import FailedPreconditionError, InvalidArgumentError, ToolsDisabled

if TYPE_CHECKING:
    from kala.core.connection import Connection
    from kala.core.inference import InferenceConfig
    from kala.core.lmstudio_adapter import LMStudioConfig
    from kala.core.session_tools import SessionTools
    from kala.replies import ChatReply
    from kala.session_log import SessionLog
    from kala.tool_replies import ToolResult

REMEMBERED_OUTCOMES: Final = ("ALLOW", "ASK_CLARIFICATION")
"""Turns that stay in the conversation. A refused one would make every later request be refused with it."""


class UnifiedKALASession:
    """One conversation; blocking, for one thread at a time.

    A client of the suite that KALA_URL names or that runs on this machine; else it starts a private one, which stops
    when the session closes. Close it, use it as a context manager, or let the interpreter's end do it.
    """

    def __init__(
        self,
        lmstudio_config: LMStudioConfig | None = None,
        inference_config: InferenceConfig | None = None,
        log_dir: Path | str | None = None,
        *,
        enable_ethics: bool = True,
        enable_tools: bool = False,
        session_id: str | None = None,
        system_prompt: str | None = None,
        url: str | None = None,
        api_key: str | None = None,
    ) -> None:
        if lmstudio_config is not None and inference_config is not None:
            raise InvalidArgumentError(
                "inference_config", "give either lmstudio_config or inference_config, not both"
            )
        if not enable_ethics:
            warnings.warn(
                "enable_ethics=False is ignored: the Five Laws are always on", UserWarning, stacklevel=2
            )
        self.session_id = session_id or uuid.uuid4().hex
        self.enable_tools = enable_tools
        self._lmstudio_config, self._inference_config = lmstudio_config, inference_config
        self._url, self._api_key = url, api_key
        self._log = None if log_dir is None else _session_log(Path(log_dir), self.session_id)
        # Any: a call of a tool is more than text.
        self._messages: list[dict[str, Any]] = (
            [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        )
        self._requests = self._blocks = self._tokens = 0
        self._last: ChatReply | None = None
        self._connection: Connection | None = None
        self._tools: SessionTools | None = None
        self._closed = False
        self._stack = ExitStack()
        self._finalizer = weakref.finalize(self, self._stack.close)

    def __enter__(self) -> Self:
        self._opened()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session; stops the private suite, if one was started."""
        try:
            if self._log is not None and self._connection is not None and not self._closed:
                # While the suite can still be asked for what it had only spooled.
                self._log.settle(self._connection.client)
        finally:
            self._closed = True
            self._finalizer()

    def chat(
        self,
        message: str,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        *,
        use_tools: bool = False,
    ) -> str:
        """Say something and get the answer; a refusal is an answer too, failures raise a `kala.errors.KalaError`.

        `use_tools` lets the model call the tools by itself, in a session that has them. `last_reply.tools` tells what
        they did; a call that waits for a person is named there, and such a turn is not remembered.
        """
        connection = self._opened()
        asked = {"role": "user", "content": message}
        started = time.monotonic()
        reply = connection.ask(
            [*self._messages, asked],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            workspace=self._opened_tools("").workspace() if use_tools else None,
        )
        latency_ms = (time.monotonic() - started) * 1000
        self._count(reply)
        if _is_remembered(reply):
            between = (reply.tools or {}).get("messages") or ()
            self._messages += [asked, *between, {"role": "assistant", "content": reply.text}]
        if self._log is not None:
            self._log.write(connection.client, message, reply, latency_ms=latency_ms)
        return reply.text

    @property
    def last_reply(self) -> ChatReply | None:
        """The newest answer with its decision and receipt; None before the first."""
        return self._last

    @property
    def history(self) -> tuple[dict[str, Any], ...]:  # Any: a call of a tool is more than text
        """The messages that the next request will carry."""
        return tuple(dict(message) for message in self._messages)

    def execute_tool(self, name: str, **arguments: Any) -> ToolResult:  # Any: each tool has its own arguments
        """Run a tool in the sandbox, judged and logged; `result.success`, `.output`, `.error`, `.ethics_approved`.

        A program that fails and a call that the laws or the policy refuse are results; arguments that are wrong and a
        suite that cannot run tools raise a `kala.errors.KalaError`. `approval="approvals/…"` repeats a call that a person
        has approved.
        """
        tools = self._opened_tools(name)
        result = tools.execute(name, arguments)
        self._requests += 1
        self._blocks += not result.ethics_approved
        if self._log is not None:
            self._log.write_tool(tools.client, name, arguments, result)
        return result

    def list_tools(self) -> tuple[str, ...]:
        """The names of the tools that `execute_tool` can run now; none in a session without tools."""
        return self._opened_tools("").names() if self.enable_tools else ()

    def get_stats(self) -> dict[str, Any]:  # Any: a name and three counts
        """Count requests, those that were not allowed, and generated tokens."""
        return {
            "session_id": self.session_id,
            "requests_processed": self._requests,
            "ethics_blocks": self._blocks,
            "tokens_generated": self._tokens,
        }

    def get_summary(self) -> str:
        """Say in a few lines what happened in this session and where it is proved."""
        connection = self._connection
        place = "not opened"
        if connection is not None:
            place = f"{connection.client.target.url}{' (private)' if connection.is_private else ''}"
        lines = [
            f"KALA session {self.session_id}",
            f"  suite             {place}",
            f"  requests          {self._requests}",
            f"  ethics blocks     {self._blocks}",
            f"  tokens generated  {self._tokens}",
        ]
        if self._last is not None and self._last.receipt is not None:
            lines.append(f"  last receipt      {self._last.receipt.id} ({self._last.receipt.status})")
        if self._log is not None:
            lines.append(f"  log               {self._log.path}")
        return "\n".join(lines)

    def _opened(self) -> Connection:
        if self._closed:
            raise FailedPreconditionError("this session is closed; open another one")
        if self._connection is None:
            from kala.core.connection import connect

            self._connection = self._stack.enter_context(
                connect(
                    lmstudio_config=self._lmstudio_config,
                    inference_config=self._inference_config,
                    url=self._url,
                    api_key=self._api_key,
                )
            )
        return self._connection

    def _opened_tools(self, name: str) -> SessionTools:
        if not self.enable_tools:
            raise ToolsDisabled(
                f"{f'tool {name!r}: ' if name else ''}this session was opened without tools; pass enable_tools=True"
            )
        connection = self._opened()
        if self._tools is None:
            from kala.core.session_tools import SessionTools

            self._tools = self._stack.enter_context(
                SessionTools(connection.client, shows_directory=connection.is_private)
            )
        return self._tools

    def _count(self, reply: ChatReply) -> None:
        self._last = reply
        self._requests += 1
        self._blocks += not reply.allowed
        self._tokens += reply.output_tokens if reply.allowed else 0


def _session_log(directory: Path, session_id: str) -> SessionLog:
    from kala.session_log import SessionLog

    return SessionLog(directory, session_id)


def _is_remembered(reply: ChatReply) -> bool:
    if reply.tools is not None and reply.tools.get("requires_action"):
        return False
    return reply.decision is None or reply.decision.outcome in REMEMBERED_OUTCOMES
