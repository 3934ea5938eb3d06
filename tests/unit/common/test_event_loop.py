"""How a process's main coroutine ends, and what its exit status says."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from kala.errors import FailedPreconditionError
from services.common.event_loop import EXIT_ERROR, EXIT_SIGNALLED, run, wait_for_stop_signal


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_main_that_ends_well_gives_zero() -> None:
    async def main() -> None:
        await asyncio.sleep(0)

    assert run(main()) == 0


def test_an_error_is_one_line_even_when_its_message_has_several(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        raise FailedPreconditionError("laws.yaml:\n  was changed")

    assert run(main()) == EXIT_ERROR
    assert capsys.readouterr().err == "laws.yaml: was changed\n"


def test_a_bug_is_raised() -> None:
    async def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(main())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_and_nothing_else(number: int) -> None:
    after = []

    async def main() -> None:
        asyncio.get_running_loop().call_soon(send, number)
        await wait_for_stop_signal()
        await asyncio.sleep(0)
        after.append("drained")

    assert run(main()) == 0
    assert after == ["drained"]


def test_a_signal_after_the_wait_cancels_what_follows() -> None:
    closed = []

    async def main() -> None:
        asyncio.get_running_loop().call_soon(send, signal.SIGTERM)
        try:
            await wait_for_stop_signal()
            send(signal.SIGTERM)
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    assert run(main()) == EXIT_SIGNALLED
    assert closed == [True]


def test_a_signal_before_the_wait_cancels_the_start() -> None:
    async def main() -> None:
        send(signal.SIGTERM)
        await asyncio.Event().wait()

    assert run(main()) == EXIT_SIGNALLED


def test_a_stray_cancellation_is_a_bug() -> None:
    async def main() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run(main())
