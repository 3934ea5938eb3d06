"""The things on the host that probes try to reach."""

from __future__ import annotations

import os
import signal

from services.tools.sandbox.probes.bait import bait


async def test_a_canary_that_was_hit_is_known_at_once_and_an_unhurt_one_is_not() -> None:
    for _ in range(20):
        async with bait() as laid:
            assert laid.touched() == ""
            os.kill(laid.canary.pid, signal.SIGUSR1)
            # It has had no turn yet in which to die.
            assert laid.touched().startswith("a process of the host was ended: ")
