"""Who a request is from and about, as the rest of the suite may know it: ids and pseudonyms, never names or secrets."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from gateway.keys import ApiKey
from kala.common.v1 import clearance_pb2
from kala.errors import FailedPreconditionError

PEPPER_BYTES: Final = 32
"""As long as the HMAC's output: guessing it is no easier than guessing a pseudonym."""


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller and the person a request is about."""

    principal: clearance_pb2.Principal
    actor: str
    """Pseudonym of the key, in the log."""

    @property
    def tenant(self) -> str:
        """The tenant that owns what the caller makes."""
        return self.principal.tenant

    @property
    def subject(self) -> str:
        """Pseudonym of the person, under whose key content is encrypted."""
        return self.principal.subject

    def has_scope(self, scope: int) -> bool:
        """Tell whether the key holds a scope (a number of kala.common.v1.Scope)."""
        return scope in self.principal.scopes


class Pseudonyms:
    """Turns names into pseudonyms that only holders of the pepper can link."""

    def __init__(self, pepper: bytes) -> None:
        if len(pepper) < PEPPER_BYTES:
            raise FailedPreconditionError(f"the gateway's pepper must have at least {PEPPER_BYTES} bytes")
        self._pepper = pepper

    def caller(self, key: ApiKey, person: str = "") -> Caller:
        """Name the holder of a key, and the person it acts for: the request's identifier, else the key itself."""
        actor = self.key(key.tenant, key.id)
        subject = self.person(key.tenant, person) if person else actor
        principal = clearance_pb2.Principal(
            id=f"keys/{key.id}",
            tenant=key.tenant,
            # The contract's Scope enum; keys hold only its values.
            scopes=sorted(key.scopes),  # type: ignore[arg-type]
            subject=subject,
        )
        return Caller(principal, actor)

    def key(self, tenant: str, key_id: str) -> str:
        """Name the holder of a key; 64 hex characters."""
        return self._name("key", tenant, key_id)

    def person(self, tenant: str, person: str) -> str:
        """Name a person that requests of a tenant name; 64 hex characters."""
        return self._name("person", tenant, person)

    def seal(self, data: bytes) -> bytes:
        """Authenticate what goes out to a client and must come back unchanged; 32 bytes."""
        return hmac.digest(self._pepper, b"kala-seal-v1\0" + data, "sha256")

    def _name(self, kind: str, *parts: str) -> str:
        message = "\0".join(("kala-pseudonym-v1", kind, *parts)).encode()
        return hmac.new(self._pepper, message, hashlib.sha256).hexdigest()
