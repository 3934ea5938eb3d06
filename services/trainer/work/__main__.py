"""Does one piece of work in a process of its own: `python -m services.trainer.work <folder>`.

Each kind's module has `main(order, events)`, which returns what goes into `result.json`.
"""

from __future__ import annotations

import gc
import importlib
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Final

from kala.errors import KalaError
from services.trainer.work.bounds import apply_bounds, hold_folder, watch_lifeline
from services.trainer.work.events import EventWriter
from services.trainer.work.order import BUILD, EXPORT, GENERATE, TRAIN, read_order
from services.trainer.work.references import require_datasets
from services.trainer.work.results import EXIT_DONE, EXIT_REFUSED, clear_end, write_error, write_result

MODULES: Final = {
    TRAIN: "services.trainer.training.run",
    BUILD: "services.trainer.datasets.build_run",
    GENERATE: "services.trainer.evaluation.generate_run",
    EXPORT: "services.trainer.export.run",
}

# The libraries make millions of objects that stay: looking through them at Python's own pace is a fifth of the start.
COLLECT_AFTER_OBJECTS: Final = 50_000

EXIT_CRASHED: Final = 1
EXIT_USAGE: Final = 64


def main(arguments: list[str]) -> int:
    """Do the work that the folder orders; the exit status says how it ended."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m services.trainer.work FOLDER\n")
        return EXIT_USAGE
    folder = Path(arguments[0])
    gc.set_threshold(COLLECT_AFTER_OBJECTS)
    watch_lifeline()
    # Held as long as the process lives: two processes in one folder would write into each other's checkpoints.
    with hold_folder(folder):
        return work(folder)


def work(folder: Path) -> int:
    """Do the work of a folder that this process holds."""
    try:
        clear_end(folder)
        order = read_order(folder)
        apply_bounds(order)
        require_datasets(order)
        result = importlib.import_module(MODULES[order.kind]).main(order, EventWriter(folder))
        write_result(folder, result)
    except KalaError as error:
        # Where the disk is full, the last line of the log still says it.
        with suppress(OSError):
            write_error(folder, error)
        sys.stderr.write(f"{error.reason}: {error.message}\n")
        return EXIT_REFUSED
    except Exception:  # noqa: BLE001 - the last word of the log is what the owner of the work gets to see
        traceback.print_exc()
        return EXIT_CRASHED
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
