"""The table between KALA's errors and gRPC's status, read in both directions."""

from __future__ import annotations

import inspect
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from kala import errors
from services.common.status import (
    DETAILS_METADATA_KEY,
    MAX_MESSAGE_BYTES,
    code_of,
    from_code,
    from_error,
    to_status,
    translated,
)

CLASSES = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.KalaError)
]


def make(kind: type[errors.KalaError], **options: Any) -> errors.KalaError:
    if issubclass(kind, errors.InvalidArgumentError):
        return kind("messages[3].content", "must not be empty", **options)
    return kind("what went wrong", **options)


def over_the_wire(error: errors.KalaError) -> errors.KalaError:
    status = to_status(error)
    details = ((DETAILS_METADATA_KEY, status.SerializeToString()),)
    return from_error(failure(code_of(error), status.message, details))


def failure(code: grpc.StatusCode, message: str | None = "", trailers: Any = ()) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), message)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_comes_back_as_itself(kind: type[errors.KalaError]) -> None:
    sent = make(kind)
    received = over_the_wire(sent)
    assert type(received) is kind
    assert (received.message, received.reason) == (sent.message, sent.reason)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_finer_reason_keeps_the_class(kind: type[errors.KalaError]) -> None:
    received = over_the_wire(make(kind, reason="SOMETHING_FINER"))
    assert (type(received), received.reason) == (kind, "SOMETHING_FINER")


def test_a_class_that_the_table_lacks_travels_as_its_base() -> None:
    class Local(errors.NotFoundError):
        default_reason = "LOCAL"

    received = over_the_wire(Local("gone"))
    assert (type(received), received.reason) == (errors.NotFoundError, "LOCAL")


def test_the_status_names_domain_reason_field_and_delay() -> None:
    status = to_status(errors.InvalidArgumentError("model", "must be loaded", reason="MODEL_UNKNOWN"))
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad)
    assert (info.domain, info.reason) == ("kala.dev", "MODEL_UNKNOWN")
    assert [(v.field, v.description) for v in bad.field_violations] == [("model", "must be loaded")]
    retry = error_details_pb2.RetryInfo()
    status = to_status(errors.ResourceExhaustedError("the queue is full", retry_after_seconds=1.5))
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_a_retry_delay_comes_back() -> None:
    received = over_the_wire(errors.ResourceExhaustedError("full", retry_after_seconds=0.25))
    assert received.retry_after_seconds == 0.25


@given(st.text(min_size=1, max_size=200), st.text(max_size=3000))
def test_any_field_and_problem_fit_the_trailers(field: str, problem: str) -> None:
    received = over_the_wire(errors.InvalidArgumentError(field, problem))
    assert isinstance(received, errors.InvalidArgumentError)
    status = to_status(errors.InvalidArgumentError(field, problem))
    assert len(status.message.encode()) <= MAX_MESSAGE_BYTES
    if len(f"{field}: {problem}".encode("utf-8", "replace")) <= MAX_MESSAGE_BYTES:
        assert (received.field, received.problem) == (field, problem)


def test_a_lone_surrogate_in_a_message_is_replaced() -> None:
    assert over_the_wire(errors.NotFoundError("bad \ud800 text")).message == "bad ? text"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.UnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceededError),
        (grpc.StatusCode.CANCELLED, errors.CancelledError),
        (grpc.StatusCode.ABORTED, errors.UnavailableError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.UnimplementedError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.ResourceExhaustedError),
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidArgumentError),
        (grpc.StatusCode.OUT_OF_RANGE, errors.InvalidArgumentError),
        (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDeniedError),
        (grpc.StatusCode.UNKNOWN, errors.InternalError),
        (grpc.StatusCode.INTERNAL, errors.InternalError),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_bare_code_means_its_nearest_class(code: grpc.StatusCode, kind: type[errors.KalaError]) -> None:
    assert type(from_error(failure(code, "why"))) is kind
    assert from_error(failure(code, "why")).message == "why"
    assert type(from_code(code, "why")) is kind


@pytest.mark.parametrize("code", list(grpc.StatusCode), ids=lambda code: code.name)
def test_every_code_has_a_class_and_a_message_even_without_one(code: grpc.StatusCode) -> None:
    assert from_error(failure(code, None)).message == code.name


DAMAGED = {
    "not-a-status": b"\xff\xff\xff",
    "not-an-error-info": status_pb2.Status(
        code=5,
        details=[AnyMessage(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff")],
    ).SerializeToString(),
    "another-domain": status_pb2.Status(
        details=[
            AnyMessage(
                type_url="type.googleapis.com/google.rpc.ErrorInfo",
                value=error_details_pb2.ErrorInfo(
                    domain="evil.example", reason="X", metadata={"kind": "CLEARANCE_INVALID"}
                ).SerializeToString(),
            )
        ]
    ).SerializeToString(),
}


@pytest.mark.parametrize("details", DAMAGED.values(), ids=DAMAGED)
def test_damaged_or_foreign_details_leave_the_code_alone(details: bytes) -> None:
    received = from_error(failure(grpc.StatusCode.NOT_FOUND, "gone", ((DETAILS_METADATA_KEY, details),)))
    assert (type(received), received.reason) == (errors.NotFoundError, "NOT_FOUND")


@given(st.binary(max_size=200))
def test_no_details_make_reading_an_error_fail(details: bytes) -> None:
    from_error(failure(grpc.StatusCode.NOT_FOUND, "gone", ((DETAILS_METADATA_KEY, details),)))


def test_a_failure_without_a_status_is_internal() -> None:
    assert type(from_error(grpc.RpcError())) is errors.InternalError


def test_translated_chains_the_original() -> None:
    original = failure(grpc.StatusCode.UNAVAILABLE, "down")
    with pytest.raises(errors.UnavailableError) as caught, translated():
        raise original
    assert caught.value.__cause__ is original


def test_translated_leaves_other_exceptions_alone() -> None:
    with pytest.raises(KeyError), translated():
        raise KeyError
