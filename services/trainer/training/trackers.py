"""Where the numbers of a training run go while it runs: always a file, and TensorBoard or MLflow where asked for.

A tracker is for people who watch. One that breaks is told once as an incident and left out; training goes on.
"""

from __future__ import annotations

import json
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Protocol, Self

from kala.errors import FailedPreconditionError

if TYPE_CHECKING:
    from types import TracebackType

METRICS_FILE: Final = "metrics.jsonl"
TENSORBOARD_DIRECTORY: Final = "tensorboard"
TENSORBOARD: Final = "tensorboard"
MLFLOW: Final = "mlflow"
MLFLOW_EXPERIMENT: Final = "kala"

# A server that hangs must not hold a job's end for longer than this.
_MLFLOW_LEAVE_SECONDS: Final = 20.0
# Numbers that wait for a slow server; when it is full the newest are dropped, for the file has them all.
_MLFLOW_WAITING: Final = 10_000
# As many values as one request of MLflow's REST interface may hold.
_MLFLOW_BATCH: Final = 1_000
_MLFLOW_LIMITS: Final = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}

Values = Mapping[str, float]
OnFault = Callable[[str, str], None]
"""Told the name of a tracker and what is wrong with it."""


class Tracker(Protocol):
    """Takes numbers by step; may raise anything, which ends this tracker and nothing else."""

    def log(self, step: int, values: Values) -> None: ...

    def close(self) -> None: ...


class MetricsFile:
    """One JSON line per logged step; lines after the step that a run resumes from are dropped when it is opened."""

    def __init__(self, path: Path, *, resume_step: int, clock: Callable[[], float] = time.time) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_metrics(path) if row["step"] <= resume_step]
        replacement = path.with_name(path.name + ".new")
        replacement.write_text("".join(_line(row) for row in kept))
        replacement.replace(path)
        self._file: IO[str] = path.open("a", buffering=1)
        self._clock = clock

    def log(self, step: int, values: Values) -> None:
        self._file.write(_line({"step": step, "at": round(self._clock(), 3), **values}))

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Returns the logged rows in order; a line that a crash cut short is left out. Empty without a file."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _line(row: Mapping[str, float]) -> str:
    # JSON has no NaN; a number that is none is left out and shows as a gap.
    return json.dumps({key: value for key, value in row.items() if math.isfinite(value)}) + "\n"


