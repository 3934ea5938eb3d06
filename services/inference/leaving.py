"""Decides whether a request's data may leave the machines of whoever runs this.  Pure; what is not allowed stays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kala.errors import FailedPreconditionError, KalaError
from services.inference.backend import Identity, Kind, ModelInfo, find_model

REMOTE_NOT_ALLOWED: Final = "REMOTE_NOT_ALLOWED"

_STAYS: Final = (
    "is outside this machine, and the request does not allow data to leave; name it as the provider"
)


def may_leave(model: str, here: Iterable[ModelInfo], *, allow_remote: bool) -> bool:
    """Tell whether the request allows data to leave.

    Takes no leave from a local model's own id that begins as a remote backend is called: "openai/gpt-oss-20b".  `here`
    are the models of all backends that are not remote.
    """
    prefix, slash, _ = model.partition("/")
    names_remote = bool(slash) and any(kind.value == prefix and kind.is_remote for kind in Kind)
    return allow_remote and not (names_remote and find_model(here, model))


def refusal_to_leave(
    backend: Identity, models: Iterable[ModelInfo], *, model: str, provider: str, allow_remote: bool
) -> tuple[str, KalaError | None] | None:
    """Say why nothing may be sent to a backend, with what to raise where it was meant; None where it may.

    No name brings a request to a remote backend that it does not allow.
    """
    if not backend.is_remote or allow_remote:
        return None
    is_meant = (
        provider == backend.kind.value
        or model.partition("/")[0] == backend.name
        or find_model(models, model) is not None
    )
    error = FailedPreconditionError(f"{backend.name} {_STAYS}", reason=REMOTE_NOT_ALLOWED)
    return _STAYS, error if is_meant else None
