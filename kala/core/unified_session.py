"""`UnifiedKALASession`: a conversation whose every turn is judged, answered by a local model, checked and logged."""

from __future__ import annotations

import threading
import time
import uuid
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from kala.core.conversation import Conversation, Message, WaitingTurn, question
from kala.errors import FailedPreconditionError, InvalidArgumentError, ToolsDisabled

if TYPE_CHECKING:
    from kala.core.connection import Connection
    from kala.core.inference import InferenceConfig
    from kala.core.lmstudio_adapter import LMStudioConfig
    from kala.core.session_tools import SessionTools
    from kala.rag import Chunk, RagAnswer
    from kala.replies import ChatReply
    from kala.session_log import SessionLog
    from kala.tool_replies import ToolResult


SESSIONS_PATH: Final = "/kala/v1/gateway/sessions"


class SessionBase:
    """What the blocking and the asynchronous session share: configuration, memory, counts, and what is to be closed."""

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
        connection: Connection | None = None,
        stored: bool | str = False,
    ) -> None:
        """`stored` lets the gateway keep the conversation, for `sessions/…` to be gone on with later, as its value then.

        `connection` is one that is open already and stays open; without it the session finds or starts a suite.
        """
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
        self._conversation = Conversation.begun(self.session_id, system_prompt)
        self._conversation.stored = stored if isinstance(stored, str) else ""
        self._stores = bool(stored)
        self._connection = connection
        self._tools: SessionTools | None = None
        self._closed = False
        # An event loop opens from several threads.
        self._opening = threading.RLock()
        self._stack = ExitStack()
        self._finalizer = weakref.finalize(self, self._stack.close)

    @property
    def last_reply(self) -> ChatReply | None:
        """The newest answer with its decision and receipt; None before the first."""
        return self._conversation.last

    @property
    def history(self) -> tuple[Message, ...]:
        """The messages that the next request will carry."""
        return tuple(dict(message) for message in self._conversation.messages)

    @property
    def stored_session(self) -> str:
        """Where the gateway stores the conversation, `sessions/…`; empty before the first turn, and where it does not."""
        return self._conversation.stored

    @property
    def waiting(self) -> WaitingTurn | None:
        """The newest turn, where calls of tools in it wait for a person; `resume` goes on with it."""
        return self._conversation.waiting

    def get_stats(self) -> dict[str, Any]:  # Any: a name and three counts
        """Count requests, those that were not allowed, and generated tokens."""
        return self._conversation.stats()

    def get_summary(self) -> str:
        """Say in a few lines what happened in this session and where it is proved."""
        connection, place = self._connection, "not opened"
        if connection is not None:
            place = f"{connection.client.target.url}{' (private)' if connection.is_private else ''}"
        return self._conversation.summary(place=place, log=None if self._log is None else str(self._log.path))

    def _open(self) -> Connection:
        with self._opening:
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

    def _open_tools(self, name: str = "") -> SessionTools:
        self._require_tools(name)
        connection = self._open()
        with self._opening:
            if self._tools is None:
                from kala.core.session_tools import SessionTools

                self._tools = self._stack.enter_context(
                    SessionTools(connection.client, shows_directory=connection.is_private)
                )
            return self._tools

    def _open_stored(self) -> str:
        """Name the stored session, and open a new one where there is to be one."""
        connection = self._open()
        with self._opening:
            if self._stores and not self._conversation.stored:
                made = connection.client.call("POST", SESSIONS_PATH, body={})
                self._conversation.stored = str(made["session"]["name"])
            return self._conversation.stored

    def _require_tools(self, name: str = "") -> None:
        if not self.enable_tools:
            raise ToolsDisabled(
                f"{f'tool {name!r}: ' if name else ''}this session was opened without tools; pass enable_tools=True"
            )

    def _write(self, message: str, reply: ChatReply, started: float) -> None:
        """Log one turn; `started` is by the monotonic clock."""
        if self._log is not None:
            latency_ms = (time.monotonic() - started) * 1000
            self._log.write(self._open().client, message, reply, latency_ms=latency_ms)

    def _end(self) -> None:
        try:
            if self._log is not None and self._connection is not None and not self._closed:
                # While the suite can still be asked for what it had only spooled.
                self._log.settle(self._connection.client)
        finally:
            self._closed = True
            self._finalizer()


