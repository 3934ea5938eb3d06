"""Generates gateway/contract_comments.json: the contracts' comments, which generated code does not carry.

Usage: python scripts/gencomments.py [--check]
With --check it writes nothing and fails when the file is not what the contracts say.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "gateway" / "contract_comments.json"

# Field numbers in descriptor.proto by which a location's path names what it is about.
FILE_PARTS = {4: "message_type", 5: "enum_type", 6: "service"}
MESSAGE_PARTS = {2: "field", 3: "nested_type", 4: "enum_type"}
ENUM_PARTS = {2: "value"}
SERVICE_PARTS = {2: "method"}
PARTS_OF = {
    "message_type": MESSAGE_PARTS,
    "nested_type": MESSAGE_PARTS,
    "enum_type": ENUM_PARTS,
    "service": SERVICE_PARTS,
}


def image() -> descriptor_pb2.FileDescriptorSet:
    """Compile the contracts with their comments."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "contracts.binpb"
        subprocess.run([sys.executable, ROOT / "scripts" / "genproto.py", "--image", path], check=True)
        return descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())


def name_at(file: descriptor_pb2.FileDescriptorProto, path: tuple[int, ...]) -> str | None:
    """Give the full name of what a path points at, or None for parts that have no name of their own."""
    here: Any = file  # Any: descriptors of every kind
    parts, names = FILE_PARTS, [file.package]
    for number, position in zip(path[::2], path[1::2], strict=False):
        field = parts.get(number)
        if field is None:
            return None
        here = getattr(here, field)[position]
        names.append(here.name)
        parts = PARTS_OF.get(field, {})
    return ".".join(names)


def comments(files: descriptor_pb2.FileDescriptorSet) -> Iterator[tuple[str, str]]:
    """List every leading comment of the project's own contracts by the full name of what it is about."""
    for file in files.file:
        if not file.package.startswith("kala."):
            continue
        for location in file.source_code_info.location:
            path = tuple(location.path)
            name = name_at(file, path) if location.leading_comments and path and len(path) % 2 == 0 else None
            if name is not None:
                yield name, " ".join(location.leading_comments.split())


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="fail when the file is out of date")
    arguments = parser.parse_args()
    text = json.dumps(dict(sorted(comments(image()))), ensure_ascii=False, indent=0) + "\n"
    if not arguments.check:
        TARGET.write_text(text)
        return 0
    if not TARGET.exists() or TARGET.read_text() != text:
        print(f"{TARGET.relative_to(ROOT)} is out of date; run python scripts/gencomments.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
