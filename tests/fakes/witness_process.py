"""The real witness process on a port of this machine, to be killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kala.audit.cosignature import CosignatureKind, Cosigner, Witness
from kala.audit.note import Verifier
from services.common.tls import TlsFiles

ROOT = Path(__file__).parents[2]
START_SECONDS = 30.0


@dataclass
class WitnessProcess:
    """One witness of these logs."""

    directory: Path
    logs: Sequence[Verifier]
    name: str = "witness.test/w1"
    kinds: Sequence[CosignatureKind] = tuple(CosignatureKind)
    tls: TlsFiles | None = None
    process: subprocess.Popen[bytes] | None = None
    witnesses: list[Witness] = field(init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        cosigners = [Cosigner.of(self.name, kind, os.urandom(32)) for kind in self.kinds]
        self.key_file.touch(mode=0o600)
        self.key_file.write_text("".join(f"{one.private_text()}\n" for one in cosigners))
        (self.directory / "logs.vkey").write_text("".join(f"{log}\n" for log in self.logs))
        self.witnesses = [one.witness for one in cosigners]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    @property
    def key_file(self) -> Path:
        return self.directory / "witness.key"

    @property
    def state_file(self) -> Path:
        return self.directory / "state.json"

    @property
    def url(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://{'127.0.0.1' if self.tls is None else 'localhost'}:{self.port}"

    def start(self, *, is_awaited: bool = True) -> None:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("KALA_")},
            "KALA_WITNESS_ADDRESS": f"127.0.0.1:{self.port}",
            "KALA_WITNESS_KEY_FILE": str(self.key_file),
            "KALA_WITNESS_STATE_FILE": str(self.state_file),
            "KALA_WITNESS_LOG_VKEY_FILES": str(self.directory / "logs.vkey"),
        }
        if self.tls is not None:
            environment["KALA_WITNESS_TLS_CERT_FILE"] = str(self.tls.cert_file)
            environment["KALA_WITNESS_TLS_KEY_FILE"] = str(self.tls.key_file)
        with (self.directory / "witness.log").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.audit.witness"],
                env=environment,
                cwd=ROOT,
                stdout=output,
                stderr=output,
            )
        if is_awaited:
            self._wait()

    def _wait(self) -> None:
        assert self.process is not None
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                assert self.process.poll() is None, self.output()
                assert time.monotonic() < until, self.output()
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        """SIGKILL, no chance to write."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        return self._end(signal.SIGTERM)

    def output(self) -> str:
        return (self.directory / "witness.log").read_text()

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(20)
        self.process = None
        return status
