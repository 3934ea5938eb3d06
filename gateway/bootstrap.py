"""Makes the first keys directly in the database, for `kala up` and for a one-shot Job; there is no default key."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from gateway.config import GatewaySettings
from gateway.key_store import KeyStore, position
from gateway.keys import SCOPES, CreatedKey, hash_secret, make_key, scope_numbers
from kala.errors import InternalError, KalaError

OWNER_SCOPES: Final = tuple(SCOPES)
"""One person on one machine is operator, user and auditor; larger installations make separate keys."""

ADMIN_SCOPES: Final = ("chat", "admin")

_PAGE: Final = 1000


def create_key(
    database: str | Path,
    *,
    display_name: str,
    scopes: Sequence[str] = ADMIN_SCOPES,
    tenant: str = "",
    ttl_seconds: float | None = None,
) -> CreatedKey:
    """Create a key in a database, which is made when it does not exist; scopes by name, see `gateway.keys.SCOPES`."""
    created = make_key(
        display_name=display_name,
        scopes=scope_numbers(scopes),
        tenant=tenant,
        ttl=None if ttl_seconds is None else timedelta(seconds=ttl_seconds),
        now=datetime.now(UTC),
        randomness=secrets.token_bytes,
    )
    digest = hash_secret(created.secret)
    if digest is None:
        raise InternalError("a new secret does not have the form of secrets")
    store = KeyStore(database)
    try:
        store.insert(created.key, digest)
    finally:
        store.close()
    return created


def ensure_admin_key(database: str | Path, *, scopes: Sequence[str] = ADMIN_SCOPES) -> CreatedKey | None:
    """Create an administrator's key, or give None when a good one exists already."""
    store = KeyStore(database)
    try:
        if _has_admin(store):
            return None
    finally:
        store.close()
    return create_key(database, display_name="first administrator", scopes=scopes)


def _has_admin(store: KeyStore) -> bool:
    """Tell whether any good key is an administrator's, however many newer ones there are."""
    after, now = None, datetime.now(UTC)
    while keys := store.list(limit=_PAGE, after=after, live_at=now):
        if any(SCOPES["admin"] in key.scopes for key in keys):
            return True
        after = position(keys[-1])
    return False


def main(argv: Sequence[str] | None = None) -> int:
    """Run as a Job: write the first administrator's secret to a file only its owner reads, once."""
    parser = argparse.ArgumentParser(prog="python -m gateway.bootstrap", description=main.__doc__)
    parser.add_argument("--database", default=str(GatewaySettings().database), help="path or SQLAlchemy URL")
    parser.add_argument(
        "--secret-file", type=Path, required=True, help="where the secret goes; must not exist"
    )
    parser.add_argument(
        "--owner", action="store_true", help="always make a key, with every scope, as `kala up` does"
    )
    arguments = parser.parse_args(argv)
    try:
        # Opened first: a key whose secret cannot be written down would be lost.
        descriptor = os.open(arguments.secret_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        sys.stderr.write(f"--secret-file {arguments.secret_file}: {error.strerror}\n")
        return 2
    with os.fdopen(descriptor, "w") as file:
        try:
            created = (
                create_key(arguments.database, display_name="kala up", scopes=OWNER_SCOPES)
                if arguments.owner
                else ensure_admin_key(arguments.database)
            )
        except KalaError as error:
            arguments.secret_file.unlink()
            sys.stderr.write(f"{error.message}\n")
            return 2
        if created is not None:
            file.write(created.secret + "\n")
            return 0
    arguments.secret_file.unlink()
    sys.stderr.write("an administrator's key exists already; nothing was made\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
