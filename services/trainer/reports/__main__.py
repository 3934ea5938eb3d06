"""Draws the reports of a job's folder: `python -m services.trainer.reports FOLDER NAME`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from kala.errors import KalaError
from services.trainer.reports.files import write_reports

EXIT_REFUSED: Final = 2
EXIT_USAGE: Final = 64


def main(arguments: list[str]) -> int:
    """Write them; the status says whether it went well."""
    match arguments:
        case [folder, name]:
            try:
                write_reports(Path(folder), name)
            except KalaError as error:
                sys.stderr.write(f"{error.reason}: {error.message}\n")
                return EXIT_REFUSED
            return 0
    sys.stderr.write("usage: python -m services.trainer.reports FOLDER NAME\n")
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
