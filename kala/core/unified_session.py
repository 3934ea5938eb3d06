"""`UnifiedKALASession`: a conversation whose every turn is judged, answered by a local model, checked and logged."""

from __future__ import annotations

import time
import uuid
import warnings
import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from kala.errors import FailedPreconditionError, InvalidArgumentError, ToolsDisabled, UnimplementedError

if TYPE_CHECKING:
    from kala.core.connection import Connection
    from kala.core.inference import InferenceConfig
    from kala.core.lmstudio_adapter import LMStudioConfig
    from kala.core.session_log import SessionLog
    from kala.replies import ChatReply

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
        self._log_dir = None if log_dir is None else Path(log_dir)
        self._messages: list[dict[str, str]] = (
            [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        )
        self._requests = self._blocks = self._tokens = 0
        self._last: ChatReply | None = None
        self._connection: Connection | None = None
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
        self._closed = True
        self._finalizer()

    def chat(
        self,
        message: str,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
    ) -> str:
        """Say something and get the answer; a refusal is an answer too, failures raise a `kala.errors.KalaError`."""
        connection = self._opened()
        asked = {"role": "user", "content": message}
        started = time.monotonic()
        reply = connection.ask(
            [*self._messages, asked], max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p
        )
        latency_ms = (time.monotonic() - started) * 1000
        self._count(reply)
        if reply.decision is None or reply.decision.outcome in REMEMBERED_OUTCOMES:
            self._messages += [asked, {"role": "assistant", "content": reply.text}]
        if (log := self._log()) is not None:
            log.write(connection.client, message, reply, latency_ms=latency_ms)
        return reply.text

    @property
    def last_reply(self) -> ChatReply | None:
        """The newest answer with its decision and receipt; None before the first."""
        return self._last

    @property
    def history(self) -> tuple[dict[str, str], ...]:
        """The messages that the next request will carry."""
        return tuple(dict(message) for message in self._messages)

    def execute_tool(
        self, name: str, **_arguments: Any
    ) -> Any:  # Any: each tool has its own arguments and result
        """Run a tool in the sandbox. This release has no tools service, so it always raises; it never pretends."""
        if not self.enable_tools:
            raise ToolsDisabled(
                f"tool {name!r}: this session was opened without tools; pass enable_tools=True"
            )
        raise UnimplementedError(f"tool {name!r}: the tools service comes with its own release")

    def list_tools(self) -> tuple[str, ...]:
        """The names of the tools that `execute_tool` can run: none in this release."""
        return ()

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
        if (log := self._log()) is not None:
            lines.append(f"  log               {log.path}")
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

    def _count(self, reply: ChatReply) -> None:
        self._last = reply
        self._requests += 1
        self._blocks += not reply.allowed
        self._tokens += reply.output_tokens if reply.allowed else 0

    def _log(self) -> SessionLog | None:
        if self._log_dir is None:
            return None
        from kala.core.session_log import SessionLog

        return SessionLog(self._log_dir, self.session_id)
