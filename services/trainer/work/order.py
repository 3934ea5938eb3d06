"""What a work process is told to do: `order.json`, beside the sealed action that permits it.

The process trusts neither: it verifies ethics' signature again, the audience and the action's digest. The minute that a
clearance lasts is over by then; what bounds the work instead is the order's deadline.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from cryptography.exceptions import InvalidSignature
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message

from kala.common.v1.clearance_pb2 import ClearanceClaims, Principal, SealedAction
from kala.errors import ClearanceError, FailedPreconditionError
from services.common.clearance import SIGNATURE_DOMAIN
from services.common.keys import load_public_keys
from services.common.sealing import action_digest, has_unknown_fields, unpack_strictly
from services.common.tls import TlsFiles
from services.trainer.work.results import write_atomically

ORDER: Final = "order.json"
SEALED: Final = "sealed.binpb"

TRAIN: Final = "train"
BUILD: Final = "build"
GENERATE: Final = "generate"
EXPORT: Final = "export"
KINDS: Final = (TRAIN, BUILD, GENERATE, EXPORT)

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class BasePlace:
    """A base model and where its files are."""

    name: str
    directory: Path
    digest: bytes


@dataclass(frozen=True, slots=True)
class DatasetPlace:
    """A dataset of a job and where its files are; `use` is a kala.common.v1.DatasetUse."""

    name: str
    directory: Path
    use: int
    weight: float
    digest: bytes = b""
    """SHA-256 of its manifest.json."""


@dataclass(frozen=True, slots=True)
class AdapterPlace:
    """An adapter and where its files are."""

    name: str
    directory: Path
    digest: bytes = b""
    """SHA-256 of its signed manifest."""


@dataclass(frozen=True, slots=True)
class ServicePlaces:
    """How a process reaches the other services; an address that is empty is not to be had."""

    peer_name: str = "trainer"
    ethics_address: str = ""
    tools_address: str = ""
    tls: TlsFiles | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """One piece of work."""

    kind: str
    """One of KINDS."""
    name: str
    """What it is for, e.g. "trainingJobs/<32 hex>"."""
    folder: Path
    principal: Principal
    deadline: float
    """Unix time in seconds when it must have ended."""
    action: AnyMessage | None = None
    """The cleared action; None for unguarded work (exports)."""
    decision_id: str = ""
    constitution_digest: bytes = b""
    base: BasePlace | None = None
    datasets: Sequence[DatasetPlace] = ()
    parents: Sequence[AdapterPlace] = ()
    adapter: AdapterPlace | None = None
    """What is evaluated or exported."""
    services: ServicePlaces = field(default_factory=ServicePlaces)
    threads: int = 1
    """CPU threads that it may use."""
    memory_bytes: int = 0
    """Most memory of its own; 0 for no bound."""
    settings: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON of the kind's own
    """Whatever else the kind needs, as JSON."""

    def parse(self, message_class: type[M]) -> M:
        """The cleared action; raises InvalidArgumentError for another type or unknown parts."""
        if self.action is None:
            raise FailedPreconditionError(f"{self.folder / ORDER}: comes without an action")
        return unpack_strictly(self.action, message_class)


def write_order(
    order: Order, *, sealed: SealedAction | None, audience: str, public_keys: Sequence[Path]
) -> None:
    """Write the order and its permission into its folder, which is made private; rewriting it resumes the work."""
    order.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # One that was there already may be open to others.
    order.folder.chmod(0o700)
    if sealed is not None:
        write_atomically(order.folder / SEALED, sealed.SerializeToString())
    document = {
        "kind": order.kind,
        "name": order.name,
        "principal": order.principal.SerializeToString(deterministic=True).hex(),
        "deadline": order.deadline,
        "guarded": sealed is not None,
        "audience": audience,
        "public_keys": [str(path) for path in public_keys],
        "base": None if order.base is None else _place(order.base),
        "datasets": [{**_place(each), "use": each.use, "weight": each.weight} for each in order.datasets],
        "parents": [_place(each) for each in order.parents],
        "adapter": None if order.adapter is None else _place(order.adapter),
        "services": {
            "peer_name": order.services.peer_name,
            "ethics_address": order.services.ethics_address,
            "tools_address": order.services.tools_address,
            "tls": _tls_paths(order.services.tls),
        },
        "threads": order.threads,
        "memory_bytes": order.memory_bytes,
        "settings": dict(order.settings),
    }
    write_atomically(order.folder / ORDER, json.dumps(document, indent=1).encode())


def read_order(folder: Path) -> Order:
    """Read the order in `folder` and verify what permits it.

    Raises FailedPreconditionError for an order that cannot be read, ClearanceError for one that ethics did not clear.
    """
    try:
        raw = json.loads((folder / ORDER).read_bytes())
        principal = Principal.FromString(bytes.fromhex(raw["principal"]))
        claims, action = (None, None) if not raw["guarded"] else _cleared(folder, raw)
        if claims is not None and claims.principal != principal:
            raise ClearanceError("the clearance was given to somebody else", reason="CLEARANCE_ALTERED")
        return _order_of(folder, raw, principal, claims, action)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, DecodeError) as error:
        raise FailedPreconditionError(f"{folder / ORDER} cannot be used: {error}") from error


def _order_of(
    folder: Path,
    raw: dict[str, Any],  # Any: checked JSON
    principal: Principal,
    claims: ClearanceClaims | None,
    action: AnyMessage | None,
) -> Order:
    services = raw["services"]
    if raw["kind"] not in KINDS:
        raise ValueError(f"unknown kind {raw['kind']!r}")
    return Order(
        kind=raw["kind"],
        name=raw["name"],
        folder=folder,
        principal=principal,
        deadline=float(raw["deadline"]),
        action=action,
        decision_id="" if claims is None else claims.decision_id,
        constitution_digest=b"" if claims is None else claims.constitution_digest,
        base=None if raw["base"] is None else BasePlace(**_placed(raw["base"])),
        datasets=tuple(
            DatasetPlace(**_placed(each), use=int(each["use"]), weight=float(each["weight"]))
            for each in raw["datasets"]
        ),
        parents=tuple(AdapterPlace(**_placed(each)) for each in raw["parents"]),
        adapter=None if raw["adapter"] is None else AdapterPlace(**_placed(raw["adapter"])),
        services=ServicePlaces(
            peer_name=services["peer_name"],
            ethics_address=services["ethics_address"],
            tools_address=services["tools_address"],
            tls=None if services["tls"] is None else TlsFiles(*map(Path, services["tls"])),
        ),
        threads=int(raw["threads"]),
        memory_bytes=int(raw["memory_bytes"]),
        settings=raw["settings"],
    )


def _cleared(folder: Path, raw: dict[str, Any]) -> tuple[ClearanceClaims, AnyMessage]:  # Any: checked JSON
    """Verify the sealed action as far as it still can be: the service has checked its minute and claimed its nonce."""
    sealed = SealedAction.FromString((folder / SEALED).read_bytes())
    key = load_public_keys(Path(path) for path in raw["public_keys"]).get(sealed.clearance.key_id)
    if key is None:
        raise ClearanceError("the order is signed by an unknown key", reason="CLEARANCE_UNKNOWN_KEY")
    try:
        key.verify(sealed.clearance.signature, SIGNATURE_DOMAIN + sealed.clearance.claims)
        claims = ClearanceClaims.FromString(sealed.clearance.claims)
    except (InvalidSignature, DecodeError) as error:
        raise ClearanceError(
            "the order's clearance has a signature that does not hold", reason="CLEARANCE_FORGED"
        ) from error
    if has_unknown_fields(claims) or claims.audience != raw["audience"]:
        raise ClearanceError("the order's clearance is for another call", reason="CLEARANCE_WRONG_AUDIENCE")
    if not secrets.compare_digest(claims.action_digest, action_digest(sealed.action)):
        raise ClearanceError("the order's action is not the one judged", reason="CLEARANCE_ALTERED")
    return claims, sealed.action


def _place(place: BasePlace | DatasetPlace | AdapterPlace) -> dict[str, Any]:  # Any: JSON
    return {"name": place.name, "directory": str(place.directory), "digest": place.digest.hex()}


def _placed(raw: dict[str, Any]) -> dict[str, Any]:  # Any: JSON in, arguments of a place out
    return {
        "name": str(raw["name"]),
        "directory": Path(raw["directory"]),
        "digest": bytes.fromhex(raw["digest"]),
    }


def _tls_paths(tls: TlsFiles | None) -> list[str] | None:
    return None if tls is None else [str(tls.cert_file), str(tls.key_file), str(tls.ca_file)]
