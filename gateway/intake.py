"""Reads the body of a request to one endpoint; a malformed one of a known caller leaves a record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from gateway.edge import Exchange
from gateway.gate import Gate
from gateway.keys import ApiKey
from gateway.ledger import Ledger
from gateway.strict_json import read_object
from kala.errors import InvalidArgumentError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Intake:
    """The reading of one endpoint."""

    gate: Gate
    ledger: Ledger
    kind: str
    """Begins the type of the record."""
    route: str
    max_body_bytes: int
    body_timeout_seconds: float

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
                max_bytes=self.max_body_bytes, timeout_seconds=self.body_timeout_seconds
            )
            return parse(read_object(body))
        except InvalidArgumentError as error:
            exchange.receipt = await self.ledger.invalid(
                self.gate.caller(key),
                kind=self.kind,
                rpc=self.route,
                error=error,
                body=body,
                request_id=exchange.request_id,
                trace_id=exchange.trace_id,
            )
            raise
