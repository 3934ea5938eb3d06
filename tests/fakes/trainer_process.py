"""The real trainer process on a unix socket, to be started, killed and started again; ethics is a key pair of the test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from services.trainer.config import TrainerSettings
from tests.fakes.audit_process import ROOT
from tests.fakes.clearances import FakeEthics
from tests.fakes.served_trainer import trainer_settings


@dataclass
class TrainerProcess:
    """One trainer over one state directory."""

    directory: Path
    audit_address: str
    ethics: FakeEthics = field(default_factory=FakeEthics)
    process: subprocess.Popen[bytes] | None = None
    settings: TrainerSettings = field(init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.settings = trainer_settings(self.directory, self.ethics)

    @property
    def address(self) -> str:
        return f"unix:{self.directory}/trainer.sock"

    def start(self) -> None:
        given = {
            "ADDRESS": self.address,
            "METRICS_PORT": "off",
            "STATE_DIR": self.settings.state_dir,
            "SIGNING_KEY_FILE": self.settings.signing_key_file,
            "ETHICS_PUBLIC_KEYS": self.settings.ethics_public_keys[0],
            "EMBEDDED_DIR": self.settings.embedded_dir,
            "AUDIT_ADDRESS": self.audit_address,
            "THREADS": "1",
            "DRAIN_SECONDS": "1",
            "BALANCER_WAIT_SECONDS": "0",
        }
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("KALA_")},
            **{f"KALA_TRAINER_{name}": str(value) for name, value in given.items()},
        }
        with (self.directory / "trainer.log").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.trainer"],
                env=environment,
                cwd=ROOT,
                stdout=output,
                stderr=output,
            )

    def kill(self) -> None:
        """SIGKILL, no chance to say anything to anybody."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        return self._end(signal.SIGTERM)

    def output(self) -> str:
        return (self.directory / "trainer.log").read_text()

    def _end(self, number: signal.Signals) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(number)
        status = self.process.wait(60)
        self.process = None
        return status
