"""From the body of a request to the chat that it asks for, with the conversation that it continues."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from gateway.conversations.records import COMPLETED, INCOMPLETE, Json, Owner, StoredResponse
from gateway.conversations.store import PREVIOUS_NOT_FOUND
from gateway.responses import input_schema as schema
from gateway.responses.answering import Order
from gateway.responses.ids import ID_BYTES, ItemIds, is_response_id, response_id, response_of
from gateway.responses.items import Placed, kept, text_item
from gateway.responses.output import Frame
from gateway.responses.translate import translate
from kala.errors import InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.chat_runs import Asked, ChatRuns
    from gateway.responses.keeping import Keeper
    from gateway.responses.schema import ResponseRequest
    from gateway.truncation import Truncation
    from kala.inference.v1 import inference_pb2

PREVIOUS: Final = "previous_response_id"
MICROS: Final = 1_000_000

_TRUNCATIONS: Final[dict[str, Truncation]] = {"auto": "keep-system-and-tail", "disabled": "refuse"}


class ResponseIntake:
    """Reads requests."""

    def __init__(
        self,
        runs: ChatRuns,
        keeper: Keeper,
        *,
        max_conversation_bytes: int,
        new_id: Callable[[int], str] = secrets.token_hex,
    ) -> None:
        self._runs = runs
        self._keeper = keeper
        self._max_conversation_bytes = max_conversation_bytes
        self._new_id = new_id

    async def order(self, request: ResponseRequest, headers: Mapping[str, str], owner: Owner) -> Order:
        """Give what is to be answered, or raise InvalidArgumentError that names what cannot be."""
        name = response_id(self._new_id(ID_BYTES))
        ids = ItemIds(name)
        before = await self._before(request.previous_response_id, owner)
        items = await self._items(request, ids, owner)
        placed = [Placed(item, f"input[{index}]") for index, item in enumerate(items)]
        chat = translate(request, [*before, *placed])
        truncation = None if request.truncation is None else _TRUNCATIONS[request.truncation]
        try:
            asked = self._runs.ask(chat.chat, headers, truncation=truncation)
        except InvalidArgumentError as error:
            raise chat.located(error) from error
        self._check_size(asked, request)
        frame = Frame(name, self._keeper.now // MICROS, request, asked.action.model)
        return Order(frame, ids, asked, items, _calls_in(asked.action))

    async def _before(self, previous: str | None, owner: Owner) -> list[Placed]:
        """Give the items of the conversation that a request continues; refused turns are not told again."""
        if previous is None:
            return []
        if not is_response_id(previous):
            raise InvalidArgumentError(PREVIOUS, "is no response's id", reason=PREVIOUS_NOT_FOUND)
        try:
            turns = await asyncio.to_thread(
                self._keeper.store.conversation, owner, previous, self._keeper.now
            )
        except NotFoundError as error:
            raise InvalidArgumentError(PREVIOUS, error.message, reason=PREVIOUS_NOT_FOUND) from error
        _require_whole(turns[-1])
        return [
            Placed(item, PREVIOUS)
            for turn in turns
            if turn.status in {COMPLETED, INCOMPLETE} and not turn.is_refused
            for item in [*turn.items, *turn.output]
        ]

    async def _items(self, request: ResponseRequest, ids: ItemIds, owner: Owner) -> list[Json]:
        if request.input is None:
            return []
        if isinstance(request.input, str):
            return [text_item(request.input, ids)]
        return [
            await self._referred(item.id, f"input[{index}].id", owner)
            if isinstance(item, schema.ItemReference)
            else kept(item, ids)
            for index, item in enumerate(request.input)
        ]

    async def _referred(self, item_id: str, field: str, owner: Owner) -> Json:
        """Look an item of a stored response up."""
        name = response_of(item_id)
        stored = None
        if name is not None:
            stored = await asyncio.to_thread(self._keeper.store.find, owner, name, self._keeper.now)
        for item in [] if stored is None else [*stored.items, *stored.output]:
            if item["id"] == item_id:
                return dict(item)
        raise InvalidArgumentError(
            field, f"{item_id[:64]!r} names no item of a stored response; send the item itself"
        )

    def _check_size(self, asked: Asked, request: ResponseRequest) -> None:
        if asked.action.ByteSize() > self._max_conversation_bytes:
            raise InvalidArgumentError(
                PREVIOUS if request.previous_response_id else "input",
                f"makes a conversation of more than {self._max_conversation_bytes} bytes; begin a new one",
            )


def _require_whole(last: StoredResponse) -> None:
    if last.is_finished:
        return
    raise InvalidArgumentError(
        PREVIOUS,
        f"names a response that is still {last.status}; wait for its end",
        reason="PREVIOUS_RESPONSE_UNFINISHED",
    )


def _calls_in(action: inference_pb2.ChatAction) -> dict[str, tuple[str, str]]:
    messages: Sequence[inference_pb2.ChatMessage] = action.messages
    return {call.id: (call.name, call.arguments) for message in messages for call in message.tool_calls}
