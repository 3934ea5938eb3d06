"""Scans code in processes of their own: a hostile file holds up its own scan, and nothing else of this service."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self, TypeVar

import structlog

from kala.errors import CancelledError, DeadlineExceededError, ResourceExhaustedError, UnavailableError
from services.common.deadlines import bounded
from services.tools.code.messages import MEMORY, MEMORY_BYTES, Answer, Question
from services.tools.code.model import EngineName, ScanOptions, ScanProblem, ScanReport, SourceFile
from services.tools.code.validate import FileScan, by_path, check, report_of
from services.tools.scan_process import ScanProcess, WorkerLostError
from services.tools.semgrep import Semgrep, joined
from services.tools.threads import in_thread

if TYPE_CHECKING:
    from types import TracebackType

T = TypeVar("T")

FILE_SECONDS: Final = 30.0
"""One file; ordinary code takes a second per few hundred kilobytes."""

CALL_SECONDS: Final = 300.0
"""All files of one call, its wait for a worker included."""

WAITING_PER_WORKER: Final = 8
"""Calls that may wait; more get RESOURCE_EXHAUSTED with a time to come back."""

WORKERS: Final = 1
"""A scan uses a whole core, and so may the code that runs meanwhile."""

_SHARE: Final = 0.2
_LEAST_RETRY_SECONDS: Final = 0.1
# The interpreter broke on the file, and would again.
_BROKE_ON_FILE: Final = frozenset({-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE})


class Scanning:
    """Has code scanned by workers; one per process."""

    def __init__(
        self,
        *,
        workers: int = WORKERS,
        memory_bytes: int = MEMORY_BYTES,
        file_seconds: float = FILE_SECONDS,
        call_seconds: float = CALL_SECONDS,
        semgrep: Semgrep | None = None,
    ) -> None:
        self._workers = workers
        self.semgrep = semgrep
        self.memory_bytes = memory_bytes
        self._file_seconds = file_seconds
        self._call_seconds = call_seconds
        self._places = asyncio.Semaphore(workers)
        self._taken = 0
        self._idle: list[ScanProcess] = []
        self._warming: set[asyncio.Task[None]] = set()
        self._usual_seconds = 1.0
        self._is_closed = False

    @property
    def pids(self) -> tuple[int, ...]:
        """The workers that wait for a call."""
        return tuple(each.pid for each in self._idle)

    async def warm(self) -> None:
        """Start the workers that are missing, so that the next calls need not wait for them to load."""
        while not self._is_closed and len(self._idle) < self._workers - min(self._taken, self._workers):
            worker = await ScanProcess.start(memory_bytes=self.memory_bytes)
            if not self.keep(worker):
                await worker.aclose()
                return

    async def aclose(self) -> None:
        """End the workers; what they scan ends with UnavailableError."""
        self._is_closed = True
        for task in tuple(self._warming):
            with suppress(OSError):
                await task
        while self._idle:
            await self._idle.pop().aclose()

    async def scan(self, files: Sequence[SourceFile], options: ScanOptions) -> ScanReport:
        """Scan files; a file that takes too long or too much is a problem of the report.

        Raises:
            InvalidArgumentError: what is out of limits.
            ResourceExhaustedError: too many calls wait.
            DeadlineExceededError: the caller's time, or that of one call, is over.
            UnavailableError: a worker died for no fault of a file.
        """
        check(files, options)
        async with self._lease(self._call_seconds) as lease:
            return await lease.scan(files, options)

    async def with_scan(
        self,
        work: Callable[[Callable[[Sequence[SourceFile]], ScanReport]], T],
        options: ScanOptions,
        *,
        within_seconds: float = CALL_SECONDS,
    ) -> T:
        """Do work in a thread that scans again and again, with these options and one worker; raises as `scan` does."""
        loop = asyncio.get_running_loop()
        async with self._lease(min(within_seconds, self._call_seconds)) as lease:

            def scan(files: Sequence[SourceFile]) -> ScanReport:
                check(files, options)
                return asyncio.run_coroutine_threadsafe(lease.scan(files, options), loop).result()

            running = asyncio.create_task(in_thread(work, scan))
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                # The thread ends at its next scan, not after all of them.
                lease.abandon()
                with suppress(Exception):
                    await running
                raise

    def _lease(self, seconds: float) -> AbstractAsyncContextManager[_Lease]:
        return _Lease(self, bounded(seconds), self._file_seconds)

    async def take_place(self, seconds: float) -> None:
        """Wait for one's turn, for a while."""
        if self._is_closed:
            raise UnavailableError("the tools service is closing", reason="SCANS_CLOSED")
        if self._taken >= self._workers * (1 + WAITING_PER_WORKER):
            raise ResourceExhaustedError(
                f"{self._taken} scans run or wait already, and no more may; try again shortly",
                reason="SCANS_WAITING",
                retry_after_seconds=max(_LEAST_RETRY_SECONDS, self._usual_seconds),
            )
        self._taken += 1
        try:
            async with asyncio.timeout(seconds):
                await self._places.acquire()
        except TimeoutError:
            self._taken -= 1
            raise DeadlineExceededError(
                f"other scans took all of the {seconds:.1f} s that this one had; try again",
                reason="SCAN_TIME",
            ) from None
        except BaseException:
            self._taken -= 1
            raise

    def give_place_back(self, seconds: float) -> None:
        """Let the next one in, and have a worker for it."""
        self._taken -= 1
        self._places.release()
        self._usual_seconds += _SHARE * (seconds - self._usual_seconds)
        if not self._is_closed and len(self._idle) < self._workers:
            task = asyncio.create_task(self._warm_again())
            self._warming.add(task)
            task.add_done_callback(self._warming.discard)

    async def _warm_again(self) -> None:
        try:
            await self.warm()
        except OSError as error:
            # The next call tries again, and hears of it.
            structlog.get_logger().warning("scan_worker_not_started", problem=str(error))

    async def take_worker(self) -> ScanProcess:
        """Give a worker that lives; it may be loading its engines still."""
        if not self._idle and self._warming:
            # One is being started: a second one would only slow it down.
            await asyncio.wait(tuple(self._warming))
        while self._idle:
            worker = self._idle.pop()
            if worker.is_alive:
                return worker
            await worker.aclose()
        if self._is_closed:
            raise UnavailableError("the tools service is closing", reason="SCANS_CLOSED")
        return await ScanProcess.start(memory_bytes=self.memory_bytes)

    def keep(self, worker: ScanProcess) -> bool:
        """Take a worker back; False where it is not needed any more."""
        if self._is_closed or not worker.is_alive or len(self._idle) >= self._workers:
            return False
        self._idle.append(worker)
        return True


