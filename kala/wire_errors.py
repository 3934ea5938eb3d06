"""Turns what a gateway answers when it fails back into the error classes of `kala.errors`.

Users of the SDK and the command line meet one tree of errors, whatever carried them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

from kala import errors
from kala.errors import InvalidArgumentError, KalaError

_BY_STATUS: Final[Mapping[int, type[KalaError]]] = {
    401: errors.UnauthenticatedError,
    403: errors.PermissionDeniedError,
    404: errors.NotFoundError,
    409: errors.AlreadyExistsError,
    412: errors.FailedPreconditionError,
    429: errors.ResourceExhaustedError,
    499: errors.CancelledError,
    500: errors.InternalError,
    501: errors.UnimplementedError,
    502: errors.UnavailableError,
    503: errors.UnavailableError,
    504: errors.DeadlineExceededError,
}

_BY_REASON: Final[Mapping[str, type[KalaError]]] = {
    "MODEL_NOT_AVAILABLE": errors.ModelNotAvailable,
    "NO_MODEL_LOADED": errors.FailedPreconditionError,
    "FAILED_PRECONDITION": errors.FailedPreconditionError,
    "TOOLS_DISABLED": errors.ToolsDisabled,
    "NO_TOOLS": errors.FailedPreconditionError,
    "CONSTITUTION_INVALID": errors.ConstitutionError,
    "DATA_LOSS": errors.DataLossError,
    # The error event of a stream comes after the status, so these must tell by themselves.
    "ETHICS_UNAVAILABLE": errors.UnavailableError,
    "AUDIT_UNAVAILABLE": errors.UnavailableError,
    "BACKENDS_UNAVAILABLE": errors.UnavailableError,
    "ALL_BACKENDS_FAILED": errors.UnavailableError,
    "BACKEND_FAILED_MID_STREAM": errors.UnavailableError,
    "ANSWER_NOT_JSON": errors.UnavailableError,
    "ANSWER_BREAKS_SCHEMA": errors.UnavailableError,
    "ANSWER_UNCHECKABLE": errors.UnavailableError,
    "TOOL_CALLED": errors.UnavailableError,
    "TOOL_NOT_CALLED": errors.UnavailableError,
    "WRONG_TOOL_CALLED": errors.UnavailableError,
    "TOO_MANY_TOOL_CALLS": errors.UnavailableError,
    "TOOL_ARGUMENTS_NOT_JSON": errors.UnavailableError,
    "TOOL_ARGUMENTS_BREAK_SCHEMA": errors.UnavailableError,
    "DEADLINE_EXCEEDED": errors.DeadlineExceededError,
    "MAX_ACT_SECONDS": errors.DeadlineExceededError,
}
"""Reasons that say more than the status under which they travel."""

_MAX_EXCERPT: Final = 120


def error_of(status: int, body: bytes, headers: Mapping[str, str]) -> KalaError:
    """The error that an HTTP answer stands for; also for answers of programs that are no gateway."""
    retry_after = _seconds(headers.get("retry-after"))
    detail = _detail(body)
    if detail is None:
        excerpt = body[:_MAX_EXCERPT].decode("utf-8", "replace").strip()
        kind = _BY_STATUS.get(status, errors.InternalError)
        return _make(
            kind, f"HTTP {status} that no KALA gateway sends: {excerpt!r}; check the URL", None, retry_after
        )
    message = str(detail.get("message") or f"HTTP {status}")
    reason = _reason(detail)
    known = _BY_REASON.get(reason or "") or _BY_STATUS.get(status)
    if known is None and detail.get("status") == "FAILED_PRECONDITION":
        # The REST bridge names the class where HTTP has one status for several.
        known = errors.FailedPreconditionError
    if known is None and status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return _invalid(detail, message, reason)
    return _make(known or errors.InternalError, message, reason, retry_after)


def _make(kind: type[KalaError], message: str, reason: str | None, retry_after: float | None) -> KalaError:
    build: Callable[..., KalaError] = kind
    return build(message, reason=reason, retry_after_seconds=retry_after)


def _invalid(detail: Mapping[str, Any], message: str, reason: str | None) -> InvalidArgumentError:
    field = detail.get("param")
    if isinstance(field, str) and field:
        return InvalidArgumentError(field, message.removeprefix(f"{field}: "), reason=reason)
    return InvalidArgumentError("", message, reason=reason)


def _detail(body: bytes) -> Mapping[str, Any] | None:  # Any: JSON of another process
    try:
        parsed = json.loads(body)
    except ValueError:
        return None
    detail = parsed.get("error") if isinstance(parsed, dict) else None
    return detail if isinstance(detail, dict) else None


def _reason(detail: Mapping[str, Any]) -> str | None:
    """The stable identifier: ErrorInfo of the REST bridge, else OpenAI's `code` in capitals, else the status name."""
    for item in detail.get("details") or ():
        if isinstance(item, dict) and isinstance(item.get("reason"), str):
            return str(item["reason"])
    code = detail.get("code")
    if isinstance(code, str) and code:
        return code.upper()
    status = detail.get("status")
    return status if isinstance(status, str) and status else None


def _seconds(header: str | None) -> float | None:
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:
        return None
