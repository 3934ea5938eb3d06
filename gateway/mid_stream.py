"""What becomes of a stream whose backend fails in the middle: an error that ends it, or another backend goes on.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, get_args

from kala.errors import InvalidArgumentError
from kala.inference.v1 import inference_pb2 as pb

MID_STREAM_HEADER: Final = "x-kala-mid-stream"

MidStream = Literal["error", "continue"]

_POLICIES: Final[Mapping[str, pb.MidStreamPolicy.ValueType]] = {
    "error": pb.MID_STREAM_POLICY_ERROR,
    "continue": pb.MID_STREAM_POLICY_CONTINUE,
}


def mid_stream_of(headers: Mapping[str, str], *, default: MidStream) -> pb.MidStreamPolicy.ValueType:
    """Read a request's policy; raises InvalidArgumentError for one that is not known."""
    named = headers.get(MID_STREAM_HEADER, "").strip() or default
    policy = _POLICIES.get(named)
    if policy is None:
        raise InvalidArgumentError(MID_STREAM_HEADER, f"must be {' or '.join(get_args(MidStream))}")
    return policy
