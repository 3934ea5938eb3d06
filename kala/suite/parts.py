"""The parts of a suite on one machine: which processes there are, and how each is wired to the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from kala.suite.keyring import Keyring
from kala.suite.layout import StateLayout
from kala.suite.ports import LOOPBACK, PortClaims
from kala.suite.readiness import Probe, grpc_probe, http_probe
from kala.suite.supervisor import Part
from kala.suite.tools_home import TOOLS, ToolsHome
from kala.suite.trainer_home import TRAINER, TrainerHome, bases_directory

GATEWAY: Final = "gateway"
DEVELOPMENT_TRUST: Final = "development"
"""The repository's constitution is signed by a public key; a banner says so at every start."""

GRPC_PARTS: Final = ("audit", "ethics", "inference", TOOLS, TRAINER)
METRICS_PORTS: Final = {
    "gateway": 9461,
    "ethics": 9463,
    "inference": 9464,
    TOOLS: 9465,
    "audit": 9466,
    TRAINER: 9467,
}
PART_NAMES: Final = (GATEWAY, "ethics", "inference", TOOLS, "audit", TRAINER)

_TRUST_VARIABLE: Final = "KALA_ETHICS_TRUST"
_DATA_VARIABLE: Final = "KALA_TRAINER_DATA_DIR"

