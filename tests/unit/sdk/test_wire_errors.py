"""What errors over HTTP, and at the end of a stream, are to a user of the SDK."""

from __future__ import annotations

import json

import pytest

from kala.errors import UnavailableError
from kala.wire_errors import error_of
from services.inference.truth import HINTS


@pytest.mark.parametrize("reason", [*HINTS, "ANSWER_UNCHECKABLE", "BACKEND_FAILED_MID_STREAM"])
def test_a_stream_that_ends_untrue_may_be_tried_again(reason: str) -> None:
    # The status said 200 long ago; only the reason can tell.
    body = json.dumps({"error": {"message": "no", "type": "server_error", "code": reason.lower()}})
    error = error_of(200, body.encode(), {})
    assert isinstance(error, UnavailableError)
    assert error.reason == reason
