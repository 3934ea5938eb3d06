"""Generates kala/<svc>/v1 from protos/, so that the contracts have one source and the code is always theirs.

Usage: python scripts/genproto.py [--image FILE]
With --image it only writes a descriptor image for buf and generates nothing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import google.api
import google.longrunning
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
# Well-known and googleapis protos come with the pinned wheels; nothing is fetched.
INCLUDES = (
    PROTOS,
    Path(google.api.__path__[0]).parents[1],
    Path(protoc.__file__).parent / "_proto",
)


def proto_files() -> list[str]:
    """Every contract, as protoc wants it: relative to protos/."""
    return sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / "kala").rglob("*.proto"))


def copy_longrunning(folder: Path) -> None:
    """Gives operations.proto its registered path: googleapis-common-protos ships it as operations_proto.proto."""
    source = Path(google.longrunning.__path__[0]) / "operations_proto.proto"
    target = folder / "google" / "longrunning" / "operations.proto"
    target.parent.mkdir(parents=True)
    shutil.copyfile(source, target)


def run_protoc(arguments: list[str]) -> None:
    """Runs protoc on all contracts; its own message is on stderr when it fails."""
    with tempfile.TemporaryDirectory() as extra:
        copy_longrunning(Path(extra))
        includes = [f"-I{path}" for path in (*INCLUDES, extra)]
        code = protoc.main(["protoc", *includes, *arguments, *proto_files()])
    if code:
        sys.exit(code)


def write_package_markers() -> None:
    """Gives generated folders an `__init__.py`; without it type checkers do not find the stubs."""
    for folder in {Path(name).parent for name in proto_files()}:
        for package in (ROOT / folder.parent, ROOT / folder):
            marker = package / "__init__.py"
            if not marker.exists() or not marker.read_text():
                marker.write_text(f'"""Contracts generated from protos/{folder}; never edited."""\n')


def generate() -> None:
    """Writes messages, stubs and their types under kala/."""
    # The plugins of this interpreter's environment, whether or not it is activated.
    scripts = Path(sys.executable).parent
    run_protoc(
        [
            f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
            f"--python_out={ROOT}",
            f"--grpc_python_out={ROOT}",
            f"--mypy_out=quiet:{ROOT}",
            f"--mypy_grpc_out=quiet:{ROOT}",
        ]
    )
    write_package_markers()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", type=Path, help="write a descriptor image here instead of generating")
    arguments = parser.parse_args()
    if arguments.image:
        arguments.image.parent.mkdir(parents=True, exist_ok=True)
        run_protoc(["--include_imports", "--include_source_info", f"-o{arguments.image}"])
    else:
        generate()


if __name__ == "__main__":
    main()
