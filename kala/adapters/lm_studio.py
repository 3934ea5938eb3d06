"""`lm_studio_complete` and `lm_studio_health`, as RFC-080 has them; every prompt is judged, logged and receipted.

Nothing here connects to LM Studio: the suite's inference service does. Both functions return a dictionary and raise
nothing that an outage may cause. The suite is the one that KALA_URL names or that runs on this machine, else a private
one, which is started at the first call and ends with the process.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, TypeVar

from kala.adapters.lm_studio_state import (
    ERROR,
    NOT_CONFIGURED,
    SWITCHED_OFF,
    Health,
    health_through,
    switched_off,
)
from kala.adapters.settings import (
    KEY_NAME,
    LMStudioSettings,
    Named,
    get_lm_studio_base_url,
    get_lm_studio_model,
    get_lm_studio_timeout,
    lm_studio_settings,
)
from kala.core.lmstudio_adapter import LOCAL_MODEL, LMStudioConfig, metadata_of
from kala.errors import DeadlineExceededError, FailedPreconditionError, KalaError, UnavailableError
from kala.target import URL_VARIABLE, find_target

if TYPE_CHECKING:
    from kala.core.connection import Connection
    from kala.replies import ChatReply
    from kala.target import Target

__all__ = [
    "get_lm_studio_base_url",
    "get_lm_studio_model",
    "get_lm_studio_timeout",
    "lm_studio_complete",
    "lm_studio_health",
]

MODEL_NOT_SET: Final = "LM_STUDIO_MODEL_NOT_SET"

_GONE: Final = frozenset({"GATEWAY_UNREACHABLE", "CONNECTION_LOST"})
"""The suite that was open has ended; the next call finds or starts another."""

# `Any`: RFC-080's results are open dictionaries.
Result = dict[str, Any]
Value = TypeVar("Value")


def lm_studio_complete(
    prompt: str,
    model: str | None = None,
    temperature: float = 0.7,
    max_tokens: int = 1024,
) -> Result:
    """Answer one prompt with LM Studio.

    Returns `{"ok", "response", "error", "metadata"}`; the metadata always holds `model`, `latency_ms` (whole
    milliseconds, judging included) and `tokens_per_second`, on failure `reason`. A refusal by the Five Laws is an answer:
    `ok` with `metadata["blocked"]`, so that no caller takes it for an outage and sends the prompt elsewhere.
    """
    started = time.monotonic()
    name = model
    try:
        settings = lm_studio_settings()
        name = model or settings.model
        reply = _ask(settings, _eligible(settings, name), prompt, temperature, max_tokens)
    except KalaError as error:
        return {
            "ok": False,
            "response": None,
            "error": error.message,
            "metadata": {
                "model": name or "",
                "latency_ms": _milliseconds(started),
                "tokens_per_second": 0.0,
                "reason": error.reason,
            },
        }
    return {
        "ok": True,
        "response": reply.text,
        "error": None,
        "metadata": _metadata(reply, prompt, _milliseconds(started)),
    }


def lm_studio_health(*, at: Target | None = None) -> Result:
    """Say whether LM Studio can be used now: `{"ok", "mode": "lm_ready" | "lm_off" | "error", "details"}`.

    `lm_ready`: it answers, its model is loaded and generated a token. `lm_off`: switched off or not running. `error`: it runs
    but cannot be used, or the suite cannot tell. `details` holds `reason`, `message` and `cure`. `at` names the suite to ask.
    """
    try:
        settings = lm_studio_settings()
        if not settings.is_enabled:
            return switched_off(settings).as_dict()
        return _health(settings, at).as_dict()
    except KalaError as error:
        return Health(ERROR, error.reason, error.message).as_dict()


def _health(settings: LMStudioSettings, at: Target | None) -> Health:
    from kala.client import KalaClient

    def through(connection: Connection) -> Health:
        return health_through(connection.client, settings)

    if at is None and _SUITE.is_open:
        return _SUITE.use(settings, through)
    named = at or _named_target()
    target = named or _running_target()
    if target is None:
        return _SUITE.use(settings, through)
    with KalaClient(target) as client:
        health = health_through(client, settings)
    if named is None and settings.is_url_named and health.reason == NOT_CONFIGURED:
        # The suite of this machine knows nothing of the LM Studio that this program means; one of its own will.
        return _SUITE.use(settings, through)
    return health


def _named_target() -> Target | None:
    return find_target() if os.environ.get(URL_VARIABLE) else None


def _running_target() -> Target | None:
    try:
        return find_target()
    except KalaError:
        return None


def _eligible(settings: LMStudioSettings, model: str | None) -> str:
    """Give the model to ask for; FailedPreconditionError where RFC-080 says not to use LM Studio."""
    if not settings.is_enabled:
        raise FailedPreconditionError(
            "LM Studio is switched off by USE_LM_STUDIO; set it to 1, or unset it", reason=SWITCHED_OFF
        )
    if not model:
        raise FailedPreconditionError(
            "LM_STUDIO_MODEL is not set; set it to a model of `kala models list`, or pass model=",
            reason=MODEL_NOT_SET,
        )
    return model


def _ask(
    settings: LMStudioSettings, model: str, prompt: str, temperature: float, max_tokens: int
) -> ChatReply:
    def ask(connection: Connection) -> ChatReply:
        return connection.ask(
            [{"role": "user", "content": prompt}],
            model=model,
            temperature=temperature,
            max_new_tokens=max_tokens,
            timeout_seconds=settings.timeout_seconds,
        )

    try:
        return _SUITE.use(settings, ask)
    except DeadlineExceededError as error:
        raise DeadlineExceededError(
            f"LM Studio did not answer within {settings.timeout_seconds} s; LM_STUDIO_TIMEOUT_SECONDS gives it longer, "
            "a smaller model or fewer max_tokens make it faster",
            reason=error.reason,
        ) from error


def _metadata(reply: ChatReply, prompt: str, latency_ms: int) -> Result:
    seconds = max(latency_ms, 1) / 1000
    return {
        **metadata_of(reply),
        "latency_ms": latency_ms,
        "tokens_per_second": round(reply.output_tokens / seconds, 3),
        "prompt_length": len(prompt),
        "response_length": len(reply.text),
        "overhead_ms": reply.overhead_ms,
    }


def _milliseconds(started: float) -> int:
    return round((time.monotonic() - started) * 1000)


class _SharedSuite:
    """The connection that the functions of this module share, because their caller has nothing to hold it in."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._opened: tuple[LMStudioConfig, Connection] | None = None

    def use(self, settings: LMStudioSettings, act: Callable[[Connection], Value]) -> Value:
        """Act with an open connection; one whose suite has ended is opened anew, once."""
        config = LMStudioConfig(
            base_url=settings.base_url,
            api_key=Named().value((KEY_NAME,)) or LMStudioConfig().api_key,
            model=settings.model or LOCAL_MODEL,
        )
        for is_last in (False, True):
            connection, is_new = self._connection(config)
            try:
                return act(connection)
            except KalaError as error:
                if is_last or is_new or error.reason not in _GONE:
                    raise
                self.close()
        raise UnavailableError("unreachable")

    @property
    def is_open(self) -> bool:
        """Whether a call has opened it already."""
        return self._opened is not None

    def close(self) -> None:
        """Close the connection, and stop the private suite if there is one."""
        with self._lock:
            self._close()

    def _connection(self, config: LMStudioConfig) -> tuple[Connection, bool]:
        from kala.core.connection import connect

        with self._lock:
            if self._opened is not None and self._opened[0] == config:
                return self._opened[1], False
            self._close()
            connection = self._stack.enter_context(connect(lmstudio_config=config))
            self._opened = (config, connection)
            return connection, True

    def _close(self) -> None:
        self._opened = None
        self._stack.close()


_SUITE: Final = _SharedSuite()
atexit.register(_SUITE.close)
