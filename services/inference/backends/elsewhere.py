"""Other addresses of a configured server, looked at when its own does not answer.

Seed 001 promises that `http://host.docker.internal:1234` also works outside of a container, and `localhost` inside.
Nobody configured these addresses, so nothing is sent to one before what answers there is known to be of the same kind,
and it is asked without the server's key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from services.inference.backend import BackendFailure
from services.inference.base_url import BaseUrl

log: Final = structlog.get_logger()

AWAY: Final = frozenset(
    {"CONNECTION_REFUSED", "CONNECT_TIMED_OUT", "UNREACHABLE", "DNS_FAILED", "LOOK_TIMED_OUT"}
)
"""Reasons for which nobody is at an address."""

Recognise = Callable[[BaseUrl], Awaitable[bool]]
"""Tells whether a server of the right kind answers there; raises BackendFailure when nobody does."""


class Elsewhere:
    """Where one server may be besides its own address, and whether it is there now."""

    def __init__(self, own: BaseUrl, others: Sequence[BaseUrl], recognise: Recognise) -> None:
        self._own = own
        self._others = list(others)
        self._recognise = recognise
        self._place = own

    @property
    def own(self) -> BaseUrl:
        """The configured address."""
        return self._own

    @property
    def place(self) -> BaseUrl:
        """Where it is to be asked now."""
        return self._place

    @property
    def is_away(self) -> bool:
        return self._place != self._own

    async def return_if_back(self) -> bool:
        """Go back to the configured address if the server answers there again."""
        if await self._is_there(self._own):
            self._go(self._own)
            return True
        return False

    async def find(self) -> bool:
        """Go to the first other address where such a server answers; False, and to its own, when there is none."""
        for place in tuple(self._others):
            if await self._is_there(place):
                self._go(place)
                return True
        self._go(self._own)
        return False

    def _go(self, place: BaseUrl) -> None:
        if place != self._place:
            log.info("backend_address", configured=str(self._own), used=str(place))
            self._place = place

    async def _is_there(self, place: BaseUrl) -> bool:
        try:
            return await self._recognise(place)
        except BackendFailure as failure:
            if failure.reason == "DNS_FAILED" and place in self._others:
                # A name of the container's network is known from the start or never; asking again only costs time.
                self._others.remove(place)
            return False
