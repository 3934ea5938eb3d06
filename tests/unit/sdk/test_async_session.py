"""The asynchronous session against a scripted gateway: what the blocking one promises, and one turn at a time."""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from kala.core import connection as connection_module
from kala.core.async_session import AsyncUnifiedKALASession
from kala.core.lmstudio_adapter import LMStudioConfig
from kala.core.unified_session import UnifiedKALASession
from kala.errors import FailedPreconditionError, ToolsDisabled, UnavailableError
from tests.fakes.gateway import RECEIPT_ID, FakeGateway, completion, failure, stream

Use = Callable[[FakeGateway], FakeGateway]
WORKSPACE = "workspaces/0." + "c" * 32


def made() -> httpx.Response:
    return httpx.Response(200, json={"workspace": {"name": WORKSPACE}})


def ran(stdout: str) -> httpx.Response:
    data = base64.b64encode(stdout.encode()).decode()
    events = [
        {"output": {"stream": "OUTPUT_STREAM_STDOUT", "data": data}},
        {"exit": {"status": "RUN_STATUS_OK", "exit_code": 0}},
    ]
    content = "".join(json.dumps(event) + "\n" for event in events)
    return httpx.Response(200, content=content.encode(), headers={"x-kala-receipt": RECEIPT_ID})


def public(kind: type) -> dict[str, list[str]]:
    return {
        name: list(inspect.signature(value).parameters)
        for name, value in inspect.getmembers(kind, callable)
        if not name.startswith("_")
    }


def test_the_asynchronous_session_has_every_method_of_the_blocking_one() -> None:
    blocking, asynchronous = public(UnifiedKALASession), public(AsyncUnifiedKALASession)
    blocking["aclose"] = blocking.pop("close")
    assert asynchronous == blocking


async def test_a_conversation_is_remembered_counted_and_logged(use: Use, tmp_path: Path) -> None:
    gateway = use(FakeGateway([completion("A"), completion("No", outcome="REFUSE"), completion("B")]))
    config = LMStudioConfig(max_tokens=99)
    async with AsyncUnifiedKALASession(config, log_dir=tmp_path, system_prompt="Be brief.") as session:
        assert await session.chat("one") == "A"
        assert await session.chat("bad") == "No"
        assert await session.chat("two", max_new_tokens=7, temperature=0.0) == "B"
        stats = session.get_stats()
        assert (stats["requests_processed"], stats["ethics_blocks"], stats["tokens_generated"]) == (3, 1, 10)
        assert RECEIPT_ID in session.get_summary()
    assert [message["content"] for message in gateway.chats[-1]["messages"]] == [
        "Be brief.",
        "one",
        "A",
        "two",
    ]
    assert [chat["max_tokens"] for chat in gateway.chats] == [99, 99, 7]
    assert gateway.chats[-1]["temperature"] == 0.0
    log = tmp_path / f"session_{session.session_id}.jsonl"
    assert [json.loads(line)["outcome"] for line in log.read_text().splitlines()] == [
        "ALLOW",
        "REFUSE",
        "ALLOW",
    ]


async def test_turns_that_are_asked_for_at_once_follow_one_another(use: Use) -> None:
    gateway = use(FakeGateway([completion("A"), completion("B"), completion("C")]))
    async with AsyncUnifiedKALASession() as session:
        assert await asyncio.gather(*map(session.chat, ("one", "two", "three"))) == ["A", "B", "C"]
    assert [len(chat["messages"]) for chat in gateway.chats] == [1, 3, 5]


async def test_a_streamed_turn_is_remembered_when_it_was_read_to_its_end(use: Use) -> None:
    gateway = use(FakeGateway([stream("Hel", "lo."), stream("Half", " of it"), completion("B")]))
    async with AsyncUnifiedKALASession() as session:
        assert [piece async for piece in session.stream("one")] == ["Hel", "lo."]
        left = session.stream("two")
        assert await anext(left) == "Half"
        await left.aclose()
        await session.chat("three")
        assert session.get_stats()["requests_processed"] == 2
    assert [message["content"] for message in gateway.chats[-1]["messages"]] == ["one", "Hello.", "three"]


async def test_a_turn_inside_of_ones_own_stream_is_an_error_and_no_wait_for_ever(use: Use) -> None:
    use(FakeGateway([stream("Half", " of it"), completion("B")]))
    async with AsyncUnifiedKALASession() as session:
        reading = session.stream("one")
        async for _ in reading:
            with pytest.raises(FailedPreconditionError, match="aclose"):
                await session.chat("two")
            with pytest.raises(FailedPreconditionError, match="aclose"):
                await anext(session.stream("two"))
        assert await session.chat("three") == "B"


async def test_a_stream_that_nobody_holds_any_more_lets_the_next_turn_begin(use: Use) -> None:
    use(FakeGateway([stream("Half", " of it"), completion("B")]))
    async with AsyncUnifiedKALASession() as session:
        async for _ in session.stream("one"):
            break
        assert await session.chat("two") == "B"


async def test_tools_run_in_one_workspace_however_many_are_called_at_once(use: Use) -> None:
    gateway = use(FakeGateway([made(), ran("1"), ran("2")]))
    async with AsyncUnifiedKALASession(enable_tools=True) as session:
        results = await asyncio.gather(
            session.execute_tool("filesystem", operation="list"),
            session.execute_tool("filesystem", operation="list"),
        )
        assert sorted(result.output for result in results) == ["1", "2"]
    posts = [request.url.path for request in gateway.seen if request.method == "POST"]
    assert posts == ["/kala/v1/tools/workspaces", *["/kala/v1/tools/execute"] * 2]
    assert gateway.seen[-1].method == "DELETE"


async def test_without_tools_none_runs(use: Use) -> None:
    use(FakeGateway())
    async with AsyncUnifiedKALASession() as session:
        assert await session.list_tools() == ()
        with pytest.raises(ToolsDisabled):
            await session.execute_tool("shell", command="ls")


async def test_lm_studio_that_is_off_is_named_with_its_cure(use: Use) -> None:
    use(FakeGateway([failure(503, "backends_unavailable", "refused") for _ in range(3)]))
    async with AsyncUnifiedKALASession(LMStudioConfig()) as session:
        with pytest.raises(UnavailableError, match="Could not connect to LM Studio"):
            await session.chat("Hello!")


async def test_a_closed_session_says_so(use: Use) -> None:
    use(FakeGateway())
    async with AsyncUnifiedKALASession() as session:
        pass
    with pytest.raises(FailedPreconditionError, match="closed"):
        await session.chat("x")


async def test_a_session_that_is_given_up_while_it_opens_leaves_no_suite(
    use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    import contextlib
    import threading
    from collections.abc import Iterator

    use(FakeGateway())
    private = connection_module._private_client
    began, may_open, seen = threading.Event(), threading.Event(), []

    @contextlib.contextmanager
    def slow(wanted: object, environ: object) -> Iterator[object]:
        began.set()
        may_open.wait(10)
        with private(wanted, environ) as client:  # type: ignore[arg-type] # the test's own
            seen.append("opened")
            yield client
        seen.append("closed")

    monkeypatch.setattr(connection_module, "_private_client", slow)

    async def open_it() -> None:
        async with AsyncUnifiedKALASession():
            pass

    opening = asyncio.ensure_future(open_it())
    await asyncio.to_thread(began.wait, 10)
    opening.cancel()
    may_open.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert seen == ["opened", "closed"]
