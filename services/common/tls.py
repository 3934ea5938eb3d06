"""The three files that make a connection mutually authenticated, read when they are needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc

from kala.errors import FailedPreconditionError


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: this part's certificate chain and key, and the authority that signs every part's certificate."""

    cert_file: Path
    key_file: Path
    ca_file: Path

    @classmethod
    def if_complete(cls, cert_file: Path | None, key_file: Path | None, ca_file: Path | None) -> Self | None:
        """Give the files when all three are named, else None."""
        if cert_file is None or key_file is None or ca_file is None:
            return None
        return cls(cert_file, key_file, ca_file)

    def server_credentials(self) -> grpc.ServerCredentials:
        """Read the files for a server that demands a certificate of every client."""
        return grpc.ssl_server_credentials(
            [(_read(self.key_file), _read(self.cert_file))],
            root_certificates=_read(self.ca_file),
            require_client_auth=True,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Read the files for a client that shows its certificate and trusts only this authority."""
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.ca_file),
            private_key=_read(self.key_file),
            certificate_chain=_read(self.cert_file),
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FailedPreconditionError(f"{path}: cannot be read: {error.strerror}") from error
