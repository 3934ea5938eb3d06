"""The control plane's view of a suite, as RFC-080 has it: how its pipelines fared, and whether LM Studio can be used.

A pipeline is a backend or a tool; its runs are rows of the log's view `agent_run`. Where the log cannot be asked the
answer says so, `mode` `db_off`, with no runs: nothing here fails because the database is off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from kala.errors import (
    DeadlineExceededError,
    InternalError,
    KalaError,
    UnavailableError,
    UnimplementedError,
)

if TYPE_CHECKING:
    from kala.client import KalaClient

DB_ON: Final = "db_on"
DB_OFF: Final = "db_off"
DEFAULT_WINDOW_HOURS: Final = 24
MAX_WINDOW_HOURS: Final = 10 * 365 * 24

WAIT_SECONDS: Final = 30.0
"""For one answer about a busy log's window."""

_SECONDS_PER_HOUR: Final = 3_600
_COUNTED: Final = ("types", "outcomes", "laws", "models")
_STATUSES: Final = {"ok": "success", "error": "failed"}

# Any: JSON, in the gateway's answers and in ours.
Json = dict[str, Any]
Value = TypeVar("Value")


def pipeline_status(client: KalaClient, window_hours: int = DEFAULT_WINDOW_HOURS) -> Json:
    """Count the runs of each backend and tool that ended in the last hours.

    Raises the KalaError of a request that is wrong; a log that is away is an answer.
    """
    try:
        told = _ask(client, "/kala/v1/audit/pipelines", window_hours)
    except KalaError as error:
        return pipeline_status_off(_reason_of_absence(error), window_hours)
    pipelines = {str(one["name"]): _pipeline(one) for one in told.get("pipelines") or ()}
    total = sum(pipeline["total"] for pipeline in pipelines.values())
    return _pipeline_status(DB_ON, None, window_hours, {"total_runs": total, "pipelines": pipelines})


def pipeline_status_off(reason: str, window_hours: int = DEFAULT_WINDOW_HOURS) -> Json:
    """Say that the log cannot be asked."""
    return _pipeline_status(DB_OFF, reason, window_hours, {"total_runs": 0, "pipelines": {}})


def summary(client: KalaClient, window_hours: int = DEFAULT_WINDOW_HOURS) -> Json:
    """Put together what the log counts, how the pipelines fared, and LM Studio's state as the suite last saw it."""
    status: Json
    try:
        told = _ask(client, "/kala/v1/audit/summary", window_hours)
        counts = {
            name: {one["label"]: int(one["count"]) for one in told.get(name) or ()} for name in _COUNTED
        }
        status = {"ok": True, "mode": DB_ON, "reason": None, "tree_size": int(told["tree_size"]), **counts}
    except KalaError as error:
        status = _status_off(_reason_of_absence(error))
    return _summary(status, pipeline_status(client, window_hours), _lm(client), window_hours)


def summary_off(reason: str, window_hours: int = DEFAULT_WINDOW_HOURS) -> Json:
    """Say that no suite can be asked."""
    from kala.adapters.lm_studio_state import ERROR, Health

    lm = Health(ERROR, "SUITE_NOT_RUNNING", reason).as_dict()
    return _summary(_status_off(reason), pipeline_status_off(reason, window_hours), lm, window_hours)


def or_off(ask: Callable[[], Value], off: Callable[[str], Value]) -> Value:
    """Ask; where nobody answers, give what stands for that. Raises the KalaError of anything else."""
    try:
        return ask()
    except KalaError as error:
        return off(_reason_of_absence(error))


def words_of(status: Mapping[str, Any]) -> str:
    """Write a pipeline status as one line for people."""
    if status["mode"] == DB_OFF:
        return f"{DB_OFF}: {status['reason']}"
    told = status["summary"]
    pipelines = ", ".join(
        f"{name} {one['by_status']['success']} ok {one['by_status']['failed']} failed"
        for name, one in told["pipelines"].items()
    )
    return f"{DB_ON}: {told['total_runs']} runs in {status['window_hours']} h{f'; {pipelines}' if pipelines else ''}"


def _ask(client: KalaClient, path: str, window_hours: int) -> Json:
    window = f"{window_hours * _SECONDS_PER_HOUR}s"
    return client.call("GET", path, params={"window": window}, timeout_seconds=WAIT_SECONDS)


def _reason_of_absence(error: KalaError) -> str:
    """Why the log could not be asked; raises an error that does not mean that."""
    is_gone = isinstance(error, InternalError) and error.reason == "CONNECTION_LOST"
    if is_gone or isinstance(error, UnavailableError | DeadlineExceededError | UnimplementedError):
        return error.message
    raise error


def _pipeline(told: Mapping[str, Any]) -> Json:
    succeeded, failed = int(told.get("succeeded") or 0), int(told.get("failed") or 0)
    last_run_at = told.get("last_run_at") or None
    return {
        "total": succeeded + failed,
        # The log knows of a run when it has ended, and every run ends as one of two.
        "by_status": {"success": succeeded, "failed": failed, "running": 0, "other": 0},
        "last_run_started_at": last_run_at,
        "last_run_at": last_run_at,
        "last_run_status": _STATUSES.get(str(told.get("last_status"))),
    }


def _pipeline_status(mode: str, reason: str | None, window_hours: int, counted: Json) -> Json:
    return {
        "ok": mode == DB_ON,
        "mode": mode,
        "reason": reason,
        "window_hours": window_hours,
        "summary": counted,
    }


def _status_off(reason: str) -> Json:
    return {
        "ok": False,
        "mode": DB_OFF,
        "reason": reason,
        "tree_size": None,
        **{name: {} for name in _COUNTED},
    }


def _lm(client: KalaClient) -> Json:
    from kala.adapters.lm_studio_state import ERROR, Health, health_through, switched_off
    from kala.adapters.settings import lm_studio_settings

    try:
        settings = lm_studio_settings()
        if not settings.is_enabled:
            return switched_off(settings).as_dict()
        return health_through(client, settings, is_tested=False).as_dict()
    except KalaError as error:
        return Health(ERROR, error.reason, error.message).as_dict()


def _summary(status: Json, pipelines: Json, lm: Json, window_hours: int) -> Json:
    is_on = status["mode"] == pipelines["mode"] == DB_ON
    return {
        "ok": is_on,
        "mode": DB_ON if is_on else DB_OFF,
        "reason": status["reason"] or pipelines["reason"],
        "generated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "window_hours": window_hours,
        "components": {"status": status, "lm": lm, "pipeline_status": pipelines},
    }
