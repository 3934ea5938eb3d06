"""The launcher's one loop: messages, sandboxes that become ready or end, and the watchdog's ticks."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from services.tools.sandbox.cgroup import Groups
from services.tools.sandbox.launcher.plan import Planner, Shape
from services.tools.sandbox.launcher.pool import Pool
from services.tools.sandbox.launcher.protocol import (
    ClosedError,
    CrowdedError,
    Message,
    limits_from_message,
    receive,
    send,
    usage_to_message,
)
from services.tools.sandbox.launcher.slot import Slot, Stage
from services.tools.sandbox.launcher.verdict import Verdict
from services.tools.sandbox.model import Language, Limits, Status
from services.tools.sandbox.survivors import children

TICK_SECONDS: Final = 0.025
_SAMPLE_SECONDS: Final = 1.0
# A sandbox that does not stand, or whose service does not send the code, after so long is ended.
_SETUP_SECONDS: Final = 30.0
_EVENTS: Final = 64
# The watchdog takes at most this share of the time.
_WATCH_SHARE: Final = 4.0


class Launcher:
    """Owns every sandbox of one service; single-threaded."""

    def __init__(
        self,
        channel: socket.socket,
        planner: Planner,
        pool: Pool,
        *,
        clock: Callable[[], float] = time.monotonic,
        groups: Groups | None = None,
    ) -> None:
        self._channel = channel
        self._planner = planner
        self._pool = pool
        self._clock = clock
        self._groups = groups
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._slots: set[Slot] = set()
        self._runs: dict[int, Slot] = {}
        # Starts that wait for a sandbox of theirs.
        self._waiting: dict[Slot, tuple[int, Limits]] = {}
        self._outbox: deque[tuple[Message, Sequence[int]]] = deque()
        self._open = True
        self._next_tick = 0.0
        self._told_parked: dict[str, int] = {}
        channel.setblocking(False)
        self._listen(channel.fileno(), self._messages)

    def run(self) -> None:
        """Serve until the service is gone; then end everything."""
        try:
            self._send({"op": "ready", "cgroup": self._groups is not None})
            self._refill()
            while self._open:
                self._step()
        finally:
            self._end_everything()

    def _step(self) -> None:
        for descriptor, _ in self._poll.poll(self._patience(), _EVENTS):
            handler = self._handlers.get(descriptor)
            if handler is not None:
                handler()
        self._flush()
        if self._clock() >= self._next_tick:
            self._tick()
        self._refill()
        self._tell_parked()

    def _tell_parked(self) -> None:
        """Say how many sandboxes wait ready, when that changed."""
        slots = self._pool.count()
        if slots != self._told_parked:
            self._told_parked = slots
            self._send({"op": "parked", "slots": slots})

    def _patience(self) -> float:
        """Give the seconds to the next tick; -1 when only an event can bring work."""
        if self._slots - self._pool.parked or self._outbox:
            return max(0.0, self._next_tick - self._clock())
        return self._pool.patience(self._clock())

    # Messages

    def _messages(self) -> None:
        try:
            while self._open:
                message, descriptors = receive(self._channel)
                for descriptor in descriptors:
                    os.close(descriptor)
                self._obey(message)
        except BlockingIOError:
            pass
        except ClosedError:
            self._open = False

    def _obey(self, message: Message) -> None:
        operation, run = message["op"], int(message["id"])
        if operation == "start":
            shape = Shape(
                Language(message["language"]), int(message["disk_bytes"]), message["host_directory"]
            )
            self._start(run, shape, limits_from_message(message["limits"]))
        elif operation == "go" and run in self._runs:
            self._runs[run].begin()
        elif operation == "kill":
            self._kill(run, Verdict(Status(message["status"]), message["reason"], signal=9))

    def _send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        self._outbox.append((message, descriptors))
        self._flush()

    def _flush(self) -> None:
        try:
            while self._outbox:
                message, descriptors = self._outbox[0]
                try:
                    send(self._channel, message, descriptors)
                except CrowdedError:
                    self._outbox[0] = (self._not_given(int(message["id"])), ())
                else:
                    self._outbox.popleft()
                for descriptor in descriptors:
                    os.close(descriptor)
        except BlockingIOError:
            pass
        except ClosedError:
            self._open = False

    # Runs

    def _start(self, run: int, shape: Shape, limits: Limits) -> None:
        slot = self._pool.take(shape)
        if slot is not None:
            slot.warm = True
            self._give(slot, run, limits)
            return
        # One that is on its way to the pool comes sooner than a new one.
        slot = self._pool.claim(shape)
        try:
            slot = slot or self._make(shape)
        except OSError as error:
            self._failed(run, f"the sandbox could not be started: {error}")
            return
        self._waiting[slot] = (run, limits)

    def _give(self, slot: Slot, run: int, limits: Limits) -> None:
        try:
            descriptors = slot.give(run, limits)
            # The service's own; this process keeps its own of the last two.
            theirs = [os.dup(descriptor) for descriptor in descriptors[4:]]
        except OSError as error:
            slot.kill()
            self._failed(run, f"a limit could not be put on the sandbox: {error}")
            return
        ends = slot.ends
        ends.stdin = ends.stdout = ends.stderr = ends.code = -1
        self._runs[run] = slot
        self._send({"op": "started", "id": run, "warm": slot.warm}, (*descriptors[:4], *theirs))

    def _failed(self, run: int, reason: str) -> None:
        self._send({"op": "failed", "id": run, "reason": reason})

    def _not_given(self, run: int) -> Message:
        """End a sandbox whose descriptors cannot be handed over, and none but it; give what to say of it."""
        slot = self._runs.pop(run, None)
        if slot is not None:
            slot.kill()
        reason = "too many descriptors are on their way through sockets on this machine; try again shortly"
        return {"op": "failed", "id": run, "reason": reason}

    def _kill(self, run: int, verdict: Verdict) -> None:
        if run in self._runs:
            self._runs[run].kill(verdict)
        for slot, (waiting, _) in self._waiting.items():
            if waiting == run:
                slot.kill(verdict)

    # Sandboxes

    def _make(self, shape: Shape) -> Slot:
        slot = Slot(shape, self._planner(shape), clock=self._clock, groups=self._groups)
        self._slots.add(slot)
        self._listen(slot.ends.stdout, partial(self._look_ready, slot))
        self._listen(slot.outer, partial(self._look_ended, slot, slot.outer))
        self._schedule()
        return slot

    def _look_ready(self, slot: Slot) -> None:
        self._forget(slot.ends.stdout)
        try:
            slot.look_ready()
        except OSError as error:
            self._spoil(slot, error)
            return
        self._listen(slot.first, partial(self._look_ended, slot, slot.first))
        if slot in self._waiting:
            self._give(slot, *self._waiting.pop(slot))
        else:
            self._pool.park(slot)

    def _spoil(self, slot: Slot, error: OSError) -> None:
        """End a sandbox that does not stand."""
        if slot.first >= 0:
            self._listen(slot.first, partial(self._look_ended, slot, slot.first))
        slot.kill(Verdict(Status.SETUP_FAILED, str(error)))

    def _look_ended(self, slot: Slot, descriptor: int) -> None:
        """One of the two that mark a sandbox's end is over; both must be."""
        self._forget(descriptor)
        if slot.outer in self._handlers or slot.first in self._handlers:
            if descriptor == slot.outer:
                # What the first process left when its parent ended dies with it.
                slot.kill()
            return
        text = slot.error_text() if slot.stage is Stage.STARTING else ""
        verdict, usage = slot.finish()
        stood = slot.first >= 0
        self._drop(slot)
        if not stood:
            self._end_orphans()
        if slot.run is not None:
            self._runs.pop(slot.run, None)
            self._send({"op": "ended", "id": slot.run, "usage": usage_to_message(usage), **_told(verdict)})
        elif slot in self._waiting:
            run, _ = self._waiting.pop(slot)
            self._failed(run, text or verdict.reason)
        else:
            self._pool.lost(slot, self._clock())

    def _drop(self, slot: Slot) -> None:
        self._forget(slot.ends.stdout)
        self._slots.discard(slot)
        slot.close()

    def _refill(self) -> None:
        busy = bool(self._runs or self._waiting)
        while (shape := self._pool.wanted(self._clock(), busy=busy)) is not None:
            try:
                self._pool.coming(self._make(shape))
            except OSError:
                self._pool.failed(self._clock())

    # Time

    def _schedule(self) -> None:
        self._next_tick = min(self._next_tick, self._clock() + TICK_SECONDS)

    def _tick(self) -> None:
        began = self._clock()
        for slot in tuple(self._slots - self._pool.parked):
            if slot.stage is Stage.RUNNING and slot.began:
                slot.watch()
                if began - slot.sampled_at >= _SAMPLE_SECONDS:
                    slot.sampled_at = began
                    self._send({"op": "sample", "id": slot.run, "usage": usage_to_message(slot.usage())})
            elif began - slot.expected_since >= _SETUP_SECONDS and not slot.began:
                slot.kill(Verdict(Status.SETUP_FAILED, f"was not set up within {_SETUP_SECONDS:g} s"))
        now = self._clock()
        self._next_tick = now + max(TICK_SECONDS, (now - began) * _WATCH_SHARE)

    # Descriptors

    def _listen(self, descriptor: int, handler: Callable[[], None]) -> None:
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, select.EPOLLIN)

    def _forget(self, descriptor: int) -> None:
        if self._handlers.pop(descriptor, None) is not None:
            with suppress(OSError):
                self._poll.unregister(descriptor)

    def _end_everything(self) -> None:
        for slot in self._slots:
            slot.kill()
        for slot in self._slots:
            for descriptor in (slot.first, slot.outer):
                if descriptor >= 0:
                    select.select([descriptor], [], [], _SETUP_SECONDS)
            slot.finish()
            slot.close()
        self._slots.clear()
        self._end_orphans()

    def _end_orphans(self) -> None:
        """End what a sandbox that died while it was set up left behind.

        For a moment bubblewrap's child waits for its parent without having asked to die with it; then it comes here.
        """
        known = {pid for slot in self._slots for pid in slot.pids}
        for pid in children(os.getpid()) - known:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _told(verdict: Verdict) -> Message:
    return {
        "status": verdict.status.value,
        "reason": verdict.reason,
        "exit_code": verdict.exit_code,
        "signal": verdict.signal,
    }
