"""Write the manifest of a constitution and sign it with one key: `python scripts/sign_constitution.py --help`.

By default it re-signs the repository's constitution with the public development key, which only
`trust = development` accepts. Operators give their own key (PEM, PKCS 8, Ed25519) and pin its public half.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from kala.errors import ConstitutionError
from kala.ethics.constitution import DEVELOPMENT_DIRECTORY
from kala.ethics.manifest import MANIFEST_NAME, SIGNATURE_NAME, build_manifest, parse_manifest, sign_manifest

REPOSITORY = Path(__file__).resolve().parents[1]


def sign(directory: Path, key_file: Path, version: str | None) -> str:
    """Write `manifest.json` and `manifest.sig` anew and return the constitution's digest in hex."""
    key = load_pem_private_key(key_file.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ConstitutionError(f"{key_file}: not an Ed25519 private key")
    manifest_path = directory / MANIFEST_NAME
    manifest = build_manifest(
        _contents(directory), version or parse_manifest(manifest_path.read_bytes()).version
    )
    manifest_path.write_bytes(manifest)
    (directory / SIGNATURE_NAME).write_bytes(sign_manifest(manifest, key))
    return parse_manifest(manifest).digest.hex()


def _contents(directory: Path) -> dict[str, bytes]:
    names = {path: path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes()
        for path, name in names.items()
        if name not in (MANIFEST_NAME, SIGNATURE_NAME) and name.split("/")[0] != DEVELOPMENT_DIRECTORY
    }


def main() -> int:
    """Parse the arguments, sign, and print the digest."""
    constitution = REPOSITORY / "constitution"
    parser = argparse.ArgumentParser(description="Sign a constitution.")
    parser.add_argument("--directory", type=Path, default=constitution)
    parser.add_argument("--key", type=Path, default=constitution / "dev" / "development.key")
    parser.add_argument("--version", help="the version to write; the one of the present manifest by default")
    arguments = parser.parse_args()
    sys.stdout.write(f"{sign(arguments.directory, arguments.key, arguments.version)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
