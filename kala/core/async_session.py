"""`AsyncUnifiedKALASession`: the session for programs with an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, TypeVar

from kala.core.conversation import Message, question
from kala.core.unified_session import SessionBase
from kala.errors import FailedPreconditionError

if TYPE_CHECKING:
    from kala.client_async import AsyncKalaClient
    from kala.core.connection import Connection
    from kala.core.session_tools import SessionTools
    from kala.rag import Chunk, RagAnswer
    from kala.replies import ChatReply
    from kala.tool_replies import ToolResult

T = TypeVar("T")

_Reading: TypeAlias = tuple[asyncio.Task[Any] | None, Callable[[], object]]
"""The task that reads a stream, and the stream, as long as anybody holds it."""
_NOBODY: Final[_Reading] = (None, lambda: None)


class AsyncUnifiedKALASession(SessionBase):
    """One conversation, for one event loop; turns that are asked for at once are taken one after the other.

    A client of the suite that KALA_URL names or that runs on this machine; else it starts a private one, which stops
    when the session closes. Use it with `async with`, or `await session.aclose()`.
    """

    _lock: asyncio.Lock | None = None
    _client: AsyncKalaClient | None = None
    _reading: _Reading = _NOBODY

    async def __aenter__(self) -> Self:
        try:
            await self._opened()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the session; stops the private suite, if one was started."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()
        await _to_its_end(self._end)

    async def chat(
        self,
        message: str,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        *,
        use_tools: bool = False,
    ) -> str:
        """Say something and get the answer; see `UnifiedKALASession.chat`."""
        async with self._one_turn():
            wishes = await self._wishes(max_new_tokens, temperature, top_p, use_tools=use_tools)
            await _to_its_end(self._open_stored)
            turn = question(message)
            return await self._turn(turn, message, wishes, self._conversation.with_turn(turn))

    async def resume(self) -> str:
        """Go on with the turn that waits, after a person has decided; see `UnifiedKALASession.resume`."""
        async with self._one_turn():
            waiting = self._conversation.to_resume()
            tools = await self._opened_tools()
            await _to_its_end(lambda: tools.require_decided(waiting))
            wishes = {"workspace": await _to_its_end(tools.workspace), "approvals": waiting.approvals}
            asked = self._conversation.with_waiting(waiting)
            return await self._turn(waiting.messages, str(waiting.messages[0]["content"]), wishes, asked)

    async def decide(self, approval: str, *, approve: bool, comment: str = "") -> None:
        """Give this key's word on a call that waits; PermissionDeniedError where the policy wants another person's."""
        tools = await self._opened_tools()
        await _to_its_end(lambda: tools.decide(approval, approve=approve, comment=comment))

    def stream(
        self,
        message: str,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        *,
        use_tools: bool = False,
    ) -> AsyncGenerator[str, None]:
        """As `chat`, piece by piece, each as soon as it has been checked; remembered when it was read to its end.

        Until then, or until its `aclose()`, other tasks' turns wait; its own reader's is a FailedPreconditionError.
        """
        own: list[weakref.ref[AsyncGenerator[str, None]]] = []
        pieces = self._pieces(own, message, max_new_tokens, temperature, top_p, use_tools=use_tools)
        own.append(weakref.ref(pieces))
        return pieces

    async def _pieces(
        self,
        own: Sequence[weakref.ref[AsyncGenerator[str, None]]],
        message: str,
        max_new_tokens: int | None,
        temperature: float | None,
        top_p: float | None,
        *,
        use_tools: bool,
    ) -> AsyncGenerator[str, None]:
        async with self._one_turn():
            self._reading = (asyncio.current_task(), own[0])
            connection, client = await self._opened()
            turn, started = question(message), time.monotonic()
            wishes = await self._wishes(max_new_tokens, temperature, top_p, use_tools=use_tools)
            stored = await _to_its_end(self._open_stored)
            asked = self._conversation.with_turn(turn)
            with connection.in_words():
                wording = connection.wording(**wishes, stored=stored)
                async with client.stream(asked, **wording) as answer:
                    async for piece in answer:
                        yield piece
            self._conversation.took(turn, answer.reply)
            await _to_its_end(lambda: self._write(message, answer.reply, started))

    async def generate_rag_response(self, query: str, retrieved_chunks: Sequence[Chunk]) -> RagAnswer:
        """Answer from retrieved chunks, outside of the conversation; see `kala.rag`."""
        from kala.rag import MAX_TOKENS, TEMPERATURE, TRUNCATION, rag_answer, rag_messages

        messages = rag_messages(query, retrieved_chunks)
        connection, client = await self._opened()
        started = time.monotonic()
        wording = connection.wording(max_new_tokens=MAX_TOKENS, temperature=TEMPERATURE)
        with connection.in_words():
            reply = await client.chat(messages, truncation=TRUNCATION, **wording)
        self._conversation.count(reply)
        await _to_its_end(lambda: self._write(query, reply, started))
        return rag_answer(reply, retrieved_chunks)

    async def execute_tool(self, name: str, **arguments: Any) -> ToolResult:  # Any: each tool has its own
        """Run a tool in the sandbox, judged and logged; see `UnifiedKALASession.execute_tool`.

        A caller that is cancelled ends the run.
        """
        tools = await self._opened_tools(name)
        _, client = await self._opened()
        result = await client.run_tool(await _to_its_end(lambda: tools.action(name, arguments)))
        self._conversation.count_tool(result)
        if (log := self._log) is not None:
            await _to_its_end(lambda: log.write_tool(tools.client, name, arguments, result))
        return result

    async def forget(self) -> None:
        """Delete the stored conversation, where there is one."""
        _, client = await self._opened()
        if name := self._conversation.stored:
            await client.call("DELETE", f"/kala/v1/gateway/{name}")

    async def list_tools(self) -> tuple[str, ...]:
        """The names of the tools that `execute_tool` can run now; none in a session without tools."""
        if not self.enable_tools:
            return ()
        tools = await self._opened_tools()
        return await _to_its_end(tools.names)

    async def _turn(
        self, turn: Sequence[Message], message: str, wishes: dict[str, Any], asked: Sequence[Message]
    ) -> str:
        connection, client = await self._opened()
        started = time.monotonic()
        with connection.in_words():
            wording = connection.wording(**wishes, stored=self._conversation.stored)
            reply: ChatReply = await client.chat(asked, **wording)
        self._conversation.took(turn, reply)
        await _to_its_end(lambda: self._write(message, reply, started))
        return reply.text

    @contextlib.asynccontextmanager
    async def _one_turn(self) -> AsyncIterator[None]:
        if self._lock is None:
            self._lock = asyncio.Lock()
        reader, stream = self._reading
        if reader is not None and reader is asyncio.current_task() and stream() is not None:
            # It would wait for itself, for ever.
            raise FailedPreconditionError(
                "a stream of this session is still being read; read it to its end, or call its aclose(), before the next turn",
                reason="STREAM_OPEN",
            )
        async with self._lock:
            try:
                yield
            finally:
                self._reading = _NOBODY

    async def _opened(self) -> tuple[Connection, AsyncKalaClient]:
        connection = await _to_its_end(self._open)
        if self._client is None:
            self._client = connection.asynchronous()
        return connection, self._client

    async def _opened_tools(self, name: str = "") -> SessionTools:
        self._require_tools(name)
        return await _to_its_end(lambda: self._open_tools(name))

    async def _wishes(
        self,
        max_new_tokens: int | None,
        temperature: float | None,
        top_p: float | None,
        *,
        use_tools: bool,
    ) -> dict[str, Any]:
        workspace = None
        if use_tools:
            workspace = await _to_its_end((await self._opened_tools()).workspace)
        return {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "workspace": workspace,
        }


async def _to_its_end(function: Callable[[], T]) -> T:
    """Run what blocks in a thread, and to its end also when the caller is cancelled: what it opened must be closable."""
    running = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if not running.cancelled():
            # Looked at, so that nobody is warned of a failure that no longer matters.
            running.exception()
        raise
