"""The `kala` command: runs a suite on this machine, talks to one anywhere, and verifies what it proved, offline.

Every failure is one line that names the cause and the cure, with an exit code that is not 0.
"""

from __future__ import annotations

import os
import sys

from kala.errors import KalaError

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
EXIT_BUG = 70
"""EX_SOFTWARE of sysexits.h."""

DEBUG_VARIABLE = "KALA_DEBUG"


def app() -> None:
    """Run the command line of this process and end it."""
    sys.exit(main())


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    from kala.cli.commands import command_line

    try:
        return command_line(argv)
    except KalaError as error:
        _report(error.message)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`kala … | head`), which is no failure; nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # the process edge: a user never meets a traceback
        if os.environ.get(DEBUG_VARIABLE):
            raise
        _report(
            f"internal error: {type(error).__name__}: {error}; this is a bug. {DEBUG_VARIABLE}=1 shows where it happened"
        )
        return EXIT_BUG


def _report(message: str) -> None:
    from kala.cli.output import note

    note(f"kala: {message}")
