"""What was judged is what is executed: exact type, exact bytes, no field that the judge did not know."""

from __future__ import annotations

import hashlib

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from kala.errors import InvalidArgumentError
from kala.inference.v1 import inference_pb2
from services.common.sealing import action_digest, pack, unpack_strictly

UNKNOWN_FIELD = b"\xfa\x07\x01x"  # field 127, length-delimited


def test_the_digest_is_over_type_and_bytes() -> None:
    action = pack(inference_pb2.ChatAction(model="m"))
    assert action.type_url == "type.kala.dev/kala.inference.v1.ChatAction"
    assert action_digest(action) == hashlib.sha256(action.type_url.encode() + b"\0" + action.value).digest()


def test_a_packed_action_comes_back() -> None:
    action = inference_pb2.ChatAction(model="m", stream=True)
    assert unpack_strictly(pack(action), inference_pb2.ChatAction) == action


def test_another_type_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="type_url"):
        unpack_strictly(pack(inference_pb2.EmbedAction()), inference_pb2.ChatAction)


def test_a_foreign_type_url_prefix_is_refused() -> None:
    action = AnyMessage(type_url="type.googleapis.com/kala.inference.v1.ChatAction")
    with pytest.raises(InvalidArgumentError, match="type_url"):
        unpack_strictly(action, inference_pb2.ChatAction)


def test_broken_bytes_are_refused() -> None:
    action = pack(inference_pb2.ChatAction(model="m"))
    action.value += b"\xff"
    with pytest.raises(InvalidArgumentError, match="value"):
        unpack_strictly(action, inference_pb2.ChatAction)


def test_an_unknown_field_at_the_top_is_refused() -> None:
    action = pack(inference_pb2.ChatAction(model="m"))
    action.value += UNKNOWN_FIELD
    with pytest.raises(InvalidArgumentError, match="does not know"):
        unpack_strictly(action, inference_pb2.ChatAction)


def test_an_unknown_field_deep_inside_is_refused() -> None:
    part = inference_pb2.ContentPart.FromString(
        inference_pb2.ContentPart(text="x").SerializeToString() + UNKNOWN_FIELD
    )
    message = inference_pb2.ChatMessage(role=inference_pb2.ROLE_USER, content=[part])
    action = pack(inference_pb2.ChatAction(model="m", messages=[message]))
    with pytest.raises(InvalidArgumentError, match="does not know"):
        unpack_strictly(action, inference_pb2.ChatAction)


@pytest.mark.parametrize(
    "action",
    [
        inference_pb2.ChatAction(model="m", truncation=99),  # type: ignore[arg-type]  # no such value, as a newer part may send
        inference_pb2.ChatAction(messages=[inference_pb2.ChatMessage(role=99)]),  # type: ignore[arg-type]  # the same
    ],
)
def test_an_enum_value_that_this_version_lacks_is_refused(action: inference_pb2.ChatAction) -> None:
    with pytest.raises(InvalidArgumentError, match="does not know"):
        unpack_strictly(pack(action), inference_pb2.ChatAction)
