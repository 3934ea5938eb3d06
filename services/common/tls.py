"""The three files that make a connection mutually authenticated, read when they are needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc
from cryptography import x509
from cryptography.x509.oid import NameOID

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

    def own_name(self) -> str:
        """Give the name by which peers know this part: the first DNS name of its certificate, else the common name."""
        try:
            certificate = x509.load_pem_x509_certificates(_read(self.cert_file))[0]
            names: list[str] = list(_alternative_names(certificate))
            names += [
                str(item.value) for item in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            ]
            return names[0]
        except (ValueError, IndexError) as error:
            raise FailedPreconditionError(f"{self.cert_file}: is no certificate with a name") from error

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


def _alternative_names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return names.value.get_values_for_type(x509.DNSName)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FailedPreconditionError(f"{path}: cannot be read: {error.strerror}") from error