class UnifiedKALASession(SessionBase):
    """One conversation; blocking, for one thread at a time.

    A client of the suite that KALA_URL names or that runs on this machine; else it starts a private one, which stops
    when the session closes. Close it, use it as a context manager, or let the interpreter's end do it.
    """

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session; stops the private suite, if one was started."""
        self._end()

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
        they did; while a call waits for a person, `waiting` names it and the turn is not remembered.
        """
        wishes = self._wishes(max_new_tokens, temperature, top_p, use_tools=use_tools)
        self._open_stored()
        turn = question(message)
        return self._turn(turn, message, wishes, self._conversation.with_turn(turn))

    def resume(self) -> str:
        """Go on with the turn that waits, after a person has decided about its calls.

        Approved calls run once, denied ones are told to the model. FailedPreconditionError where nothing waits or a call is
        not decided yet.
        """
        waiting = self._conversation.to_resume()
        tools = self._open_tools()
        tools.require_decided(waiting)
        wishes = {"workspace": tools.workspace(), "approvals": waiting.approvals}
        asked = self._conversation.with_waiting(waiting)
        return self._turn(waiting.messages, str(waiting.messages[0]["content"]), wishes, asked)

    def decide(self, approval: str, *, approve: bool, comment: str = "") -> None:
        """Give this key's word on a call that waits; PermissionDeniedError where the policy wants another person's."""
        self._open_tools().decide(approval, approve=approve, comment=comment)

    def stream(
        self,
        message: str,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        *,
        use_tools: bool = False,
    ) -> Iterator[str]:
        """As `chat`, piece by piece, each as soon as it has been checked; remembered when it was read to its end."""
        connection, turn, started = self._open(), question(message), time.monotonic()
        wishes = self._wishes(max_new_tokens, temperature, top_p, use_tools=use_tools)
        self._open_stored()
        asked = self._conversation.with_turn(turn)
        with (
            connection.in_words(),
            connection.client.stream(
                asked, **connection.wording(**wishes, stored=self._conversation.stored)
            ) as answer,
        ):
            yield from answer
        self._conversation.took(turn, answer.reply)
        self._write(message, answer.reply, started)

    def generate_rag_response(self, query: str, retrieved_chunks: Sequence[Chunk]) -> RagAnswer:
        """Answer from retrieved chunks, outside of the conversation; see `kala.rag`."""
        from kala.rag import MAX_TOKENS, TEMPERATURE, TRUNCATION, rag_answer, rag_messages

        connection, started = self._open(), time.monotonic()
        messages = rag_messages(query, retrieved_chunks)
        wording = connection.wording(max_new_tokens=MAX_TOKENS, temperature=TEMPERATURE)
        with connection.in_words():
            reply = connection.client.chat(messages, truncation=TRUNCATION, **wording)
        self._conversation.count(reply)
        self._write(query, reply, started)
        return rag_answer(reply, retrieved_chunks)

    def execute_tool(self, name: str, **arguments: Any) -> ToolResult:  # Any: each tool has its own arguments
        """Run a tool in the sandbox, judged and logged; `result.success`, `.output`, `.error`, `.ethics_approved`.

        A program that fails and a call that the laws or the policy refuse are results; arguments that are wrong and a
        suite that cannot run tools raise a `kala.errors.KalaError`. `approval="approvals/…"` repeats a call that a person
        has approved.
        """
        tools = self._open_tools(name)
        result = tools.execute(name, arguments)
        self._conversation.count_tool(result)
        if self._log is not None:
            self._log.write_tool(tools.client, name, arguments, result)
        return result

    def list_tools(self) -> tuple[str, ...]:
        """The names of the tools that `execute_tool` can run now; none in a session without tools."""
        return self._open_tools().names() if self.enable_tools else ()

    def _turn(
        self, turn: Sequence[Message], message: str, wishes: dict[str, Any], asked: Sequence[Message]
    ) -> str:
        connection, started = self._open(), time.monotonic()
        reply = connection.ask(asked, **wishes, stored=self._conversation.stored)
        self._conversation.took(turn, reply)
        self._write(message, reply, started)
        return reply.text

    def _wishes(
        self,
        max_new_tokens: int | None,
        temperature: float | None,
        top_p: float | None,
        *,
        use_tools: bool,
    ) -> dict[str, Any]:
        return {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "workspace": self._open_tools().workspace() if use_tools else None,
        }

    def forget(self) -> None:
        """Delete the stored conversation, where there is one."""
        if name := self._conversation.stored:
            self._open().client.call("DELETE", f"/kala/v1/gateway/{name}")


def _session_log(directory: Path, session_id: str) -> SessionLog:
    from kala.session_log import SessionLog

    return SessionLog(directory, session_id)
