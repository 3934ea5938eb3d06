"""The real audit process on a unix socket, to be started, killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kala.audit.note import Signer, Verifier
from services.common.secret_keys import load_or_create_secret_key

ORIGIN = "kala.test/audit"
ROOT = Path(__file__).parents[2]


@dataclass
class AuditProcess:
    """One audit service over one database; `module` names what runs, `url` a database that is no file of its own.

    With `keys_of`, it is a further replica of that one's log.
    """

    directory: Path
    module: str = "services.audit"
    url: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    keys_of: AuditProcess | None = None
    process: subprocess.Popen[bytes] | None = None
    keys: Path = field(init=False)
    verifier: Verifier = field(init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.keys_of is not None:
            self.keys, self.verifier = self.keys_of.keys, self.keys_of.verifier
            return
        self.keys = self.directory
        signer = Signer.of(ORIGIN, os.urandom(32))
        key = self.directory / "audit-log.key"
        key.touch(mode=0o600)
        key.write_text(signer.private_text() + "\n")
        load_or_create_secret_key(self.directory / "audit-kek.key")
        self.verifier = signer.verifier

    @property
    def database(self) -> Path:
        return self.directory / "audit.db"

    @property
    def address(self) -> str:
        return f"unix:{self.directory}/audit.sock"

    def start(self) -> None:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("KALA_")},
            "KALA_AUDIT_ADDRESS": self.address,
            "KALA_AUDIT_METRICS_PORT": "off",
            "KALA_AUDIT_DATABASE": self.url or str(self.database),
            "KALA_AUDIT_LOG_KEY_FILE": str(self.keys / "audit-log.key"),
            "KALA_AUDIT_KEK_FILE": str(self.keys / "audit-kek.key"),
            "KALA_AUDIT_LOG_LEVEL": "error",
            "KALA_AUDIT_DRAIN_SECONDS": "1",
            **self.environment,
        }
        with (self.directory / "audit.log").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module], env=environment, cwd=ROOT, stdout=output, stderr=output
            )

    def kill(self) -> None:
        """What a power cut of the process is: SIGKILL, no chance to write."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        return self._end(signal.SIGTERM)

    def output(self) -> str:
        return (self.directory / "audit.log").read_text()

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(20)
        self.process = None
        return status
