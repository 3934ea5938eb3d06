"""The one table between the KALA error tree and HTTP, in OpenAI's shape for /v1 and in google.rpc's for the bridge.

Statuses are those that openai-python has classes for; `code` is stable and lower case.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from google.protobuf.json_format import MessageToDict

from kala import errors
from services.common.status import code_of, to_status

ETHICS_UNAVAILABLE: Final = "ETHICS_UNAVAILABLE"
BACKENDS_UNAVAILABLE: Final = "BACKENDS_UNAVAILABLE"
MODEL_NOT_FOUND: Final = "MODEL_NOT_FOUND"
INVALID_API_KEY: Final = "INVALID_API_KEY"
UNSUPPORTED_PARAMETER: Final = "UNSUPPORTED_PARAMETER"
REQUEST_TOO_LARGE: Final = "REQUEST_TOO_LARGE"
INSUFFICIENT_QUOTA: Final = "INSUFFICIENT_QUOTA"
"""OpenAI's word for a budget that is used up; its clients need not try again."""
METHOD_NOT_ALLOWED: Final = "METHOD_NOT_ALLOWED"
CLIENT_CLOSED_REQUEST: Final = 499
"""nginx's status for a caller that went away; nobody receives it, logs show it."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How one class of error looks over HTTP."""

    status: int
    type: str


_SHAPES: Final[dict[type[errors.KalaError], Shape]] = {
    errors.InvalidArgumentError: Shape(HTTPStatus.BAD_REQUEST, "invalid_request_error"),
    errors.UnauthenticatedError: Shape(HTTPStatus.UNAUTHORIZED, "invalid_request_error"),
    errors.PermissionDeniedError: Shape(HTTPStatus.FORBIDDEN, "permission_error"),
    # A refused clearance is a fault between KALA's parts, not of the caller's permissions.
    errors.ClearanceError: Shape(HTTPStatus.SERVICE_UNAVAILABLE, "server_error"),
    errors.NotFoundError: Shape(HTTPStatus.NOT_FOUND, "invalid_request_error"),
    errors.AlreadyExistsError: Shape(HTTPStatus.CONFLICT, "invalid_request_error"),
    errors.FailedPreconditionError: Shape(HTTPStatus.BAD_REQUEST, "invalid_request_error"),
    errors.ConstitutionError: Shape(HTTPStatus.SERVICE_UNAVAILABLE, "server_error"),
    errors.ModelNotAvailable: Shape(HTTPStatus.NOT_FOUND, "invalid_request_error"),
    errors.ResourceExhaustedError: Shape(HTTPStatus.TOO_MANY_REQUESTS, "rate_limit_error"),
    errors.UnavailableError: Shape(HTTPStatus.SERVICE_UNAVAILABLE, "server_error"),
    errors.DeadlineExceededError: Shape(HTTPStatus.GATEWAY_TIMEOUT, "server_error"),
    errors.CancelledError: Shape(CLIENT_CLOSED_REQUEST, "server_error"),
    errors.DataLossError: Shape(HTTPStatus.INTERNAL_SERVER_ERROR, "server_error"),
    errors.VerificationError: Shape(HTTPStatus.BAD_REQUEST, "invalid_request_error"),
    errors.UnimplementedError: Shape(HTTPStatus.NOT_IMPLEMENTED, "invalid_request_error"),
    errors.InternalError: Shape(HTTPStatus.INTERNAL_SERVER_ERROR, "server_error"),
    errors.KalaError: Shape(HTTPStatus.INTERNAL_SERVER_ERROR, "server_error"),
}

_STATUS_BY_REASON: Final = {
    REQUEST_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    METHOD_NOT_ALLOWED: HTTPStatus.METHOD_NOT_ALLOWED,
}

_TYPES_BY_REASON: Final = {INSUFFICIENT_QUOTA: "insufficient_quota"}

_PLAIN_CODES: Final = {
    "INVALID_ARGUMENT": "invalid_value",
    "UNAUTHENTICATED": "invalid_api_key",
    "PERMISSION_DENIED": "insufficient_permissions",
    "RESOURCE_EXHAUSTED": "rate_limit_exceeded",
    "INTERNAL": "internal_error",
    "KALA_ERROR": "internal_error",
}
"""Codes that OpenAI has its own words for; every other reason is its own code in lower case."""


def shape_of(error: errors.KalaError) -> Shape:
    """Give status and type; a subclass that the table lacks looks like its nearest listed base."""
    return next(_SHAPES[kind] for kind in type(error).__mro__ if kind in _SHAPES)


def http_status(error: errors.KalaError) -> int:
    """Give the HTTP status of an error."""
    return _STATUS_BY_REASON.get(error.reason) or shape_of(error).status


def code_text(error: errors.KalaError) -> str:
    """Give the stable lower-case code of an error."""
    return _PLAIN_CODES.get(error.reason, error.reason.lower())


def openai_body(error: errors.KalaError) -> dict[str, Any]:  # Any: JSON
    """Write an error as OpenAI does: message, type, param and code."""
    field = error.field if isinstance(error, errors.InvalidArgumentError) else ""
    if not field and code_text(error) == "model_not_found":
        field = "model"
    return {
        "error": {
            "message": error.message,
            "type": _TYPES_BY_REASON.get(error.reason, shape_of(error).type),
            "param": field or None,
            "code": code_text(error),
        }
    }


def google_body(error: errors.KalaError) -> dict[str, Any]:  # Any: JSON
    """Write an error as google.rpc does over REST, with its details."""
    status = to_status(error)
    return {
        "error": {
            "code": http_status(error),
            "message": status.message,
            "status": code_of(error).name,
            "details": MessageToDict(status, preserving_proto_field_name=True).get("details", []),
        }
    }
