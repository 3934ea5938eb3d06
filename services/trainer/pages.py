"""Pages of the service's lists, each bound to its list, its filters and its caller's tenant."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kala.common.v1.clearance_pb2 import Principal
from services.common.page_tokens import SignedPageTokens, page_size_of

DEFAULT_SIZE: Final = 100
MAX_SIZE: Final = 1_000


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list was asked for."""

    limit: int
    after: bytes
    """Position to continue after; empty at the beginning."""
    question: str


class PageTokens:
    """Makes and reads page tokens. The key is this process's own: a restart ends every list."""

    def __init__(
        self,
        *,
        key: bytes | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._tokens = SignedPageTokens("trainer", key=key or secrets.token_bytes(32), now=now)

    def page(self, rpc: str, principal: Principal, size: int, token: str, *filters: object) -> Page:
        """Read a request's page; raises InvalidArgumentError for a size or token that is not good."""
        limit = page_size_of(size, default=DEFAULT_SIZE, most=MAX_SIZE)
        question = repr((rpc, principal.tenant, *filters))
        return Page(limit, self._tokens.after(question, token) or b"", question)

    def next_token(self, page: Page, after: bytes) -> str:
        """The token that continues after this position; empty when there is none."""
        return self._tokens.make(page.question, after) if after else ""
