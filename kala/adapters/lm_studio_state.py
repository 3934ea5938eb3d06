"""Whether LM Studio can be used, as a suite sees it: the state it last saw, and a test now where the key may ask for one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kala.core.places import place
from kala.errors import KalaError

if TYPE_CHECKING:
    from kala.adapters.settings import LMStudioSettings
    from kala.client import KalaClient

KIND: Final = "lmstudio"

LM_READY: Final = "lm_ready"
LM_OFF: Final = "lm_off"
ERROR: Final = "error"

SLOWEST_SECONDS: Final = 5.0
"""RFC-080 section 2: a health check that takes longer makes LM Studio not eligible."""

SWITCHED_OFF: Final = "LM_STUDIO_SWITCHED_OFF"
NOT_CONFIGURED: Final = "NOT_CONFIGURED"
TOO_SLOW: Final = "TOO_SLOW"

# Any: JSON of the gateway.
Json = Mapping[str, Any]

_STATES: Final = {
    "BACKEND_STATE_READY": (LM_READY, ""),
    "BACKEND_STATE_OFF": (LM_OFF, "NOT_RUNNING"),
    "BACKEND_STATE_NO_MODEL": (ERROR, "NO_MODEL_LOADED"),
    "BACKEND_STATE_LOADING": (ERROR, "BACKEND_LOADING"),
}


@dataclass(frozen=True, slots=True)
class Health:
    """RFC-080's three states, with what is behind them."""

    mode: str
    reason: str = ""
    """Stable UPPER_SNAKE_CASE; empty when it is ready."""
    message: str = ""
    cure: str = ""
    base_url: str | None = None
    model: str | None = None
    backend: str | None = None
    latency_ms: int | None = None
    checks: tuple[Json, ...] = ()
    is_tested: bool = False
    """Whether it was tested now, rather than told from the last look."""

    def as_dict(self) -> dict[str, Any]:
        """Give RFC-080's result."""
        return {
            "ok": self.mode == LM_READY,
            "mode": self.mode,
            "details": {
                "base_url": self.base_url,
                "model": self.model,
                "backend": self.backend,
                "reason": self.reason,
                "message": self.message,
                "cure": self.cure,
                "latency_ms": self.latency_ms,
                "tested_now": self.is_tested,
                "checks": [dict(check) for check in self.checks],
            },
        }


def switched_off(settings: LMStudioSettings) -> Health:
    """Say that nobody wants it used."""
    return Health(
        LM_OFF,
        SWITCHED_OFF,
        "LM Studio is switched off by USE_LM_STUDIO",
        cure="set USE_LM_STUDIO=1, or unset it",
        base_url=settings.base_url,
        model=settings.model,
    )


def health_through(client: KalaClient, settings: LMStudioSettings, *, is_tested: bool = True) -> Health:
    """Ask a suite for LM Studio's state, and have it tested now unless told otherwise.

    Raises the KalaError of a suite that does not answer.
    """
    found = _lm_studio(client.backends(), settings)
    if found is None:
        return Health(
            LM_OFF,
            NOT_CONFIGURED,
            f"the suite at {client.target.url} has found no LM Studio"
            + (f" at {settings.base_url}" if settings.is_url_named else " on this machine"),
            cure="start LM Studio's local server (Developer page, or `lms server start`); "
            "where it runs elsewhere, set LM_STUDIO_BASE_URL for the suite",
            base_url=settings.base_url,
            model=settings.model,
        )
    if not is_tested:
        return _health(found, (), settings)
    try:
        tested = client.call(
            "POST",
            f"/kala/v1/inference/{found['name']}:check",
            body={"model": settings.model or ""},
            timeout_seconds=settings.timeout_seconds,
        )
    except KalaError:
        # A key without the right to test, or a log that cannot take the record of it: what was last seen still helps.
        return _health(found, (), settings)
    return _health(tested.get("backend") or found, tested.get("checks") or (), settings, is_tested=True)


def _lm_studio(backends: Sequence[Json], settings: LMStudioSettings) -> Json | None:
    listed = [backend for backend in backends if backend.get("kind") == KIND]
    if settings.is_url_named:
        wanted = place(settings.base_url)
        listed = [backend for backend in listed if place(str(backend.get("url"))) == wanted]
    return listed[0] if listed else None


def _health(
    backend: Json, checks: Sequence[Json], settings: LMStudioSettings, *, is_tested: bool = False
) -> Health:
    mode, reason = _STATES.get(str(backend.get("state")), (ERROR, "BACKEND_ERROR"))
    message, cure = str(backend.get("detail") or ""), ""
    failed = next((check for check in checks if not check.get("passed")), None)
    seconds = _seconds(backend.get("latency"))
    if failed is not None:
        mode = LM_OFF if failed.get("step") == "connect" else ERROR
        reason = reason or f"{str(failed.get('step')).upper()}_FAILED"
        message, cure = str(failed.get("detail") or message), str(failed.get("cure") or "")
    elif mode == LM_READY and seconds is not None and seconds > SLOWEST_SECONDS:
        mode, reason = ERROR, TOO_SLOW
        message = f"took {seconds:.1f} s to answer, more than {SLOWEST_SECONDS:g} s"
        cure = (
            "close other programs, use a smaller or quantized model, or enable GPU acceleration in LM Studio"
        )
    return Health(
        mode,
        reason,
        message,
        cure,
        base_url=str(backend.get("url") or settings.base_url),
        model=settings.model,
        backend=str(backend.get("name") or ""),
        latency_ms=None if seconds is None else round(seconds * 1000),
        checks=tuple(checks),
        is_tested=is_tested,
    )


def _seconds(duration: object) -> float | None:
    """Read a protobuf Duration's JSON, `0.004s`."""
    try:
        return float(str(duration).removesuffix("s"))
    except ValueError:
        return None
