"""Does one piece of work as a Ray job: `python -m services.trainer.ray <folder>` is the job's entrypoint on the cluster.

The folder is the same on every machine (a shared volume). Its log is written here, by the cluster, so that the service
needs nothing of Ray but the job's state.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kala.errors import KalaError
from services.trainer.work import __main__ as alone
from services.trainer.work.bounds import hold_folder
from services.trainer.work.log_lines import DRIVER, LogWriter
from services.trainer.work.order import TRAIN, read_order
from services.trainer.work.references import require_datasets
from services.trainer.work.results import ERROR, EXIT_DONE, EXIT_REFUSED, RESULT, clear_end, write_error

_FROM_WORKER: Final = re.compile(rb"\(RayTrainWorker pid=([0-9]+)[^)]*\) ")
_INTRODUCED: Final = re.compile(rb"kala worker ([0-9]+) is process ([0-9]+)")
_COLOUR: Final = re.compile(rb"\x1b\[[0-9;]*m")


def main(arguments: list[str]) -> int:
    """Do the work that the folder orders; the exit status says how it ended, as a local process's does."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m services.trainer.ray FOLDER\n")
        return alone.EXIT_USAGE
    folder = Path(arguments[0])
    with hold_folder(folder), logged(folder):
        return _work(folder)


def _work(folder: Path) -> int:
    try:
        clear_end(folder)
        order = read_order(folder)
        if order.kind != TRAIN:
            # One process is enough for all else; Ray only finds a machine for it.
            return alone.work(folder)
        require_datasets(order)
        from services.trainer.ray.driver import drive

        drive(order)
    except KalaError as error:
        sys.stderr.write(f"{error.reason}: {error.message}\n")
        write_error(folder, error)
        return EXIT_REFUSED
    except Exception:  # noqa: BLE001 - the last word of the log is what the owner of the work gets to see
        traceback.print_exc()
    # A worker that refused said so itself, whatever Ray made of it.
    if (folder / ERROR).exists():
        return EXIT_REFUSED
    return EXIT_DONE if (folder / RESULT).exists() else alone.EXIT_CRASHED


@contextmanager
def logged(folder: Path) -> Iterator[None]:
    """Write whatever this process and the workers write, line by line, into the folder's log."""
    reading, writing = os.pipe()
    kept = os.dup(1), os.dup(2)
    writer = threading.Thread(target=_write_lines, args=(reading, LogWriter(folder)), daemon=True)
    writer.start()
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    os.close(writing)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in enumerate(kept, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        # What Ray left running may hold the pipe; the work is over all the same.
        writer.join(timeout=5)


def _write_lines(reading: int, log: LogWriter) -> None:
    ranks: dict[bytes, str] = {}
    with os.fdopen(reading, "rb") as lines:
        for raw in lines:
            line = _COLOUR.sub(b"", raw)
            source = DRIVER
            if introduced := _INTRODUCED.search(line):
                ranks[introduced[2]] = f"worker-{introduced[1].decode()}"
            if said := _FROM_WORKER.match(line):
                source = ranks.get(said[1], DRIVER)
                line = line[said.end() :] if source != DRIVER else line
            log.write(line, source=source)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
