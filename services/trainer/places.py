"""Where the trainer keeps what: the folders of its state directory, private to its user."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kala.errors import FailedPreconditionError
from services.trainer.names import directory_name


@dataclass(frozen=True, slots=True)
class Places:
    """The folders below `root`."""

    root: Path

    def make(self) -> None:
        """Make them, private."""
        for path in (self.root, self.work_root, self.datasets, self.adapters, self.exports):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def database(self) -> Path:
        """The SQLite file, where no other database is configured."""
        return self.root / "trainer.db"

    @property
    def work_root(self) -> Path:
        """Folders of pieces of work."""
        return self.root / "work"

    @property
    def datasets(self) -> Path:
        """Built datasets, one folder per version."""
        return self.root / "datasets"

    @property
    def adapters(self) -> Path:
        """Adapters, one folder per version; what inference is given as its directory of adapters."""
        return self.root / "adapters"

    @property
    def exports(self) -> Path:
        """Exports."""
        return self.root / "exports"

    def work(self, number: str) -> Path:
        """The folder of one operation's work."""
        return self.work_root / number

    def dataset(self, name: str) -> Path:
        """The folder of "datasets/<name>@<version>"."""
        return self.datasets / directory_name(name)

    def adapter(self, name: str) -> Path:
        """The folder of "adapters/<name>@<version>"."""
        return self.adapters / directory_name(name)


def lock_state(places: Places) -> BinaryIO:
    """Be the only trainer of this state directory as long as the file is open.

    Raises FailedPreconditionError when another one is: both would go on with the same jobs.
    """
    file = (places.root / "trainer.lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise FailedPreconditionError(
            f"{places.root} is used by another trainer; end that one, or set KALA_TRAINER_STATE_DIR"
        ) from None
    return file
