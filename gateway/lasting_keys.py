"""Work that goes on after its request needs a key that can be looked up later; a token's holder cannot be asked then."""

from __future__ import annotations

from gateway.keys import ApiKey
from gateway.oidc.trust import KEY_PREFIX
from kala.errors import FailedPreconditionError


def require_lasting(key: ApiKey) -> None:
    """Raise FailedPreconditionError, reason API_KEY_NEEDED, where a caller was let in by a token."""
    if key.id.startswith(KEY_PREFIX):
        raise FailedPreconditionError(
            "this goes on after its request, for an API key that is looked up again for every step; "
            "a token cannot be: send an API key (kala_…)",
            reason="API_KEY_NEEDED",
        )
