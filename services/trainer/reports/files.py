"""Writes the reports of a job's folder from what lies in it; may be done again at any time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError

from kala.common.v1.clearance_pb2 import SealedAction
from kala.common.v1.gate_pb2 import GateResult
from kala.errors import DataLossError
from kala.trainer.v1 import job_pb2, trainer_pb2
from services.common.sealing import unpack_strictly
from services.trainer.reports.page import page
from services.trainer.reports.plots import gate_plot, loss_plot
from services.trainer.training.trackers import METRICS_FILE, read_metrics
from services.trainer.work.events import EventReader
from services.trainer.work.order import SEALED
from services.trainer.work.results import RESULT, read_result, write_atomically

REPORTS: Final = "reports"
LOSS: Final = "loss.png"
GATES: Final = "gates.png"
PAGE: Final = "report.html"
GATE: Final = "gate.binpb"
"""The gate's result as it was signed, put there when the job's adapter has been evaluated."""

CARD: Final = "constitutional.md"
MAX_INCIDENTS: Final = 100
_EVENTS_AT_ONCE: Final = 1_000


def write_reports(
    folder: Path,
    name: str,
    spec: job_pb2.TrainingSpec | None = None,
    result: Mapping[str, Any] | None = None,  # Any: JSON of the training process
) -> None:
    """Writes `loss.png`, `gates.png` and `report.html`; raises DataLossError for a folder that is no job's.

    Without `spec` and `result` what was cleared and what was written are read from the folder.
    """
    reports = folder / REPORTS
    reports.mkdir(mode=0o700, parents=True, exist_ok=True)
    gate = _gate(reports / GATE)
    pictures = {
        LOSS: loss_plot(read_metrics(reports / METRICS_FILE)),
        GATES: b"" if gate is None else gate_plot(gate),
    }
    for file, data in pictures.items():
        if data:
            write_atomically(reports / file, data)
    card = reports / CARD
    text = page(
        name=name,
        spec=_spec(folder) if spec is None else spec,
        result=_result(folder) if result is None else result,
        loss_png=pictures[LOSS],
        incidents=_incidents(folder),
        gate=gate,
        gate_png=pictures[GATES],
        card=card.read_text() if card.is_file() else "",
    )
    write_atomically(reports / PAGE, text.encode())


def _spec(folder: Path) -> job_pb2.TrainingSpec:
    """Reads what was cleared; its signature is verified by whoever acts on it, and this only shows it."""
    try:
        sealed = SealedAction.FromString((folder / SEALED).read_bytes())
    except (OSError, DecodeError) as error:
        raise DataLossError(f"{folder.name}: holds no job that could be reported on") from error
    return unpack_strictly(sealed.action, trainer_pb2.CreateTrainingJobAction).spec


def _result(folder: Path) -> Mapping[str, Any]:  # Any: JSON of the training process
    return read_result(folder) if (folder / RESULT).is_file() else {}


def _gate(path: Path) -> GateResult | None:
    try:
        return GateResult.FromString(path.read_bytes())
    except FileNotFoundError:
        return None
    except DecodeError as error:
        raise DataLossError(f"{path.name}: is no gate's result") from error


def _incidents(folder: Path) -> list[job_pb2.IncidentEvent]:
    reader = EventReader(folder)
    found: list[job_pb2.IncidentEvent] = []
    while events := reader.read(limit=_EVENTS_AT_ONCE):
        found += [event.message for event in events if isinstance(event.message, job_pb2.IncidentEvent)]
    return found[-MAX_INCIDENTS:]
