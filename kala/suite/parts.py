"""The parts of a suite on one machine: which processes there are, and how each is wired to the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kala.suite.keyring import Keyring
from kala.suite.layout import StateLayout
from kala.suite.ports import LOOPBACK, PortClaims
from kala.suite.readiness import Probe, grpc_probe, http_probe
from kala.suite.supervisor import Part

GATEWAY: Final = "gateway"
DEVELOPMENT_TRUST: Final = "development"
"""The repository's constitution is signed by a public key; a banner says so at every start."""

GRPC_PARTS: Final = ("audit", "ethics", "inference")
METRICS_PORTS: Final = {"gateway": 9461, "ethics": 9463, "inference": 9464, "audit": 9466}
PART_NAMES: Final = (GATEWAY, "ethics", "inference", "audit")

_TRUST_VARIABLE: Final = "KALA_ETHICS_TRUST"

OFF_PARTS: Final = {
    "tools": "comes with its own release",
    "trainer": "comes with its own release",
    "console": "comes with its own release",
}
"""What the design has and this release does not start, with the reason shown to the user."""


@dataclass(frozen=True, slots=True)
class Wiring:
    """What the parts of one suite need to find each other."""

    layout: StateLayout
    sockets: Path
    keyring: Keyring
    host: str
    port: int
    ambient: Mapping[str, str]
    """The caller's environment: it may change everything but the wiring itself."""
    decided: frozenset[str] = frozenset()
    """Variables that the caller's files set: defaults keep silent about them."""

    @property
    def trusts_development(self) -> bool:
        """Whether ethics will accept the public development key, as far as can be told from here."""
        named = self.ambient.get(_TRUST_VARIABLE)
        return _TRUST_VARIABLE not in self.decided if named is None else named == DEVELOPMENT_TRUST

    def socket(self, part: str) -> Path:
        """Where a gRPC part listens."""
        return self.sockets / f"{part}.sock"

    def address(self, part: str) -> str:
        """The same, as settings spell it."""
        return f"unix:{self.socket(part)}"


def parts_of(wiring: Wiring, claims: PortClaims) -> list[Part]:
    """The processes of the suite, each with its whole environment; `claims` gives their metrics ports."""
    metrics = {name: claims.claim(METRICS_PORTS[name]) for name in PART_NAMES}
    return [
        Part(
            name=name,
            module=name if name == GATEWAY else f"services.{name}",
            environment=_environment(wiring, name, metrics[name]),
            probe=_probe(wiring, name),
            prelude=_first_key(wiring) if name == GATEWAY else (),
            metrics_url=f"http://{LOOPBACK}:{metrics[name]}/metrics",
        )
        for name in PART_NAMES
    ]


def _environment(wiring: Wiring, name: str, metrics_port: int) -> dict[str, str]:
    """The caller's environment between what it may override and what holds the suite together."""
    prefix = f"KALA_{name.upper()}_"
    defaults = {"METRICS_PORT": str(metrics_port), **_DEFAULTS.get(name, {})}
    return {
        **{
            prefix + field: value for field, value in defaults.items() if prefix + field not in wiring.decided
        },
        **wiring.ambient,
        **{prefix + field: value for field, value in _wires(wiring, name).items()},
        # A log file is no terminal, and a traceback must not wait in a buffer when a part is killed.
        "PYTHONUNBUFFERED": "1",
    }


_DEFAULTS: Final[Mapping[str, Mapping[str, str]]] = {
    "ethics": {"TRUST": DEVELOPMENT_TRUST},
    "inference": {"DISCOVER": "true"},
}
"""What the caller's environment may override."""


def _wires(wiring: Wiring, name: str) -> Mapping[str, str]:
    keyring, data = wiring.keyring, wiring.layout.data
    audit = wiring.address("audit")
    spool = {
        "SPOOL_DIR": str(data / "spool" / name),
        "SPOOL_KEY_FILE": str(keyring.spool_key(name)),
    }
    match name:
        case "audit":
            return {
                "ADDRESS": audit,
                "DATABASE": str(wiring.layout.audit_database),
                "LOG_KEY_FILE": str(keyring.audit_log_key),
                "KEK_FILE": str(keyring.audit_kek),
            }
        case "ethics":
            return {
                "ADDRESS": wiring.address("ethics"),
                "SIGNING_KEY_FILE": str(keyring.ethics_signing_key),
                "INFERENCE_ADDRESS": wiring.address("inference"),
                "AUDIT_ADDRESS": audit,
                **spool,
            }
        case "inference":
            return {
                "ADDRESS": wiring.address("inference"),
                "ETHICS_PUBLIC_KEYS": str(keyring.ethics_public_key),
                "AUDIT_ADDRESS": audit,
                "AUDIT_VKEY_FILE": str(wiring.layout.vkey_file),
                # Only here may an adapter of the embedded demo serve by its small gates.
                "ALLOW_DEMO_PROFILES": "true",
                **spool,
            }
        case _:
            return {
                "HOST": wiring.host,
                "PORT": str(wiring.port),
                "ETHICS_ADDRESS": wiring.address("ethics"),
                "INFERENCE_ADDRESS": wiring.address("inference"),
                "AUDIT_ADDRESS": audit,
                "DATABASE": str(wiring.layout.gateway_database),
                "PEPPER_FILE": str(keyring.gateway_pepper),
                "AUDIT_VKEY_FILE": str(wiring.layout.vkey_file),
                "CHECKPOINT_FILE": str(wiring.layout.last_checkpoint),
                **spool,
            }


def _first_key(wiring: Wiring) -> tuple[str, ...]:
    """What makes the command line's API key; nothing when both the key and the database that knows it exist."""
    if wiring.keyring.cli_key.exists() and wiring.layout.gateway_database.exists():
        return ()
    return (
        "gateway.bootstrap",
        "--database",
        str(wiring.layout.gateway_database),
        "--secret-file",
        str(wiring.keyring.cli_key),
        "--owner",
    )


def _probe(wiring: Wiring, name: str) -> Probe:
    if name == GATEWAY:
        return http_probe(_dialable(wiring.host), wiring.port)
    return grpc_probe(wiring.socket(name))


def _dialable(host: str) -> str:
    """Where to reach a server that listens on every address."""
    return {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
