"""Settings of the witness, `KALA_WITNESS_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from kala.errors import InvalidArgumentError
from services.common.addresses import TcpAddress, parse_address
from services.common.peers import WITNESS
from services.common.settings import ProcessSettings

SECTION: Final = WITNESS
PORT: Final = 8806
_HOME: Final = Path("~/.local/state/kala-witness").expanduser()


class WitnessSettings(ProcessSettings):
    """What a witness can be told; its home is not the suite's, for it belongs on another machine."""

    address: Annotated[str, Field(description="Where to listen, host:port.")] = f"127.0.0.1:{PORT}"
    key_file: Annotated[
        Path,
        Field(description="Its signing keys, one `PRIVATE+KEY+<name>+…` line each, mode 0600."),
    ] = _HOME / "witness.key"
    state_file: Annotated[
        Path, Field(description="What it cosigned last of each log; its directory is made. Back it up.")
    ] = _HOME / "state.json"
    log_vkey_files: Annotated[
        tuple[Path, ...],
        Field(description="Public keys of the logs that it cosigns, one vkey line each."),
    ] = (_HOME / "logs.vkey",)
    tls_cert_file: Annotated[Path | None, Field(description="PEM chain; unset on this machine only.")] = None
    tls_key_file: Annotated[Path | None, Field(description="PEM key.")] = None

    @model_validator(mode="after")
    def _check_transport(self) -> Self:
        try:
            address = parse_address(self.address)
        except InvalidArgumentError as error:
            raise ValueError(error.message) from error
        if not isinstance(address, TcpAddress):
            raise ValueError("address must be host:port: logs reach a witness over HTTP")  # noqa: TRY004 - pydantic's
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file must be set together")
        if self.tls_cert_file is None and not address.is_local:
            raise ValueError(
                f"address {self.address} can be reached from other machines, so tls_cert_file and tls_key_file must be set"
            )
        return self