class _Lease(AbstractAsyncContextManager["_Lease"]):
    """The right to one worker, which is replaced while the right lasts."""

    def __init__(self, scanning: Scanning, seconds: float, file_seconds: float) -> None:
        self._scanning = scanning
        self._began = time.monotonic()
        self._seconds = seconds
        self._file_seconds = file_seconds
        self._worker: ScanProcess | None = None
        self._is_abandoned = False
        self._batch: asyncio.Task[list[FileScan]] | None = None

    async def __aenter__(self) -> Self:
        await self._scanning.take_place(self._seconds)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        worker, self._worker = self._worker, None
        try:
            if worker is not None and not self._scanning.keep(worker):
                await worker.aclose()
        finally:
            self._scanning.give_place_back(time.monotonic() - self._began)

    def abandon(self) -> None:
        """End what is scanned now, and refuse what comes later."""
        self._is_abandoned = True
        if self._worker is not None:
            self._worker.kill()
        if self._batch is not None:
            self._batch.cancel()

    async def scan(self, files: Sequence[SourceFile], options: ScanOptions) -> ScanReport:
        """Scan files, one after the other, and as a batch by semgrep where it is there and asked for by name."""
        began = time.monotonic()
        semgrep = self._scanning.semgrep
        if semgrep is None or options.engines is None or EngineName.SEMGREP not in options.engines:
            scans = await self._scan_each(files, options)
        else:
            others = replace(options, engines=options.engines - {EngineName.SEMGREP})
            scans = await self._scan_each(files, others)
            batch = await self._scan_batch(semgrep, by_path(files), options)
            # One more than files when all were given up.
            batch += [replace(batch[0], findings=(), problems=())] * (len(scans) - len(batch))
            scans = [joined(scan, other, options) for scan, other in zip(scans, batch, strict=True)]
        return report_of(scans, options, elapsed_seconds=time.monotonic() - began)

    async def _scan_each(self, files: Sequence[SourceFile], options: ScanOptions) -> list[FileScan]:
        scans = [await self._scan(file, options) for file in by_path(files)]
        if not any(scan.rules_digest for scan in scans):
            # Every file was given up: an empty one says what would have looked at them.
            scans.append(await self._scan(SourceFile("empty", ""), options))
        return scans

    async def _scan_batch(
        self, semgrep: Semgrep, files: Sequence[SourceFile], options: ScanOptions
    ) -> list[FileScan]:
        left = self._left(files[0].path)
        if self._is_abandoned:
            raise CancelledError("the caller went away")
        self._batch = asyncio.create_task(semgrep.scan(files, options, within_seconds=left))
        try:
            return await self._batch
        except asyncio.CancelledError:
            if self._is_abandoned:
                raise CancelledError("the caller went away") from None
            raise
        finally:
            self._batch = None

    async def _scan(self, file: SourceFile, options: ScanOptions) -> FileScan:
        worker = await self._ready(file.path)
        left = self._left(file.path)
        try:
            async with asyncio.timeout(min(self._file_seconds, left)):
                answer = await worker.ask(Question(file, options))
        except TimeoutError:
            await self._drop()
            if left < self._file_seconds:
                raise self._too_late(file.path) from None
            return _given_up(
                file,
                f"was given up after {self._file_seconds:g} s, the limit for one file; split it or simplify it",
            )
        except WorkerLostError as error:
            await self._drop()
            return _lost(file, error.returncode, is_abandoned=self._is_abandoned)
        except BaseException:
            # It works on a question that nobody waits for any more.
            worker.kill()
            raise
        if answer.is_tired:
            await self._drop()
        return _scan_of(file, answer, self._scanning.memory_bytes)

    async def _ready(self, path: str) -> ScanProcess:
        if self._is_abandoned:
            raise CancelledError("the caller went away")
        if self._worker is None:
            try:
                self._worker = await self._scanning.take_worker()
                async with asyncio.timeout(self._left(path)):
                    await self._worker.ready()
            except TimeoutError:
                raise self._too_late(path) from None
            except (OSError, WorkerLostError) as error:
                await self._drop()
                raise UnavailableError(
                    "a scan worker could not be started; the service's log says why, try again",
                    reason="SCAN_WORKER_LOST",
                    retry_after_seconds=1.0,
                ) from error
        return self._worker

    async def _drop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.aclose()

    def _left(self, path: str) -> float:
        left = self._seconds - (time.monotonic() - self._began)
        if left <= 0:
            raise self._too_late(path)
        return left

    def _too_late(self, path: str) -> DeadlineExceededError:
        return DeadlineExceededError(
            f"{path}: the {self._seconds:.1f} s for this call were over before it was scanned; "
            "send fewer or smaller files, or allow more time",
            reason="SCAN_TIME",
        )


def _scan_of(file: SourceFile, answer: Answer, memory_bytes: int) -> FileScan:
    if answer.scan is not None:
        return answer.scan
    if answer.failure == MEMORY:
        return _given_up(
            file,
            f"needs more than the {memory_bytes // 1024**2} MiB of memory that a scan may have; split it or simplify it",
        )
    structlog.get_logger().error("scan_failed", place=answer.failure)
    return _given_up(
        file, f"broke the scanner ({answer.failure}), which is a bug of KALA; the other files were scanned"
    )


def _lost(file: SourceFile, returncode: int | None, *, is_abandoned: bool) -> FileScan:
    if is_abandoned:
        raise CancelledError("the caller went away")
    if returncode in _BROKE_ON_FILE:
        structlog.get_logger().error("scan_worker_broke", status=returncode)
        return _given_up(file, "broke the interpreter that read it; split it or simplify it")
    raise UnavailableError(
        f"the scan worker ended while it scanned {file.path}; try again",
        reason="SCAN_WORKER_LOST",
        retry_after_seconds=_LEAST_RETRY_SECONDS,
    )


def _given_up(file: SourceFile, problem: str) -> FileScan:
    return FileScan((), (ScanProblem(file.path, None, problem),))