class TensorBoard:
    """Event files that `tensorboard --logdir` reads; steps after `resume_step` of an earlier part are hidden."""

    def __init__(self, directory: Path, *, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = resume_step + 1 if resume_step else None
        self._writer: Any = SummaryWriter(str(directory), purge_step=purge)  # Any: it has no annotations

    def log(self, step: int, values: Values) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class MlflowRun:
    """A run on an MLflow server, written from a thread of its own so that a slow server costs no step.

    Raises FailedPreconditionError without an address or without mlflow-skinny.
    """

    def __init__(self, uri: str, *, run_name: str, parameters: Mapping[str, str]) -> None:
        if not uri:
            raise FailedPreconditionError(
                "trackers: mlflow needs a server; set KALA_TRAINER_MLFLOW_URI or leave the tracker out",
                reason="MLFLOW_NOT_CONFIGURED",
            )
        for name, value in _MLFLOW_LIMITS.items():
            os.environ.setdefault(name, value)
        try:
            from mlflow.entities import Metric, Param
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise FailedPreconditionError(
                "trackers: mlflow-skinny is not installed; install kala-suite[trainer-mlflow]",
                reason="MLFLOW_NOT_INSTALLED",
            ) from error
        self._metric: Any = Metric  # Any: mlflow's entities take their fields by position
        self._client: Any = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(MLFLOW_EXPERIMENT)
        experiment = found.experiment_id if found else self._client.create_experiment(MLFLOW_EXPERIMENT)
        run = self._client.create_run(experiment, run_name=run_name, tags={"kala.job": run_name})
        self._run = run.info.run_id
        self._client.log_batch(self._run, params=[Param(name, value) for name, value in parameters.items()])
        self._waiting: queue.Queue[Any] = queue.Queue(_MLFLOW_WAITING)
        self._fault: Exception | None = None
        self._thread = threading.Thread(target=self._send, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, step: int, values: Values) -> None:
        if self._fault is not None:
            raise self._fault
        at = int(time.time() * 1000)
        for name, value in values.items():
            # A full queue means that the server is behind: the file has the numbers that it misses.
            if math.isfinite(value) and not self._waiting.full():
                self._waiting.put_nowait(self._metric(name, value, at, step))

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join(_MLFLOW_LEAVE_SECONDS)
        if self._fault is not None:
            raise self._fault

    def _send(self) -> None:
        is_open = True
        while is_open:
            batch = [self._waiting.get()]
            while len(batch) < _MLFLOW_BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            is_open = None not in batch
            try:
                self._client.log_batch(self._run, metrics=[item for item in batch if item is not None])
                if not is_open:
                    self._client.set_terminated(self._run)
            except Exception as error:  # noqa: BLE001 - raised again in the training's own thread
                self._fault = error
                return


class Trackers:
    """All trackers of a run as one; a context manager that closes them."""

    def __init__(self, trackers: Mapping[str, Tracker], on_fault: OnFault) -> None:
        self._trackers = dict(trackers)
        self._on_fault = on_fault

    def log(self, step: int, values: Values) -> None:
        """Writes the numbers of a step to every tracker that still works."""
        for name, tracker in list(self._trackers.items()):
            self._try(name, tracker, partial(tracker.log, step, values))

    def close(self) -> None:
        """Closes every tracker; may be called twice."""
        for name, tracker in list(self._trackers.items()):
            self._try(name, tracker, tracker.close)
        self._trackers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _try(self, name: str, tracker: Tracker, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises, training goes on without it
            del self._trackers[name]
            self._on_fault(name, f"{type(tracker).__name__} left out: {str(error)[:200]}")


def open_trackers(
    reports: Path,
    names: Iterable[str] = (),
    *,
    resume_step: int = 0,
    run_name: str = "",
    parameters: Mapping[str, str] | None = None,
    mlflow_uri: str = "",
    on_fault: OnFault = lambda _name, _problem: None,
) -> Trackers:
    """Opens `metrics.jsonl` in the folder of reports and what `names` asks for besides ("tensorboard", "mlflow").

    A tracker that cannot work here raises FailedPreconditionError before a step is taken; a server that is down is told to
    `on_fault` and left out.
    """
    trackers: dict[str, Tracker] = {}
    for name in dict.fromkeys(names):
        open_one = _OPENERS.get(name)
        if open_one is None:
            raise FailedPreconditionError(f"trackers: {name!r} is none of {', '.join(_OPENERS)}")
        try:
            trackers[name] = open_one(
                reports,
                resume_step=resume_step,
                uri=mlflow_uri,
                run_name=run_name,
                parameters=parameters or {},
            )
        except FailedPreconditionError:
            raise
        except Exception as error:  # noqa: BLE001 - a server that is down is no reason not to train
            on_fault(name, f"left out: {str(error)[:200]}")
    trackers["metrics"] = MetricsFile(reports / METRICS_FILE, resume_step=resume_step)
    return Trackers(trackers, on_fault)


def _open_tensorboard(reports: Path, *, resume_step: int, **_others: object) -> Tracker:
    return TensorBoard(reports / TENSORBOARD_DIRECTORY, resume_step=resume_step)


def _open_mlflow(
    _reports: Path, *, uri: str, run_name: str, parameters: Mapping[str, str], **_others: object
) -> Tracker:
    return MlflowRun(uri, run_name=run_name, parameters=parameters)


_OPENERS: Final[Mapping[str, Callable[..., Tracker]]] = {TENSORBOARD: _open_tensorboard, MLFLOW: _open_mlflow}
