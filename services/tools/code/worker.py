"""The scan worker: a process that scans one file at a time, so that hostile source holds no interpreter but its own.

`python -m services.tools.code.worker PARENT MEMORY_BYTES` reads questions from stdin and answers them on stdout until stdin ends.
It has one thread, writes no file, and does not outlive the service that started it.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from services.tools.code.engines.every import code_engines
from services.tools.code.messages import (
    MAX_QUESTION_BYTES,
    MEMORY,
    Answer,
    Question,
    answer_to_bytes,
    question_from_bytes,
    read_frame,
    write_frame,
)
from services.tools.code.model import Engine, ScanOptions, SourceFile
from services.tools.code.validate import scan_file

_TIRED_SHARE: Final = 0.5
_SET_PDEATHSIG: Final = 1  # linux/prctl.h
# Loads what engines load at their first file.
_SAMPLE: Final = "import os\n\ndef run(request):\n    os.system('ls ' + request.args['name'])\n"


def main(arguments: Sequence[str]) -> int:
    """Answer questions until stdin ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) or os.getppid() != int(arguments[0]):
        return 1
    engines = code_engines()
    scan_file(SourceFile("sample.py", _SAMPLE), ScanOptions(), engines)
    gc.collect()
    gc.freeze()
    memory_bytes = int(arguments[1])
    _limit(memory_bytes)
    # What a library prints must not get between the frames.
    pipe = os.dup(1)
    os.dup2(2, 1)
    write_frame(pipe, answer_to_bytes(Answer()))
    while (data := read_frame(0, max_bytes=MAX_QUESTION_BYTES)) is not None:
        write_frame(pipe, _answered(question_from_bytes(data), engines, memory_bytes))
    return 0


def _answered(question: Question, engines: Sequence[Engine], memory_bytes: int) -> bytes:
    try:
        scan = scan_file(question.file, question.options, engines)
        return answer_to_bytes(Answer(scan, is_tired=_peak_bytes() > memory_bytes * _TIRED_SHARE))
    except MemoryError:
        return answer_to_bytes(Answer(failure=MEMORY, is_tired=True))
    except Exception as error:  # noqa: BLE001 - the edge of a process; the text of an error may hold the caller's code
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{type(error).__name__} at {os.path.basename(frame.filename)}:{frame.lineno}"  # noqa: PTH119 - a name only
        return answer_to_bytes(Answer(failure=place, is_tired=True))


def _limit(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _peak_bytes() -> int:
    """The most memory that this program held; `ru_maxrss` would count what its parent held when it forked."""
    for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