OFF_PARTS: Final = {
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
    tools: ToolsHome | None = None
    """None: the tools service is off here."""
    trainer: TrainerHome | None = None
    """None: the trainer is off here."""

    @property
    def trusts_development(self) -> bool:
        """Whether ethics will accept the public development key, as far as can be told from here."""
        named = self.ambient.get(_TRUST_VARIABLE)
        return _TRUST_VARIABLE not in self.decided if named is None else named == DEVELOPMENT_TRUST

    def has(self, part: str) -> bool:
        """Whether a part runs here."""
        off = {TOOLS: self.tools is None, TRAINER: self.trainer is None}
        return not off.get(part, False)

    def socket(self, part: str) -> Path:
        """Where a gRPC part listens."""
        folder = self.tools.sockets if part == TOOLS and self.tools is not None else self.sockets
        return folder / f"{part}.sock"

    def address(self, part: str) -> str:
        """The same, as settings spell it."""
        return f"unix:{self.socket(part)}"


def parts_of(wiring: Wiring, claims: PortClaims) -> list[Part]:
    """The processes of the suite, each with its whole environment; `claims` gives their metrics ports."""
    metrics = {name: claims.claim(METRICS_PORTS[name]) for name in PART_NAMES}
    parts = [
        Part(
            name=name,
            module=name if name == GATEWAY else f"services.{name}",
            environment=_environment(wiring, name, metrics[name]),
            probe=_probe(wiring, name),
            prelude=_first_key(wiring) if name == GATEWAY else (),
            metrics_url=f"http://{LOOPBACK}:{metrics[name]}/metrics",
            is_optional=name == TRAINER,
        )
        for name in PART_NAMES
        if wiring.has(name)
    ]
    return [_at_home(part, wiring.tools) for part in parts]


def _at_home(part: Part, home: ToolsHome | None) -> Part:
    """Let the tools service run in its own folder, as its own user; the other parts stay as they are."""
    if part.name != TOOLS or home is None:
        return part
    if home.uid is None:
        return replace(part, is_optional=True)
    # Without the working directory on its path: what lies there is that user's.
    python = (str(home.runtime.python), "-P")
    return replace(part, is_optional=True, python=python, user=home.uid, folder=home.root)


def _environment(wiring: Wiring, name: str, metrics_port: int) -> dict[str, str]:
    """The caller's environment between what it may override and what holds the suite together."""
    prefix = f"KALA_{name.upper()}_"
    ambient = wiring.ambient
    if name == TOOLS and wiring.tools is not None:
        ambient = wiring.tools.environment(ambient)
    defaults = {"METRICS_PORT": str(metrics_port), **_DEFAULTS.get(name, {}), **_adapter_trust(wiring, name)}
    if name == TRAINER and wiring.trainer is not None:
        defaults |= {"BASES_DIR": bases_directory(ambient), "DATA_DIR": str(wiring.trainer.data)}
    if name == GATEWAY and wiring.trainer is not None and _DATA_VARIABLE not in wiring.decided:
        # Where the trainer reads: there the gateway lays files of fine-tuning jobs.
        defaults["TRAINING_DATA_DIR"] = ambient.get(_DATA_VARIABLE, str(wiring.trainer.data))
    return {
        **{
            prefix + field: value for field, value in defaults.items() if prefix + field not in wiring.decided
        },
        **ambient,
        **{prefix + field: value for field, value in _wires(wiring, name).items()},
        # A log file is no terminal, and a traceback must not wait in a buffer when a part is killed.
        "PYTHONUNBUFFERED": "1",
    }


_DEFAULTS: Final[Mapping[str, Mapping[str, str]]] = {
    "ethics": {"TRUST": DEVELOPMENT_TRUST},
    "inference": {"DISCOVER": "true"},
}
"""What the caller's environment may override."""


def _adapter_trust(wiring: Wiring, name: str) -> Mapping[str, str]:
    """Let inference serve what this suite's trainer signs, unless the caller pinned another trainer."""
    prefix, home = "KALA_INFERENCE_", wiring.trainer
    pinned = {*wiring.ambient, *wiring.decided}
    if name != "inference" or home is None or f"{prefix}TRAINER_PUBLIC_KEYS" in pinned:
        return {}
    return {
        "TRAINER_PUBLIC_KEYS": str(wiring.keyring.trainer_public_key),
        "ADAPTERS_DIR": str(home.adapters),
        "ADAPTER_REVOCATIONS": str(home.revocations),
        **({"GATE_PROFILES": ",".join(map(str, home.profiles))} if home.profiles else {}),
    }


def _audit_wires(wiring: Wiring) -> dict[str, str]:
    keyring = wiring.keyring
    wires = {
        "ADDRESS": wiring.address("audit"),
        "DATABASE": str(wiring.layout.audit_database),
        "LOG_KEY_FILE": str(keyring.audit_log_key),
        "KEK_FILE": str(keyring.audit_kek),
        "TILE_TOKEN_FILE": str(keyring.audit_tile_token),
    }
    if keyring.next_audit_log_key.exists():
        wires["NEXT_LOG_KEY_FILE"] = str(keyring.next_audit_log_key)
    return wires


def _gateway_wires(wiring: Wiring) -> dict[str, str]:
    addresses = {
        f"{part.upper()}_ADDRESS": wiring.address(part) for part in (TOOLS, TRAINER) if wiring.has(part)
    }
    return addresses | {
        "HOST": wiring.host,
        "PORT": str(wiring.port),
        "ETHICS_ADDRESS": wiring.address("ethics"),
        "INFERENCE_ADDRESS": wiring.address("inference"),
        "AUDIT_ADDRESS": wiring.address("audit"),
        "DATABASE": str(wiring.layout.gateway_database),
        "PEPPER_FILE": str(wiring.keyring.gateway_pepper),
        "STORE_KEY_FILE": str(wiring.keyring.gateway_store),
        "AUDIT_VKEY_FILE": str(wiring.layout.vkey_file),
        "CHECKPOINT_FILE": str(wiring.layout.last_checkpoint),
    }


def _wires(wiring: Wiring, name: str) -> Mapping[str, str]:
    keyring, data = wiring.keyring, wiring.layout.data
    audit = wiring.address("audit")
    spool = {
        "SPOOL_DIR": str(data / "spool" / name),
        "SPOOL_KEY_FILE": str(keyring.spool_key(name)),
    }
    match name:
        case "audit":
            return _audit_wires(wiring)
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
                "TOOLS_PUBLIC_KEYS": str(keyring.tools_public_key),
                **spool,
            }
        case "tools" if wiring.tools is not None:
            home = wiring.tools
            return {
                "ADDRESS": wiring.address(TOOLS),
                "ETHICS_PUBLIC_KEYS": str(home.ethics_public_key),
                "SIGNING_KEY_FILE": str(home.signing_key),
                "AUDIT_ADDRESS": f"unix:{home.addresses['audit']}",
                "INFERENCE_ADDRESS": f"unix:{home.addresses['inference']}",
                "STATE_DIR": str(home.state),
                # A model must not be shown, as its working directory, what the suite itself lives by.
                "PROTECTED_PATHS": ",".join(str(path) for path in (wiring.layout.root, home.root)),
            }
        case "trainer" if wiring.trainer is not None:
            return _trainer_wires(wiring, wiring.trainer)
        case _:
            return _gateway_wires(wiring) | spool


def _trainer_wires(wiring: Wiring, home: TrainerHome) -> Mapping[str, str]:
    keyring = wiring.keyring
    return {
        "ADDRESS": wiring.address(TRAINER),
        "STATE_DIR": str(home.state),
        "SIGNING_KEY_FILE": str(keyring.trainer_signing_key),
        "ETHICS_PUBLIC_KEYS": str(keyring.ethics_public_key),
        "TOOLS_PUBLIC_KEYS": str(keyring.tools_public_key),
        "AUDIT_VKEY_FILE": str(wiring.layout.vkey_file),
        "REVOCATIONS_FILE": str(home.revocations),
        "AUDIT_ADDRESS": wiring.address("audit"),
        "ETHICS_ADDRESS": wiring.address("ethics"),
        **({"TOOLS_ADDRESS": wiring.address(TOOLS)} if wiring.tools is not None else {}),
        **({"EMBEDDED_DIR": str(home.embedded)} if home.embedded is not None else {}),
        # Only here may an adapter of the embedded demo pass by its small gates.
        "ACCEPT_DEMO_PROFILES": "true",
        "SPOOL_DIR": str(wiring.layout.data / "spool" / TRAINER),
        "SPOOL_KEY_FILE": str(keyring.spool_key(TRAINER)),
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
