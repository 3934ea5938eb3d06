"""Judge texts without a service: processes of this machine, one a core, that are fed lines and answer them.

`python -m services.ethics.offline` is the judge; nothing of it is imported here. A process that dies takes at most one
line with it, which is answered with an error and never with an outcome.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from kala.errors import FailedPreconditionError
from kala.ethics.lanes import MAX_LINE_BYTES, Line, Verdict, failure

MODULE: Final = "services.ethics.offline"
EXIT_CANNOT_START: Final = 2
"""The process could not start, and its last line says why; another one could not either."""

MAX_DEATHS: Final = 3
"""Processes that die one after the other without an answer in between; then the machine is at fault, not the lines."""

ENDING_SECONDS: Final = 5.0
"""A process whose input has ended has at most one text to judge; it is nobody's any more."""

MAX_SAID_BYTES: Final = 64 * 1024
"""What a process says to people is a few lines; a traceback of any depth fits."""


@dataclass(frozen=True, slots=True)
class Offline:
    """By which constitution the processes judge; `constitution` and `trust` None choose what `offline` chooses."""

    constitution: Path | None = None
    trust: str | None = None
    trusted_keys: tuple[Path, ...] = ()
    threshold: int | None = None

    @property
    def arguments(self) -> list[str]:
        """The flags of `python -m services.ethics.offline` that say so."""
        flags = [] if self.constitution is None else ["--constitution", str(self.constitution)]
        flags += [] if self.trust is None else ["--trust", self.trust]
        for path in self.trusted_keys:
            flags += ["--trusted-key", str(path)]
        return flags + ([] if self.threshold is None else ["--threshold", str(self.threshold)])


def cores() -> int:
    """How many processes can judge at once on this machine."""
    affinity = getattr(os, "sched_getaffinity", None)
    return os.cpu_count() or 1 if affinity is None else len(affinity(0))


class Worker:
    """One judging process as a lane; it is started by its first lines, and again when it dies."""

    def __init__(
        self,
        offline: Offline,
        *,
        say: Callable[[str], None],
        stage: str = "request",
        explain: bool = False,
        command: Sequence[str] | None = None,
    ) -> None:
        """`say` is told line by line what the process has to say to people; `command` is for tests."""
        flags = ["--stage", stage, "--explain" if explain else "--brief"]
        self._command = [*(command or (sys.executable, "-m", MODULE)), *offline.arguments, *flags]
        self._say = say
        self._process: _Process | None = None
        self._deaths = 0

    @property
    def is_open(self) -> bool:
        """Whether it may still be able to judge."""
        return self._deaths < MAX_DEATHS

    def ask(self, lines: Sequence[Line]) -> list[Verdict]:
        """One verdict or error per line; FailedPreconditionError when no such process can start here."""
        verdicts: list[Verdict] = []
        while len(verdicts) < len(lines):
            rest = lines[len(verdicts) :]
            if rest[0].data is None:
                verdicts.append(failure(f"must be at most {MAX_LINE_BYTES} bytes", "line"))
            elif not self.is_open:
                verdicts.append(failure(f"{MAX_DEATHS} processes that judge ended one after the other"))
            else:
                verdicts += self._ask_process(list(takewhile(lambda line: line.data is not None, rest)))
        return verdicts

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.end()
            self._relay(process)

    def _ask_process(self, lines: Sequence[Line]) -> list[Verdict]:
        """The answers that one process gives: all of them, or those before its death and an error for the next."""
        is_new = self._process is None
        process = self._process = self._process or _Process(self._command)
        process.write(lines)
        verdicts: list[Verdict] = []
        for line in lines:
            verdict = process.read()
            if verdict is None:
                return [*verdicts, self._bury(process, line)]
            if verdict.get("id") != _id_of(line) and not (verdict.get("error") and verdict.get("id") is None):
                # Its answers no longer belong to its lines, so nothing that it says can be used.
                process.kill()
                return [*verdicts, self._bury(process, line)]
            verdicts.append(verdict)
            self._deaths = 0
        if is_new:
            self._relay(process)
        return verdicts

    def _bury(self, process: _Process, line: Line) -> Verdict:
        """What to say of the line at which the process ended."""
        self._process = None
        status = process.end()
        last = self._relay(process)
        if status == EXIT_CANNOT_START:
            raise FailedPreconditionError(last or f"{' '.join(self._command)} cannot start")
        self._deaths += 1
        problem = f"the process that judged it ended with status {status}{': ' if last else ''}{last}"
        return failure(problem, line_id=_id_of(line))

    def _relay(self, process: _Process) -> str:
        """Pass on what the process said to people since the last time, but for the last line of one that failed."""
        said = process.said()
        last = said.pop() if said and process.failed else ""
        for text in said:
            self._say(text)
        return last


class _Process:
    """A judging process that runs."""

    def __init__(self, command: Sequence[str]) -> None:
        self._spoken = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._heard = 0
        self._popen = subprocess.Popen(  # noqa: S603 - this interpreter and our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._spoken
        )
        # They are there: it was started with pipes.
        self._stdin, self._stdout = cast("BinaryIO", self._popen.stdin), cast("BinaryIO", self._popen.stdout)

    @property
    def failed(self) -> bool:
        """Whether it ended by itself, and not well."""
        return bool(self._popen.returncode)

    def write(self, lines: Sequence[Line]) -> None:
        """Hand it the lines; of one that has ended, `read` tells."""
        with suppress(BrokenPipeError):
            for line in lines:
                self._stdin.write((line.data or b"").rstrip(b"\r\n") + b"\n")
            self._stdin.flush()

    def read(self) -> Verdict | None:
        """The next answer; None when there will be none."""
        answered = self._stdout.readline()
        if not answered.endswith(b"\n"):
            return None
        try:
            verdict = json.loads(answered)
        except ValueError:
            return None
        return verdict if isinstance(verdict, dict) else None

    def kill(self) -> None:
        """Make it end now."""
        self._popen.kill()

    def end(self) -> int:
        """Let it end, and make it end when it does not; returns its status."""
        with suppress(BrokenPipeError):
            self._stdin.close()
        try:
            status = self._popen.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            status = self._popen.wait()
        self._stdout.close()
        return status

    def said(self) -> list[str]:
        """The lines that it wrote for people since the last time; after its end only once."""
        # pread, for the process writes on at the position that it shares with us.
        data = os.pread(self._spoken.fileno(), MAX_SAID_BYTES, self._heard)
        self._heard += len(data)
        if self._popen.returncode is not None:
            self._spoken.close()
        return [line for line in data.decode("utf-8", "replace").splitlines() if line.strip()]


def _id_of(line: Line) -> object:
    """The id of a line that was not judged, if one can be read."""
    with suppress(ValueError, RecursionError, AttributeError):
        found: Any = json.loads(line.data or b"").get("id")  # Any: whatever JSON holds
        return found if isinstance(found, str | int) else None
    return None
