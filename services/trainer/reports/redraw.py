"""Has a job's reports drawn again, with its gate, in a process of its own: the service imports no matplotlib."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

import structlog

from kala.trainer.v1 import registry_pb2
from services.common.processes import gone
from services.trainer.executors.local import PASSED
from services.trainer.work.results import write_atomically

REPORTS: Final = "reports"
GATE: Final = "gate.binpb"
SECONDS: Final = 60.0

log: Final = structlog.get_logger()


async def redraw(folder: Path, name: str, evaluation: registry_pb2.Evaluation) -> None:
    """Adds the gate's result to the reports in `folder`; what cannot be drawn is logged, for nothing depends on it."""
    reports = folder / REPORTS
    try:
        await asyncio.to_thread(_put, reports, evaluation)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.trainer.reports", str(folder), name,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={key: os.environ[key] for key in PASSED if key in os.environ},
        )  # fmt: skip
    except OSError as error:
        log.warning("report_not_drawn", job=name, error=str(error))
        return
    try:
        async with asyncio.timeout(SECONDS):
            _, said = await process.communicate()
    except TimeoutError:
        log.warning("report_not_drawn", job=name, error=f"took longer than {SECONDS:g} s")
        return
    finally:
        if process.returncode is None:
            process.kill()
            await gone(process)
    if process.returncode:
        log.warning("report_not_drawn", job=name, error=said[-500:].decode(errors="replace"))


def _put(reports: Path, evaluation: registry_pb2.Evaluation) -> None:
    reports.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(reports / GATE, evaluation.result.SerializeToString())
