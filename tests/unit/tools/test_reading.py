"""What a person sees of a write before agreeing to it."""

from __future__ import annotations

import base64
import json
from typing import Any

from kala.common.v1.clearance_pb2 import Principal
from kala.tools.v1 import tools_pb2 as pb
from services.tools.policy.approvals import MAX_SHOWN_BYTES
from services.tools.reading import write_asked_of

ANN = Principal(id="keys/ann", tenant="acme")


def shown(data: bytes) -> dict[str, Any]:  # JSON
    action = pb.WriteFileAction(workspace="workspaces/w", path="a", data=data, mode=pb.WRITE_MODE_CREATE)
    found: dict[str, Any] = json.loads(write_asked_of(action, ANN).shown)
    return found


def test_a_short_text_is_shown_whole() -> None:
    told = shown("ä".encode())
    assert told["content"] == "ä"
    assert "bytes_not_shown" not in told


def test_what_is_left_out_is_said() -> None:
    """64 KiB of harmless text hid what came after it."""
    told = shown(b"x" * MAX_SHOWN_BYTES + b"harm")
    assert told["content"] == "x" * MAX_SHOWN_BYTES
    assert told["bytes_not_shown"] == 4


def test_a_text_that_is_cut_within_a_character_stays_text() -> None:
    told = shown(b"x" + "ä".encode() * MAX_SHOWN_BYTES)
    assert told["content"] == "x" + "ä" * (MAX_SHOWN_BYTES // 2 - 1)


def test_bytes_that_are_no_text_are_shown_as_base64() -> None:
    assert base64.b64decode(shown(b"\xff\x00")["content_base64"]) == b"\xff\x00"
    assert "content_base64" in shown(b"cut \xc3")
