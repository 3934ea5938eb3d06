"""UsageService: what each key used, for administrators; and who erases it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from gateway.core import Core
from gateway.edge import Exchange
from gateway.feature import Feature
from gateway.identity import Caller
from gateway.limits.usage import UsageBook, UsageRow
from gateway.page_tokens import PageTokens, page_size
from kala.audit.v1 import audit_pb2
from kala.errors import InvalidArgumentError
from kala.gateway.v1 import gateway_pb2 as pb

QUERY: Final = "/kala.gateway.v1.UsageService/QueryUsage"
STORE: Final = "gateway.usage"
_AFTER: Final = "\0"


class UsageService:
    """Serves the sums."""

    def __init__(self, book: UsageBook, tokens: PageTokens) -> None:
        self._book = book
        self._tokens = tokens

    async def query(
        self, request: pb.QueryUsageRequest, _caller: Caller, _exchange: Exchange
    ) -> pb.QueryUsageResponse:
        """Sum a window by key and model; what this gateway served until now is in it, what others did to the second."""
        size = page_size(request.page_size)
        if request.key and not request.key.startswith("keys/"):
            raise InvalidArgumentError("key", "must be keys/<id>; leave it out for all keys")
        start = _minute(request, "from") or 0
        end = _minute(request, "until")
        if end is not None and end < start:
            raise InvalidArgumentError("until", "must not be before `from`")
        query = f"{request.key}|{start}|{end}".encode()
        after = ("", "")
        if request.page_token:
            key, _, model = self._tokens.read(request.page_token, QUERY, query).decode().partition(_AFTER)
            after = key, model
        await self._book.write()
        rows = await asyncio.to_thread(
            lambda: self._book.store.query(
                tenant=None,
                key_id=request.key.removeprefix("keys/"),
                from_minute=start,
                until_minute=end,
                after=after,
                limit=size + 1,
            )
        )
        token = ""
        if len(rows) > size:
            last = rows[size - 1]
            token = self._tokens.write(QUERY, query, f"{last.key_id}{_AFTER}{last.model}".encode())
        return pb.QueryUsageResponse(rows=[_message(row) for row in rows[:size]], next_page_token=token)

    async def erase(self, subject: str, tenant: str) -> Sequence[audit_pb2.ErasedStore]:
        """Delete what a key used, where the subject is a key; of other persons nothing is kept here."""
        return [audit_pb2.ErasedStore(store=STORE, items=await self._book.erase(subject, tenant))]


async def open_usage(core: Core) -> Feature:
    """Bring usage to a gateway."""
    service = UsageService(
        core.desk.gate.limiter.book, PageTokens(core.pseudonyms, lambda: datetime.now(UTC))
    )
    return Feature(handlers={QUERY: service.query}, erasers={STORE: service.erase})


def _message(row: UsageRow) -> pb.UsageRow:
    return pb.UsageRow(
        key=f"keys/{row.key_id}",
        model=row.model,
        requests=row.used.requests,
        not_allowed=row.used.not_allowed,
        input_tokens=row.used.input_tokens,
        output_tokens=row.used.output_tokens,
        cost_micros=row.used.cost_micros,
    )


def _minute(request: pb.QueryUsageRequest, field: str) -> int | None:
    if not request.HasField(field):  # type: ignore[arg-type]  # "from" or "until"
        return None
    return int(getattr(request, field).seconds) // 60
