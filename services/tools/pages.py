"""Pages of the service's lists."""

from __future__ import annotations

from collections.abc import Callable

from services.common.page_tokens import SignedPageTokens


class PageTokens(SignedPageTokens):
    """The page tokens of tools."""

    def __init__(self, *, key: bytes, now: Callable[[], float]) -> None:
        super().__init__("tools", key=key, now=now)
