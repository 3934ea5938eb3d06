"""Pulls one model and ends: `python -m services.inference.pull EleutherAI/pythia-70m [--revision R] [--models-dir D] …`.

Standard output has one JSON object a line: `{"file", "received_bytes", "total_bytes"}` while it works, at the end
`{"files": […], "directory"}` or `{"error": {"kind", "reason", "message"}}`. Where and how much comes from inference's
settings. A process of its own, because the library reads its environment once and because this must be able to stop.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import InvalidArgumentError, KalaError, VerificationError
from services.common.settings import load
from services.inference.config import SECTION, InferenceSettings
from services.inference.pull.hub import Hub
from services.inference.pull.plan import Source, choose, parse_source, require_room
from services.inference.pull.shelf import Shelf, is_whole, reference, require_whole

EXIT_FAILED: Final = 1
REPORT_SECONDS: Final = 0.2
"""Often enough for a person who watches, seldom enough to cost nothing."""

SETTINGS: Final = ("models-dir", "hub-url", "max-pull-gigabytes")
"""Settings of inference that may be given here as flags; the token, a secret, may not."""

BYTES_PER_GIGABYTE: Final = 1_000_000_000


def main(argv: Sequence[str] | None = None) -> int:
    """Pull; returns the exit status."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # As an exception, so that the half of a file goes with us.
        signal.signal(number, _stop)
    parser = argparse.ArgumentParser(prog="python -m services.inference.pull", description=__doc__)
    parser.add_argument("--revision", default="")
    for name in SETTINGS:
        parser.add_argument(f"--{name}", dest=name)
    parser.add_argument("source")
    arguments = parser.parse_args(argv)
    given = {name: getattr(arguments, name) for name in SETTINGS}
    flags = [part for name, value in given.items() if value is not None for part in (f"--{name}", value)]
    try:
        source = parse_source(arguments.source, arguments.revision)
        settings = load(InferenceSettings, section=SECTION, argv=flags)
        files, directory = pull(source, settings, _say)
    except KalaError as error:
        _say({"error": _told(error)})
        return EXIT_FAILED
    _say({"files": [_written(file) for file in files], "directory": str(directory)})
    return 0


def pull(
    source: Source, settings: InferenceSettings, say: Callable[[dict[str, Any]], None]
) -> tuple[list[ContentReference], Path]:
    """Fetch a source's files into the models directory; gives them and the folder. Raises the KalaError that says why not."""
    token = settings.hub_token
    hub = Hub(settings.hub_url, None if token is None else token.get_secret_value())
    shelf = Shelf(settings.models_dir.expanduser(), source)
    shelf.require_ours()
    listing = hub.list(source)
    files = choose(source, listing.files)
    total = require_room(source, files, max_bytes=round(settings.max_pull_gigabytes * BYTES_PER_GIGABYTE))
    if (present := shelf.present(listing.commit, files)) is not None:
        return present, shelf.directory
    shelf.require_space(total)
    with shelf.arriving(listing.commit) as place:
        progress = Progress(total, say)
        arrived: list[ContentReference] = []
        for file in files:
            progress.begin(file.name, file.size)
            if is_whole(place / file.name, file):
                arrived.append(reference(place / file.name, file))
            else:
                hub.fetch(source, listing.commit, file, place, progress.add)
                arrived.append(require_whole(place / file.name, file))
            progress.end(file.size)
        shelf.install(place, listing.commit, arrived)
    return arrived, shelf.directory


@dataclass(slots=True)
class Progress:
    """How much has arrived; tells it a few times a second, and ends what is more than the hub lists."""

    total: int
    say: Callable[[dict[str, Any]], None]
    clock: Callable[[], float] = time.monotonic
    _file: str = ""
    _whole: int = 0
    _of_file: int = 0
    _size: int = 0
    _told_at: float = field(default=-1e9)

    def begin(self, file: str, size: int) -> None:
        """Go on to another file, of this size."""
        self._file, self._of_file, self._size = file, 0, size
        self._tell()

    def add(self, size: int) -> None:
        """Count a piece; raises VerificationError beyond the listed size, which alone was held against disk and bound."""
        self._of_file = max(0, self._of_file + size)
        if self._of_file > self._size:
            raise VerificationError(
                f"{self._file} did not arrive as the hub lists it: it is larger", reason="CHECKSUM_MISMATCH"
            )
        if self.clock() - self._told_at >= REPORT_SECONDS:
            self._tell()

    def end(self, size: int) -> None:
        """Count a file as a whole, by its true size."""
        self._whole, self._of_file = self._whole + size, 0

    def _tell(self) -> None:
        self._told_at = self.clock()
        received = min(self._whole + self._of_file, self.total)
        self.say({"file": self._file, "received_bytes": received, "total_bytes": self.total})


def _told(error: KalaError) -> dict[str, str]:
    field = error.field if isinstance(error, InvalidArgumentError) else ""
    return {"kind": type(error).__name__, "reason": error.reason, "message": error.message, "field": field}


def _written(file: ContentReference) -> dict[str, Any]:  # Any: JSON
    return {"name": file.name, "sha256": file.sha256.hex(), "bytes": file.bytes}


def _say(line: dict[str, Any]) -> None:  # Any: JSON
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
