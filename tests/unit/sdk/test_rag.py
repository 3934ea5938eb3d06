"""Answers from retrieved chunks: numbered sources in, citations of real ones out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kala.client_async import AsyncKalaClient
from kala.core.async_session import AsyncUnifiedKALASession
from kala.core.unified_session import UnifiedKALASession
from kala.errors import InvalidArgumentError, KalaError
from kala.rag import Chunk, generate_rag_response, rag_answer, rag_messages
from kala.replies import ChatReply
from kala.target import Target
from tests.fakes.gateway import FakeGateway, completion

Use = Callable[[FakeGateway], FakeGateway]
CHUNKS: list[Chunk] = [
    "APT29 used WMI.",
    {"title": "Report 7", "content": "The sample beacons each hour.", "score": 0.7},
    {"page_content": "A third."},
]


async def test_chunks_become_numbered_sources_and_citations_name_their_places() -> None:
    gateway = FakeGateway([completion("It beacons hourly [2], by WMI [1][2]. See [9] and [0].")])
    async with AsyncKalaClient(Target("http://x", "k"), gateway.transport) as client:
        answer = await generate_rag_response(
            query="How often does it beacon?", retrieved_chunks=CHUNKS, provider="mlx", client=client
        )
    assert answer.citations == (1, 0)
    assert answer.reply.receipt is not None
    (request,) = gateway.seen
    assert request.headers["x-kala-provider"] == "mlx"
    assert request.headers["x-kala-truncation"] == "content-budget"
    system, user = gateway.chats[0]["messages"]
    assert "cite it, like [1]" in system["content"]
    assert user["content"].startswith("Question: How often does it beacon?")
    assert "[2] Report 7\nThe sample beacons each hour." in user["content"]
    assert gateway.chats[0]["temperature"] == 0.0


async def test_auto_leaves_the_choice_to_the_chain() -> None:
    gateway = FakeGateway([completion("x")])
    async with AsyncKalaClient(Target("http://x", "k"), gateway.transport) as client:
        await generate_rag_response("q", ["c"], "auto", client=client)
    assert "x-kala-provider" not in gateway.seen[0].headers


@pytest.mark.parametrize(
    ("query", "chunks", "names"),
    [
        (" ", ["a"], "query"),
        ("q", [], "retrieved_chunks"),
        ("q", ["a", {"title": "no text"}], r"retrieved_chunks\[1\]"),
        ("q", ["a", " "], r"retrieved_chunks\[1\]"),
    ],
)
def test_what_cannot_be_asked_is_named(query: str, chunks: list[Any], names: str) -> None:
    with pytest.raises(InvalidArgumentError, match=names):
        rag_messages(query, chunks)


def test_a_refusal_cites_nothing() -> None:
    refused = ChatReply.of(completion("No, by Law [1].", outcome="REFUSE").json())
    assert rag_answer(refused, CHUNKS).citations == ()


async def test_sessions_answer_from_chunks_outside_of_the_conversation(use: Use) -> None:
    gateway = use(FakeGateway([completion("A [1]."), completion("B [2]."), completion("C")]))
    with UnifiedKALASession() as session:
        assert session.generate_rag_response("q", CHUNKS).citations == (0,)
        assert (session.history, session.get_stats()["requests_processed"]) == ((), 1)
    async with AsyncUnifiedKALASession() as other:
        assert (await other.generate_rag_response("q", CHUNKS)).citations == (1,)
        await other.chat("Hi")
    assert len(gateway.chats[-1]["messages"]) == 1


async def test_without_a_suite_the_cure_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.delenv("KALA_URL", raising=False)
    monkeypatch.setenv("KALA_STATE", str(tmp_path_factory.mktemp("none")))
    with pytest.raises(KalaError, match="kala up"):
        await generate_rag_response("q", ["c"])
