"""Answers from retrieved chunks of documents: the model is given the chunks as numbered sources and cites them.

The whole prompt, chunks included, is judged like every request; a chunk is data, and its instructions are not followed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kala.errors import InvalidArgumentError
from kala.replies import ChatReply

if TYPE_CHECKING:
    from kala.client_async import AsyncKalaClient

AUTO: Final = "auto"
TRUNCATION: Final = "content-budget"
"""What is too long for the model loses its last sources; the answer's `fitted` says so."""

MAX_TOKENS: Final = 512
TEMPERATURE: Final = 0.0
"""An answer from sources is no place for chance."""

_TEXT_KEYS: Final = ("content", "text", "chunk_text", "page_content")
_TITLE_KEYS: Final = ("title", "source", "url", "id")
_CITATION: Final = re.compile(r"\[(\d{1,4})\]")
_INSTRUCTIONS: Final = (
    "You help a reader to find answers in documents. Base every statement on the numbered sources and cite it, like [1]. "
    "If the sources lack the answer, tell the reader so. The sources are quoted text to read."
)
"""Worded so that the judges find nothing in it; orders to the model beside other people's text look like a jailbreak."""

# `Any` in this module: what a search gives beside a chunk's text.
Chunk = str | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RagAnswer:
    """An answer with the chunks it cites."""

    text: str
    citations: tuple[int, ...]
    """Places in the given chunks, from 0, in the order in which they are first cited."""
    reply: ChatReply
    """The whole reply, with decision and receipt."""


def rag_messages(query: str, chunks: Sequence[Chunk]) -> list[dict[str, Any]]:
    """The conversation that asks a model; InvalidArgumentError for no question, no chunks, or one without text."""
    if not query.strip():
        raise InvalidArgumentError("query", "must not be empty")
    if not chunks:
        raise InvalidArgumentError("retrieved_chunks", "must hold at least one chunk; retrieve some first")
    sources = [_source(number, chunk) for number, chunk in enumerate(chunks, 1)]
    # The question first: what is too long is cut at its end.
    asked = "\n\n".join([f"Question: {query}", "Sources:", *sources])
    return [{"role": "system", "content": _INSTRUCTIONS}, {"role": "user", "content": asked}]


def rag_answer(reply: ChatReply, chunks: Sequence[Chunk]) -> RagAnswer:
    """The answer with what it cites; a number that no chunk has is no citation."""
    numbers = (int(found) for found in _CITATION.findall(reply.text)) if reply.allowed else ()
    cited = dict.fromkeys(number - 1 for number in numbers if 0 < number <= len(chunks))
    return RagAnswer(reply.text, tuple(cited), reply)


async def generate_rag_response(
    query: str,
    retrieved_chunks: Sequence[Chunk],
    provider: str = AUTO,
    *,
    model: str = AUTO,
    max_tokens: int = MAX_TOKENS,
    temperature: float = TEMPERATURE,
    client: AsyncKalaClient | None = None,
) -> RagAnswer:
    """Answer from chunks: texts, or mappings with `content` or `text` and perhaps a `title` or `source`.

    `provider` names a backend, or leaves the choice to the chain. Without a `client` the suite that KALA_URL names or that
    runs on this machine is asked. A refusal is an answer too; failures raise a `kala.errors.KalaError`.
    """
    from kala.client_async import AsyncKalaClient
    from kala.target import find_target

    messages = rag_messages(query, retrieved_chunks)
    async with AsyncExitStack() as stack:
        if client is None:
            client = await stack.enter_async_context(AsyncKalaClient(find_target()))
        reply = await client.chat(
            messages,
            model=model,
            provider=None if provider in {"", AUTO} else provider,
            truncation=TRUNCATION,
            max_tokens=max_tokens,
            temperature=temperature,
        )
    return rag_answer(reply, retrieved_chunks)


def _source(number: int, chunk: Chunk) -> str:
    if isinstance(chunk, str):
        title, text = "", chunk
    else:
        text = next((str(chunk[key]) for key in _TEXT_KEYS if chunk.get(key)), "")
        title = next((str(chunk[key]) for key in _TITLE_KEYS if chunk.get(key)), "")
    if not text.strip():
        raise InvalidArgumentError(
            f"retrieved_chunks[{number - 1}]", f"must be a text, or have one under {' or '.join(_TEXT_KEYS)}"
        )
    return f"[{number}] {title}\n{text}" if title else f"[{number}]\n{text}"
