"""Write the manifest of the repository's constitution anew and sign it: `python scripts/sign_constitution.py --help`.

For work on the constitution in this repository, with the public development key, which only `trust = development`
accepts. Versions that count are made with `kala ethics amend`, which keeps the version that they amend.
"""

from __future__ import annotations

import argparse
import datetime as dt
import sys
from pathlib import Path

from kala.ethics.amendment import load_signing_key, sign, write_manifest
from kala.ethics.constitution import read_manifest, read_unverified
from kala.ethics.manifest import parse_manifest

CONSTITUTION = Path(__file__).resolve().parents[1] / "constitution"


def main() -> int:
    """Parse the arguments, sign, and print the digest; what no argument changes stays as it was."""
    parser = argparse.ArgumentParser(description="Sign a constitution again in place.")
    parser.add_argument("--directory", type=Path, default=CONSTITUTION)
    parser.add_argument("--key", type=Path, default=CONSTITUTION / "dev" / "development.key")
    parser.add_argument("--version", help="the version to write; the one of the present manifest by default")
    parser.add_argument("--review-by", type=dt.date.fromisoformat, help="date, such as 2027-11-21")
    arguments = parser.parse_args()
    key = load_signing_key(arguments.key)
    present = parse_manifest(read_manifest(arguments.directory)[0])
    write_manifest(
        arguments.directory,
        arguments.version or present.version,
        read_unverified(arguments.directory),
        review_by=arguments.review_by or present.review_by,
        previous=present.previous,
    )
    sys.stdout.write(f"{sign(arguments.directory, key).digest.hex()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
