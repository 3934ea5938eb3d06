"""Reads the body of a request to one endpoint; a malformed one of a known caller leaves a record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from gateway.destination import Destinations
from gateway.edge import Exchange
from gateway.gate import Gate
from gateway.keys import ApiKey
from gateway.ledger import Ledger
from gateway.strict_json import read_object
from kala.errors import InvalidArgumentError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Desk:
    """What every endpoint that takes texts works with."""

    gate: Gate
    ledger: Ledger
    destinations: Destinations
    max_body_bytes: int
    body_timeout_seconds: float
    may_spool: bool


@dataclass(frozen=True, slots=True)
class Intake:
    """The reading of one endpoint."""

    desk: Desk
    kind: str
    """Begins the type of the record."""
    route: str

    async def read(
        self,
        exchange: Exchange,
        key: ApiKey,
        parse: Callable[[dict[str, Any]], T],  # Any: JSON
    ) -> T:
        """Give what `parse` makes of the body; logs and raises its InvalidArgumentError."""
        body = b""
        try:
            body = await exchange.read_body(
                max_bytes=self.desk.max_body_bytes, timeout_seconds=self.desk.body_timeout_seconds
            )
            return parse(read_object(body))
        except InvalidArgumentError as error:
            await self.desk.gate.count(exchange, key)
            exchange.receipt = await self.desk.ledger.invalid(
                self.desk.gate.caller(key),
                kind=self.kind,
                rpc=self.route,
                error=error,
                body=body,
                request_id=exchange.request_id,
                trace_id=exchange.trace_id,
            )
            raise
