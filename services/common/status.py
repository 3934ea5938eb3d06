"""The one table between the KALA error tree and gRPC status, with google.rpc details, in both directions.

Every status that `abort` sends carries an `ErrorInfo` whose domain is `kala.dev`, whose `reason` is the error's and
whose metadata names the class (`kind`), so that `from_error` gives a client the class the server raised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Never

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from kala import errors

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from services.common.peers import Context

ERROR_DOMAIN: Final = "kala.dev"
"""Who defines the reasons; a client that meets another domain must not read meaning into them."""

DETAILS_METADATA_KEY: Final = "grpc-status-details-bin"
"""Where gRPC carries a serialised google.rpc.Status (gRPC A62, `grpc_status`)."""

MAX_MESSAGE_BYTES: Final = 1024
"""Longest message on the wire: it travels twice, percent-encoded and in base64, in 8 KiB of trailers."""

KIND_KEY: Final = "kind"
"""ErrorInfo metadata key that holds the class's `default_reason`, also when the reason is a finer one."""

_CODES: Final[dict[type[errors.KalaError], grpc.StatusCode]] = {
    errors.InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.ClearanceError: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ConstitutionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ModelNotAvailable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ToolsDisabled: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ResourceExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.CancelledError: grpc.StatusCode.CANCELLED,
    errors.DataLossError: grpc.StatusCode.DATA_LOSS,
    errors.VerificationError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.UnimplementedError: grpc.StatusCode.UNIMPLEMENTED,
    errors.InternalError: grpc.StatusCode.INTERNAL,
    errors.KalaError: grpc.StatusCode.UNKNOWN,
}

_CLASSES: Final[dict[grpc.StatusCode, type[errors.KalaError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgumentError,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidArgumentError,
    grpc.StatusCode.UNAUTHENTICATED: errors.UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDeniedError,
    grpc.StatusCode.NOT_FOUND: errors.NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPreconditionError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhaustedError,
    # ABORTED is a lost race: the same call may win the next one.
    grpc.StatusCode.ABORTED: errors.UnavailableError,
    grpc.StatusCode.UNAVAILABLE: errors.UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceededError,
    grpc.StatusCode.CANCELLED: errors.CancelledError,
    grpc.StatusCode.DATA_LOSS: errors.DataLossError,
    grpc.StatusCode.UNIMPLEMENTED: errors.UnimplementedError,
}
"""What a bare code means; codes that are not listed (UNKNOWN, INTERNAL) are somebody's bug: InternalError."""

_KINDS: Final = {kind.default_reason: kind for kind in _CODES}


def code_of(error: errors.KalaError) -> grpc.StatusCode:
    """Give the status code of an error; a subclass that the table lacks has the code of its nearest listed base."""
    return next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)


def to_status(error: errors.KalaError) -> status_pb2.Status:
    """Describe an error as a google.rpc.Status with ErrorInfo, and BadRequest or RetryInfo where they apply."""
    code: int = code_of(error).value[0]
    status = status_pb2.Status(code=code, message=_shortened(error.message))
    for detail in _details(error):
        status.details.add().Pack(detail)
    return status


async def abort(context: Context, error: errors.KalaError) -> Never:
    """End the RPC with the status of `error`; always raises grpc's own AbortError."""
    status = to_status(error)
    trailers = (*context.trailing_metadata(), (DETAILS_METADATA_KEY, status.SerializeToString()))
    await context.abort(code_of(error), status.message, trailing_metadata=trailers)


def from_error(error: grpc.RpcError) -> errors.KalaError:
    """Turn a failed call into the KalaError that the server raised, or into the nearest class for its code.

    Works for the asyncio and the blocking client.  Damaged details are ignored: the code alone still tells the class.
    """
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return errors.InternalError(f"the call failed without a status: {type(error).__name__}")
    code, message = error.code(), error.details() or error.code().name
    info, field, retry_after_seconds = _read_details(error.trailing_metadata())
    kind = _CLASSES.get(code, errors.InternalError)
    reason = None
    if info is not None and info.domain == ERROR_DOMAIN:
        kind = _KINDS.get(info.metadata.get(KIND_KEY, ""), kind)
        reason = info.reason or None
    if issubclass(kind, errors.InvalidArgumentError):
        problem = message.removeprefix(f"{field}: ") if field else message
        return kind(field, problem, reason=reason)
    return kind(message, reason=reason, retry_after_seconds=retry_after_seconds)


def from_code(code: grpc.StatusCode, message: str) -> errors.KalaError:
    """Give the nearest KalaError for a status that carries no details."""
    kind = _CLASSES.get(code, errors.InternalError)
    message = message or code.name
    return kind("", message) if issubclass(kind, errors.InvalidArgumentError) else kind(message)


@contextmanager
def translated() -> Iterator[None]:
    """Raise every gRPC failure inside as its KalaError, chained to the original."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_error(error) from error


def _details(error: errors.KalaError) -> Iterator[Message]:
    kind = next(base for base in type(error).__mro__ if base in _CODES)
    yield error_details_pb2.ErrorInfo(
        reason=error.reason, domain=ERROR_DOMAIN, metadata={KIND_KEY: kind.default_reason}
    )
    if isinstance(error, errors.InvalidArgumentError) and error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_shortened(error.field), description=_shortened(error.problem), reason=error.reason
        )
        yield error_details_pb2.BadRequest(field_violations=[violation])
    if error.retry_after_seconds is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after_seconds * 1e9))
        yield error_details_pb2.RetryInfo(retry_delay=delay)


def _read_details(
    trailers: Sequence[tuple[str, str | bytes]] | grpc.aio.Metadata | None,
) -> tuple[error_details_pb2.ErrorInfo | None, str, float | None]:
    info, field, retry_after_seconds = None, "", None
    for detail in _status_of(trailers).details:
        try:
            match detail.TypeName():
                case "google.rpc.ErrorInfo":
                    info = error_details_pb2.ErrorInfo.FromString(detail.value)
                case "google.rpc.BadRequest":
                    violations = error_details_pb2.BadRequest.FromString(detail.value).field_violations
                    field = violations[0].field if violations else ""
                case "google.rpc.RetryInfo":
                    delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
                    retry_after_seconds = delay.ToNanoseconds() / 1e9
        except DecodeError:
            continue
    return info, field, retry_after_seconds


def _status_of(trailers: Sequence[tuple[str, str | bytes]] | grpc.aio.Metadata | None) -> status_pb2.Status:
    for key, value in trailers or ():
        if key == DETAILS_METADATA_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break
    return status_pb2.Status()


def _shortened(text: str) -> str:
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= MAX_MESSAGE_BYTES:
        return encoded.decode()
    return encoded[: MAX_MESSAGE_BYTES - len("…".encode())].decode("utf-8", "ignore") + "…"
