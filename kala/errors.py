"""Every error a user of KALA can meet, as one tree that knows nothing of gRPC or HTTP.

    KalaError
    ├── InvalidArgumentError       a field is wrong: the message names the field, the limit and the cure
    ├── UnauthenticatedError       no credential, or one that is unknown, expired or revoked
    ├── PermissionDeniedError      the credential is good but may not do this
    │   └── ClearanceError         a guarded call came without a clearance that covers it
    ├── NotFoundError              the named resource does not exist for this caller
    ├── AlreadyExistsError         the name or idempotency key is taken by something else
    ├── FailedPreconditionError    the system is not in the state this needs; a retry will not help
    │   ├── ConstitutionError      the laws are not what was signed; the message names the file
    │   ├── ModelNotAvailable      the weights are not on this machine; the message has the pull command
    │   └── ToolsDisabled          this session was opened without tools
    ├── ResourceExhaustedError     a queue, budget or limit is full; `retry_after_seconds` says when to retry
    ├── UnavailableError           a part does not answer now; a retry may help
    ├── DeadlineExceededError      the time the caller gave is over
    ├── CancelledError             the caller went away
    ├── DataLossError              stored data is damaged beyond use
    ├── VerificationError          a proof, signature or digest does not hold
    ├── UnimplementedError         this release does not serve the call
    └── InternalError              a bug in KALA; the detail is in the log, never in the message

`services/common/status.py` maps the tree to gRPC status codes and back; `gateway/errors.py` maps it to
OpenAI-shaped HTTP errors. Both are tables, so adding a class means adding one line to each.
"""

from __future__ import annotations

from typing import ClassVar


class KalaError(Exception):
    """The base of all errors raised on purpose; `reason` is a stable UPPER_SNAKE_CASE identifier."""

    default_reason: ClassVar[str] = "KALA_ERROR"

    def __init__(
        self, message: str, *, reason: str | None = None, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.retry_after_seconds = retry_after_seconds


class InvalidArgumentError(KalaError):
    """A field of the request is wrong; `field` is its path in the request, e.g. `messages[3].content`."""

    default_reason = "INVALID_ARGUMENT"

    def __init__(self, field: str, problem: str, *, reason: str | None = None) -> None:
        super().__init__(f"{field}: {problem}" if field else problem, reason=reason)
        self.field = field
        self.problem = problem


class UnauthenticatedError(KalaError):
    """The caller gave no credential, or one that is unknown, expired or revoked."""

    default_reason = "UNAUTHENTICATED"


class PermissionDeniedError(KalaError):
    """The caller is known but may not do this."""

    default_reason = "PERMISSION_DENIED"


class ClearanceError(PermissionDeniedError):
    """A guarded call came without a clearance that covers exactly this action, here and now."""

    default_reason = "CLEARANCE_INVALID"


class NotFoundError(KalaError):
    """The named resource does not exist for this caller."""

    default_reason = "NOT_FOUND"


class AlreadyExistsError(KalaError):
    """The name or idempotency key is already taken by something different."""

    default_reason = "ALREADY_EXISTS"


class FailedPreconditionError(KalaError):
    """The system is not in the state this call needs; retrying without a change will not help."""

    default_reason = "FAILED_PRECONDITION"


class ConstitutionError(FailedPreconditionError):
    """The constitution on disk is not the one that was signed; the message names the file."""

    default_reason = "CONSTITUTION_INVALID"


class ModelNotAvailable(FailedPreconditionError):  # noqa: N818 - the public name promised to users
    """The model's weights are not on this machine; the message names the size and the pull command."""

    default_reason = "MODEL_NOT_AVAILABLE"


class ToolsDisabled(FailedPreconditionError):  # noqa: N818 - the public name promised to users
    """A tool was asked for in a session that was opened without tools."""

    default_reason = "TOOLS_DISABLED"


class ResourceExhaustedError(KalaError):
    """A queue, budget or limit is full."""

    default_reason = "RESOURCE_EXHAUSTED"


class UnavailableError(KalaError):
    """A part of the system does not answer now; the same call may succeed later."""

    default_reason = "UNAVAILABLE"


class DeadlineExceededError(KalaError):
    """The time that the caller gave for the call is over."""

    default_reason = "DEADLINE_EXCEEDED"


class CancelledError(KalaError):
    """The caller went away before the call was done."""

    default_reason = "CANCELLED"


class DataLossError(KalaError):
    """Stored data is damaged beyond use."""

    default_reason = "DATA_LOSS"


class VerificationError(KalaError):
    """A proof, signature or digest does not hold; the message names the first thing that is wrong."""

    default_reason = "VERIFICATION_FAILED"


class UnimplementedError(KalaError):
    """The call is not served by this release."""

    default_reason = "UNIMPLEMENTED"


class InternalError(KalaError):
    """A bug in KALA; the detail is in the server's log and never in this message."""

    default_reason = "INTERNAL"
