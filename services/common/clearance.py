"""Clearances: ethics signs that one action may run once; every actor refuses to act without one (design section 4).

`ClearanceSigner` is ethics' side, `ClearanceVerifier` the actor's, and `guard_for` plugs the verifier into the server's
interceptor. No setting turns this off.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from kala.common.v1 import options_pb2
from kala.common.v1.clearance_pb2 import (
    PURPOSE_JUDGE,
    Clearance,
    ClearanceClaims,
    Principal,
    Purpose,
    SealedAction,
)
from kala.errors import ClearanceError
from services.common.keys import key_id
from services.common.nonces import NonceCache
from services.common.peers import ETHICS, LOCAL_PREFIX
from services.common.sealing import action_digest, has_unknown_fields, has_unknown_values, type_url_of

SIGNATURE_DOMAIN: Final = b"kala-clearance-v1\0"
# Long enough for the hop to the actor and a queue in front of it, short enough that a stolen one is soon worthless.
LIFETIME_SECONDS: Final = 60
# Clocks of well-kept machines differ by less; more would stretch every lifetime.
CLOCK_SKEW_SECONDS: Final = 5
NONCE_BYTES: Final = 16
# The only act that ethics clears for itself: a question to its guard model, whose answer returns to it alone.
JUDGE_AUDIENCE: Final = "/kala.inference.v1.InferenceService/Chat"

Clock = Callable[[], float]
"""Unix time in seconds."""


class PeerName(Protocol):
    """What the guard needs to know of a peer."""

    @property
    def name(self) -> str:
        """The name that the transport proved, e.g. "local:gateway" or a certificate's."""
        ...


Guard = Callable[[Message, PeerName, object], Awaitable[None]]


