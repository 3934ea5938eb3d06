"""`POST /api/test-lmstudio`: CheckBackend of LM Studio under the name that programs of before know (seed 001)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc

from gateway.edge import Exchange
from gateway.gate import Gate
from gateway.generation import backend_failure
from gateway.strict_json import read_object
from kala.common.v1 import options_pb2
from kala.errors import InvalidArgumentError
from kala.inference.v1 import inference_pb2

if TYPE_CHECKING:
    from kala.inference.v1.inference_pb2_grpc import InferenceServiceAsyncStub

ROUTE: Final = "HTTP POST /api/test-lmstudio"
KIND: Final = "lmstudio"
MAX_BODY_BYTES: Final = 4096
BODY_SECONDS: Final = 10.0
CALL_SECONDS: Final = 60.0
"""One token of a cold model."""

NOT_FOUND: Final = "no LM Studio is configured or found"
START_IT: Final = "start LM Studio's local server (Developer page, or `lms server start`); where it runs elsewhere, set LM_STUDIO_BASE_URL"


class ConnectionTest:
    """Tests LM Studio for an administrator; inference records the test as administration."""

    def __init__(self, *, gate: Gate, inference: InferenceServiceAsyncStub) -> None:
        self._gate = gate
        self._inference = inference

    async def lm_studio(self, exchange: Exchange) -> None:
        """Answer whether LM Studio works, step by step; a failed test is an answer, status 200 with `success` false."""
        await self._gate.admit(exchange, rpc=ROUTE, scope=options_pb2.SCOPE_ADMIN)
        model = await _wanted_model(exchange)
        try:
            name = await self._name()
            if name is None:
                await exchange.send_json(200, _answer(None, (), NOT_FOUND, START_IT))
                return
            request = inference_pb2.CheckBackendRequest(name=name, model=model)
            checked = await self._inference.CheckBackend(request, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            raise backend_failure(error) from error
        failed = next((check for check in checked.checks if not check.passed), None)
        message = checked.backend.detail if failed is None else failed.detail
        await exchange.send_json(
            200, _answer(checked.backend, checked.checks, message, "" if failed is None else failed.cure)
        )

    async def _name(self) -> str | None:
        """Give the first LM Studio of the chain."""
        listed = await self._inference.ListBackends(inference_pb2.ListBackendsRequest(page_size=1000))
        return next((backend.name for backend in listed.backends if backend.kind == KIND), None)


async def _wanted_model(exchange: Exchange) -> str:
    body = await exchange.read_body(max_bytes=MAX_BODY_BYTES, timeout_seconds=BODY_SECONDS)
    values = read_object(body) if body else {}
    unknown = sorted(set(values) - {"model"})
    if unknown:
        raise InvalidArgumentError(unknown[0], "is not a parameter of this test; it takes `model` alone")
    model = values.get("model")
    if not isinstance(model, str | None):
        raise InvalidArgumentError("model", "must be a text")
    return model or ""


def _answer(
    backend: inference_pb2.Backend | None,
    checks: Any,
    message: str,
    cure: str,  # Any: a repeated field, or ()
) -> dict[str, Any]:  # Any: JSON
    return {
        "success": bool(checks) and all(check.passed for check in checks),
        "message": message,
        "cure": cure,
        "backend": None if backend is None else backend.name,
        "url": None if backend is None else backend.url,
        "checks": [
            {"step": check.step, "passed": check.passed, "detail": check.detail, "cure": check.cure}
            for check in checks
        ],
    }
