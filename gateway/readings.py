"""Reading files and artifacts over the bridge: what a run or an upload left is untrusted, so it is checked before it leaves.

A reader takes a file part by part, so each part is read together with the end of what comes before it: no word passes
because a border goes through it.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from gateway.acts import Act, refusal_text
from gateway.guarded import RefusedError
from gateway.judge import EthicsClient
from gateway.ledger import Ledger
from gateway.output_check import check_texts
from gateway.output_texts import document_text, output_texts
from kala.common.v1 import decision_pb2
from kala.tools.v1 import tools_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

OVERLAP_BYTES: Final = 4_096
"""Longer than any phrase that a rule finds or a window that a classifier reads."""

Ask = Callable[["Message"], Awaitable["Message"]]
"""Makes the same call with another request."""

_READS: Final = (tools_pb2.ReadFileResponse, tools_pb2.GetArtifactResponse)
_CHECKED: Final = (*_READS, tools_pb2.ListFilesResponse, tools_pb2.ListRunsResponse)


class Readings:
    """Checks what is read; one per process."""

    def __init__(self, *, ethics: EthicsClient, ledger: Ledger) -> None:
        self._ethics = ethics
        self._ledger = ledger

    async def require_fit(self, act: Act, request: Message, response: Message, ask: Ask) -> None:
        """Raise RefusedError, with a record, when what is read must not leave; other answers pass unread."""
        if not isinstance(response, _CHECKED):
            return
        said = output_texts([response])
        texts = dict(said.texts)
        if isinstance(response, _READS) and response.data:
            texts["data"] = document_text(await _before(request, ask) + response.data)
        # Nobody decided about a reading: the id only tells its check from others.
        decision = await check_texts(self._ethics, act, secrets.token_hex(16), texts, channel=said.channel)
        if decision.outcome != decision_pb2.OUTCOME_ALLOW:
            receipt = await self._ledger.refused(act, decision, refusal_text(decision))
            raise RefusedError(decision, receipt)


async def _before(request: Message, ask: Ask) -> bytes:
    """Give the end of what stands before the part that is asked for."""
    if (
        not isinstance(request, tools_pb2.ReadFileRequest | tools_pb2.GetArtifactRequest)
        or not request.offset
    ):
        return b""
    earlier = type(request).FromString(request.SerializeToString())
    earlier.offset = max(0, request.offset - OVERLAP_BYTES)
    earlier.max_bytes = request.offset - earlier.offset
    response = await ask(earlier)
    return response.data if isinstance(response, _READS) else b""
