"""Blocking work beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function in a thread and wait for its end, also when cancelled meanwhile; the cancellation follows then.

    So nothing that the function uses, a descriptor above all, is closed under it.
    """
    work = asyncio.get_running_loop().run_in_executor(None, lambda: function(*args, **kwargs))
    cancellation: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is not None:
        # Looked at, so that its error is not reported as forgotten.
        work.exception()
        raise cancellation
    return work.result()
