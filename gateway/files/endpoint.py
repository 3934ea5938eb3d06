"""`/v1/files`: upload, list, describe, read and delete what a tenant's keys may see."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

from gateway.edge import Exchange
from gateway.files.listing import read_page, written_page
from gateway.files.model import SCOPES, StoredFile, no_such_file
from gateway.files.upload import Upload
from kala.common.v1 import options_pb2
from kala.errors import FailedPreconditionError, InvalidArgumentError, KalaError

if TYPE_CHECKING:
    from gateway.files.store import Draft, FileStore
    from gateway.gate import Gate
    from gateway.keys import ApiKey
    from gateway.ledger import Ledger

ROUTE: Final = "HTTP {verb} /v1/files"
KIND: Final = "file"
PAGE: Final = 100

InUse = Callable[[str], str]
"""Names what still works on a file, or gives nothing.  Blocking."""


class Files:
    """Answers the requests about files; one per process."""

    def __init__(
        self,
        store: FileStore,
        *,
        gate: Gate,
        ledger: Ledger,
        in_use: InUse,
        max_bytes: int,
        idle_seconds: float,
    ) -> None:
        self._store = store
        self._gate = gate
        self._ledger = ledger
        self._in_use = in_use
        self._max_bytes = max_bytes
        self._idle_seconds = idle_seconds

    async def upload(self, exchange: Exchange) -> None:
        """Take a file."""
        key = await self._admit(exchange)
        if not {*SCOPES.values()} & {*key.scopes}:
            # Before any byte takes room: no purpose is open to this key.
            await self._gate.require(
                exchange, key, rpc=ROUTE.format(verb="POST"), scope=options_pb2.SCOPE_CHAT
            )
        begin = partial(self._begin, key)
        upload = Upload(exchange, self._store, begin)
        try:
            file = await self._receive(exchange, key, upload)
        except BaseException as error:  # also of a client that went away
            if upload.draft is not None:
                # Shielded: what was written is to be taken back although nobody waits for it.
                await asyncio.shield(asyncio.to_thread(self._store.discard, upload.draft))
            if isinstance(error, InvalidArgumentError | FailedPreconditionError):
                await self._record(exchange, key, error)
            raise
        await exchange.send_json(200, file.to_json())

    async def list_all(self, exchange: Exchange) -> None:
        """List the files of a tenant that the key's scopes cover."""
        key = await self._admit(exchange)
        page = read_page(exchange.query, default=PAGE, also=("order", "purpose"))
        visible = [purpose for purpose, scope in SCOPES.items() if scope in key.scopes]
        if (asked := page.filters.get("purpose")) is not None:
            visible = [asked] if asked in visible else []
        files = await asyncio.to_thread(
            self._store.list,
            key.tenant,
            purposes=visible,
            limit=page.limit + 1,
            after=page.after,
            newest_first=page.newest_first,
        )
        await exchange.send_json(200, written_page([file.to_json() for file in files], limit=page.limit))

    async def get(self, exchange: Exchange) -> None:
        """Describe a file."""
        file = await self._find(exchange, await self._admit(exchange))
        await exchange.send_json(200, file.to_json())

    async def content(self, exchange: Exchange) -> None:
        """Give a file's bytes, a part at a time."""
        file = await self._find(exchange, await self._admit(exchange))
        parts = self._store.read(file)
        # The first one first: a file that cannot be read is an error, and no answer that ends early.
        part = await asyncio.to_thread(_next, parts)
        await exchange.begin_stream("application/octet-stream")
        while part is not None:
            await exchange.send_part(part)
            part = await asyncio.to_thread(_next, parts)
        await exchange.end_stream()

    async def delete(self, exchange: Exchange) -> None:
        """Delete a file that nothing works on."""
        file = await self._find(exchange, await self._admit(exchange))
        if user := await asyncio.to_thread(self._in_use, file.id):
            raise FailedPreconditionError(
                f"{file.id} is read by {user}; cancel that first, or wait for its end", reason="FILE_IN_USE"
            )
        await asyncio.to_thread(self._store.delete, file.tenant, file.id)
        await exchange.send_json(200, {"id": file.id, "object": "file", "deleted": True})

    async def _admit(self, exchange: Exchange) -> ApiKey:
        # Each purpose has its own scope, so at first any good key will do.
        route = ROUTE.format(verb=exchange.method)
        return await self._gate.admit(exchange, rpc=route, scope=options_pb2.SCOPE_PUBLIC)

    def _begin(self, key: ApiKey, person: str) -> Draft:
        caller = self._gate.caller(key, person)
        return self._store.begin(tenant=key.tenant, owner=key.id, subject=caller.subject)

    async def _receive(self, exchange: Exchange, key: ApiKey, upload: Upload) -> StoredFile:
        form = await upload.read(max_bytes=self._max_bytes, idle_seconds=self._idle_seconds)
        purpose, life = form.purpose, form.life
        await self._gate.require(exchange, key, rpc=ROUTE.format(verb="POST"), scope=SCOPES[purpose])
        if not form.draft.size + len(form.draft.pending):
            raise InvalidArgumentError("file", "is empty; upload one with content")
        return await asyncio.to_thread(
            partial(self._store.finish, form.draft, purpose=purpose, name=form.name, life=life)
        )

    async def _find(self, exchange: Exchange, key: ApiKey) -> StoredFile:
        file_id = exchange.path_params["id"]
        file = await asyncio.to_thread(self._store.get, key.tenant, file_id)
        if SCOPES[file.purpose] not in key.scopes:
            raise no_such_file(file_id)
        return file

    async def _record(self, exchange: Exchange, key: ApiKey, error: KalaError) -> None:
        await self._gate.count(exchange, key)
        exchange.receipt = await self._ledger.invalid(
            self._gate.caller(key),
            kind=KIND,
            rpc=ROUTE.format(verb="POST"),
            error=error,
            body=b"",
            request_id=exchange.request_id,
            trace_id=exchange.trace_id,
        )


def _next(parts: Iterator[bytes]) -> bytes | None:
    return next(parts, None)
