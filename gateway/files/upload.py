"""Reads an uploaded form into the store while it comes: a file, its purpose, when it expires, and whom it is about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from gateway.edge import Exchange
from gateway.files.model import PART_BYTES, checked_life, checked_name, checked_purpose
from gateway.files.multipart import Event, MultipartReader, PartBegun, PartData, PartEnded
from gateway.files.store import Draft, FileStore
from kala.errors import DeadlineExceededError, InvalidArgumentError

MAX_FIELD_BYTES: Final = 1024
"""Of a field that is no file: a purpose, a number, an identifier."""

MAX_PERSON_CHARS: Final = 256

FORM_BYTES: Final = 64 * 1024
"""Of a form besides its file: boundaries, heads and fields."""

LONGEST_SECONDS: Final = 900.0
"""For the whole body: 128 MiB on a line of 1.2 Mbit/s."""

_PURPOSE: Final = "purpose"
_ANCHOR: Final = "expires_after[anchor]"
_SECONDS: Final = "expires_after[seconds]"
_PERSONS: Final = ("safety_identifier", "user")
_FIELDS: Final = frozenset({_PURPOSE, _ANCHOR, _SECONDS, *_PERSONS})


@dataclass(frozen=True, slots=True)
class Form:
    """A form whose file lies in a draft."""

    draft: Draft
    name: str
    fields: Mapping[str, str]

    @property
    def purpose(self) -> str:
        """What the file is for; raises InvalidArgumentError."""
        return checked_purpose(self.fields.get(_PURPOSE))

    @property
    def life(self) -> timedelta | None:
        """How long the file is kept; raises InvalidArgumentError."""
        return checked_life(self.fields.get(_ANCHOR), self.fields.get(_SECONDS), self.purpose)


class Upload:
    """One upload, read as it comes."""

    def __init__(self, exchange: Exchange, store: FileStore, begin: Callable[[str], Draft]) -> None:
        """`begin` makes the draft, for the person that the form names, or for nobody."""
        self._exchange = exchange
        self._store = store
        self._begin_draft = begin
        self.draft: Draft | None = None
        """Set as soon as the file begins; its caller discards it when the upload fails."""
        self._fields: dict[str, str] = {}
        self._name = ""
        self._field: str | None = None
        self._value = bytearray()

    async def read(self, *, max_bytes: int, idle_seconds: float) -> Form:
        """Read the body to its end; raises InvalidArgumentError, or DeadlineExceededError."""
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                await self._read(max_bytes + FORM_BYTES, idle_seconds)
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"the file did not arrive within {LONGEST_SECONDS:g} s", reason="BODY_TIMEOUT"
            ) from error
        if self.draft is None:
            raise InvalidArgumentError("file", "is required: a part named file, with a file name")
        return Form(self.draft, self._name, self._fields)

    async def _read(self, max_bytes: int, idle_seconds: float) -> None:
        reader = MultipartReader(self._exchange.headers.get("content-type", ""))
        async for piece in self._exchange.body_parts(max_bytes=max_bytes, idle_seconds=idle_seconds):
            for event in reader.feed(piece):
                await self._take(event)
        reader.close()

    async def _take(self, event: Event) -> None:
        match event:
            case PartBegun(name="file"):
                await self._begin_file(event.filename or "")
            case PartBegun():
                self._begin_field(event.name)
            case PartData() if self._field is None:
                await self._keep(event.data)
            case PartData() if self._field is not None:
                self._value += event.data
                if len(self._value) > MAX_FIELD_BYTES:
                    raise InvalidArgumentError(
                        self._field, f"has more than {MAX_FIELD_BYTES} bytes; shorten it"
                    )
            case PartEnded() if self._field is not None:
                self._fields[self._field] = _text(self._field, bytes(self._value))

    async def _keep(self, data: bytes) -> None:
        draft = self.draft
        if draft is None:
            raise InvalidArgumentError("file", "has no beginning")
        if len(draft.pending) + len(data) < PART_BYTES:
            self._store.append(draft, data)  # only kept in memory
        else:
            await asyncio.to_thread(self._store.append, draft, data)

    async def _begin_file(self, name: str) -> None:
        if self.draft is not None:
            raise InvalidArgumentError("file", "is given twice; upload one file at a time")
        self._name, self._field = checked_name(name), None
        self.draft = await asyncio.to_thread(self._begin_draft, self._person())

    def _begin_field(self, name: str) -> None:
        self._value.clear()
        if name not in _FIELDS:
            known = ", ".join(("file", *sorted(_FIELDS)))
            raise InvalidArgumentError(name[:80], f"is not supported; known are {known}")
        if name in self._fields:
            raise InvalidArgumentError(name, "is given twice")
        if name in _PERSONS and self.draft is not None:
            raise InvalidArgumentError(name, "must come before the file, which is sealed for that person")
        self._field = name

    def _person(self) -> str:
        for field in _PERSONS:
            person = self._fields.get(field, "")
            if len(person) > MAX_PERSON_CHARS:
                raise InvalidArgumentError(
                    field, f"must have at most {MAX_PERSON_CHARS} characters; shorten it"
                )
            if person:
                return person
        return ""


def _text(field: str, value: bytes) -> str:
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(field, "is not valid UTF-8") from error
    if "\0" in text:
        raise InvalidArgumentError(field, "holds a NUL character; remove it")
    return text