class ClearanceSigner:
    """Mints clearances with ethics' current key."""

    def __init__(
        self,
        private_key: Ed25519PrivateKey,
        *,
        clock: Clock = time.time,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._private_key = private_key
        self._clock = clock
        self._random_bytes = random_bytes
        self.public_key = private_key.public_key()
        self.key_id = key_id(self.public_key)

    def mint(
        self,
        *,
        decision_id: str,
        audience: str,
        action: AnyMessage,
        constitution_digest: bytes,
        presenter: str,
        principal: Principal,
        purpose: Purpose.ValueType,
    ) -> Clearance:
        """Signs that `presenter` may have exactly this action run by `audience`, once, within LIFETIME_SECONDS."""
        issued_at = self._clock()
        claims = ClearanceClaims(
            decision_id=decision_id,
            audience=audience,
            action_digest=action_digest(action),
            constitution_digest=constitution_digest,
            presenter=presenter,
            principal=principal,
            purpose=purpose,
            issued_at=_timestamp(issued_at),
            expires_at=_timestamp(issued_at + LIFETIME_SECONDS),
            nonce=self._random_bytes(NONCE_BYTES),
        ).SerializeToString(deterministic=True)
        signature = self._private_key.sign(SIGNATURE_DOMAIN + claims)
        return Clearance(claims=claims, signature=signature, key_id=self.key_id)


@dataclass(frozen=True, slots=True)
class VerifiedClearance:
    """A clearance that held when it arrived, and the action it covers."""

    claims: ClearanceClaims
    action: AnyMessage


class ClearanceVerifier:
    """Checks clearances for one actor process. `public_keys` are ethics' {current, next}, pinned by the operator."""

    def __init__(
        self,
        public_keys: Mapping[str, Ed25519PublicKey],
        *,
        nonces: NonceCache | None = None,
        clock: Clock = time.time,
    ) -> None:
        self._public_keys = dict(public_keys)
        self._nonces = NonceCache() if nonces is None else nonces
        self._clock = clock
        # The nonces of an earlier life of this replica are forgotten, so its clearances are refused.
        # Rounded down to the microsecond, the precision of `issued_at`.
        self._started_at = math.floor(clock() * 1_000_000) / 1_000_000

    def verify(
        self, sealed: SealedAction, *, audience: str, presenter: str, expected_type: str
    ) -> VerifiedClearance:
        """Returns the clearance or raises ClearanceError with the reason; claims its nonce.

        `audience` is the full RPC name, `presenter` the peer's proven name, `expected_type` the action's full message
        name. The nonce is claimed last, so a clearance that fails otherwise is not spent.
        """
        claims = self._verified_claims(sealed)
        _require(
            claims.audience == audience,
            "CLEARANCE_WRONG_AUDIENCE",
            f"it is for {claims.audience}, not {audience}",
        )
        _require(
            claims.presenter == presenter,
            "CLEARANCE_WRONG_PRESENTER",
            f"it was given to {claims.presenter}, not to {presenter}",
        )
        _require_purpose(claims)
        _require(
            sealed.action.type_url == type_url_of(expected_type),
            "CLEARANCE_WRONG_TYPE",
            f"the action must be a {expected_type}",
        )
        _require(
            secrets.compare_digest(claims.action_digest, action_digest(sealed.action)),
            "CLEARANCE_ALTERED",
            "the action is not the one that was judged",
        )
        self._require_in_time(claims)
        self._nonces.claim(
            claims.nonce, forget_at=_seconds(claims.expires_at) + CLOCK_SKEW_SECONDS, now=self._clock()
        )
        return VerifiedClearance(claims, sealed.action)

    def recheck(self, verified: VerifiedClearance) -> None:
        """Raises ClearanceError when the clearance ended while it waited; called before the first upstream byte."""
        self._require_in_time(verified.claims)

    def _verified_claims(self, sealed: SealedAction) -> ClearanceClaims:
        clearance = sealed.clearance
        _require(
            bool(clearance.claims), "CLEARANCE_MISSING", "this call acts, so it needs a clearance from ethics"
        )
        public_key = self._public_keys.get(clearance.key_id)
        if public_key is None:
            raise ClearanceError(
                f"the clearance is signed by unknown key {clearance.key_id[:32]!r}",
                reason="CLEARANCE_UNKNOWN_KEY",
            )
        try:
            public_key.verify(clearance.signature, SIGNATURE_DOMAIN + clearance.claims)
            claims = ClearanceClaims.FromString(clearance.claims)
        except (InvalidSignature, DecodeError) as error:
            raise ClearanceError(
                "the clearance's signature does not hold", reason="CLEARANCE_FORGED"
            ) from error
        is_known = not has_unknown_fields(claims) and not has_unknown_values(claims)
        _require(is_known, "CLEARANCE_UNKNOWN_FIELDS", "ethics is newer than this service")
        _require(len(claims.nonce) == NONCE_BYTES, "CLEARANCE_FORGED", "its nonce has a wrong length")
        return claims

    def _require_in_time(self, claims: ClearanceClaims) -> None:
        now, issued, expires = self._clock(), _seconds(claims.issued_at), _seconds(claims.expires_at)
        _require(
            expires - issued <= LIFETIME_SECONDS, "CLEARANCE_FORGED", f"it lives over {LIFETIME_SECONDS} s"
        )
        _require(
            now <= expires + CLOCK_SKEW_SECONDS, "CLEARANCE_EXPIRED", "it has expired; ask for a new one"
        )
        _require(
            now >= issued - CLOCK_SKEW_SECONDS,
            "CLEARANCE_NOT_YET_VALID",
            "it is from the future; check the machines' clocks",
        )
        _require(
            issued >= self._started_at,
            "CLEARANCE_BEFORE_START",
            "it was issued before this replica started; ask for a new one",
        )


_current: ContextVar[VerifiedClearance] = ContextVar("kala_clearance")


def current_clearance() -> VerifiedClearance:
    """The clearance of the guarded call that is being served; LookupError anywhere else, which is a bug."""
    return _current.get()


def guard_for(verifier: ClearanceVerifier, files: Iterable[FileDescriptor]) -> Callable[[str], Guard | None]:
    """Gives the interceptor its guard for every RPC of these contracts that carries `(kala.common.v1.guard)`.

    The guard verifies the request's `sealed` field before the handler runs and leaves it in `current_clearance()`.
    """
    actions = guarded_methods(files)

    def guard_of(method: str) -> Guard | None:
        expected = actions.get(method)
        if expected is None:
            return None

        async def guard(request: Message, peer: PeerName, _context: object) -> None:
            sealed: SealedAction = request.sealed  # type: ignore[attr-defined]  # the contract test requires the field
            _current.set(
                verifier.verify(sealed, audience=method, presenter=peer.name, expected_type=expected)
            )

        return guard

    return guard_of


def guarded_methods(files: Iterable[FileDescriptor]) -> dict[str, str]:
    """Full RPC name -> full name of its action, for every guarded RPC of these contracts."""
    return {
        method_name(method): method.GetOptions().Extensions[options_pb2.guard].action
        for file in files
        for service in file.services_by_name.values()
        for method in service.methods
        if method.GetOptions().HasExtension(options_pb2.guard)
    }


def method_name(method: MethodDescriptor) -> str:
    """The full RPC name as gRPC writes it, e.g. "/kala.inference.v1.InferenceService/Chat"."""
    return f"/{method.containing_service.full_name}/{method.name}"


def _require_purpose(claims: ClearanceClaims) -> None:
    """Ethics acts only to judge, and nobody else does: such a call is never judged, so its answer must reach no one else."""
    is_judging = claims.purpose == PURPOSE_JUDGE
    _require(
        is_judging == (claims.presenter.removeprefix(LOCAL_PREFIX) == ETHICS),
        "CLEARANCE_WRONG_PURPOSE",
        f"{claims.presenter} may not present one for {Purpose.Name(claims.purpose)}",
    )
    _require(
        not is_judging or claims.audience == JUDGE_AUDIENCE,
        "CLEARANCE_WRONG_PURPOSE",
        f"judging takes no {claims.audience}",
    )


def _require(holds: bool, reason: str, problem: str) -> None:  # noqa: FBT001 - reads as the condition it states
    if not holds:
        raise ClearanceError(f"the clearance is refused: {problem}", reason=reason)


def _timestamp(seconds: float) -> Timestamp:
    nanos = round(seconds * 1_000_000) * 1_000
    return Timestamp(seconds=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)


def _seconds(timestamp: Timestamp) -> float:
    return timestamp.seconds + timestamp.nanos / 1e9
