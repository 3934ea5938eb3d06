"""How a process that did a piece of work ended, and what that means for the work."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kala.errors import InternalError, KalaError
from services.trainer.work.results import EXIT_DONE, EXIT_REFUSED, read_error, read_result

KILLED_HINT: Final = (
    "killed from outside, as a machine does that is out of memory: a smaller micro_batch_size or max_sequence_tokens, "
    "gradient_checkpointing or a base in 8 bits need less"
)


@dataclass(frozen=True, slots=True)
class Ended:
    """One end of one process, wherever it ran."""

    exit_code: int
    """Negative for a signal, as in subprocess."""
    last_lines: str = ""
    """What it wrote last, for the owner of the work."""

    @property
    def crashed(self) -> bool:
        """Whether it neither finished nor said why not: going on from a checkpoint may help."""
        return self.exit_code not in (EXIT_DONE, EXIT_REFUSED)

    def result(self, folder: Path) -> dict[str, Any]:  # Any: JSON of the kind's own
        """What the work came to; raises the KalaError that the process told, or WORK_CRASHED."""
        if self.exit_code == EXIT_DONE:
            return read_result(folder)
        if self.exit_code == EXIT_REFUSED and (told := read_error(folder)) is not None:
            raise told
        raise self.crash()

    def crash(self) -> KalaError:
        """Say that it crashed, and how."""
        how = f"ended with status {self.exit_code}"
        if self.exit_code < 0:
            how = f"ended by {_signal_name(-self.exit_code)}"
            if -self.exit_code == signal.SIGKILL:
                how += f" ({KILLED_HINT})"
        said = f"; it last said: {self.last_lines}" if self.last_lines else ""
        return InternalError(f"the work process {how}{said}", reason="WORK_CRASHED")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
