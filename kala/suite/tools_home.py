"""Where the tools service lives on one machine, and as whom it runs: never as root, never among the suite's secrets.

Started as root, the service gets a user without rights, a folder that only this user may enter, copies of the two keys it
needs, and sockets that lead to its peers. Otherwise it runs as the caller does, in a folder of the suite's own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kala.errors import FailedPreconditionError
from kala.suite.ambient import Section
from kala.suite.keyring import Keyring
from kala.suite.layout import StateLayout, make_private_directory
from kala.suite.runtime_copy import Runtime, runtime_for

TOOLS: Final = "tools"
DEFAULT_UID: Final = 65532
"""The "nonroot" user of distroless images; it owns nothing on an ordinary machine."""

HOMES: Final = Path("/var/lib/kala")
"""Beside it lie the copied interpreters; both must be reachable by that user, which a home directory is not."""

_NOTE_ENDING: Final = ".state"
"""A file beside each home names the suite's state directory; it is root's."""

_UID_VARIABLE: Final = "KALA_TOOLS_RUN_AS_UID"
_PEERS: Final = ("audit", "inference")
_KEPT_VARIABLES: Final = ("LANG", "LC_", "PATH", "TZ", "KALA_TOOLS_")
"""Of the caller's environment; the rest may hold other parts' secrets, and code of strangers runs beneath this part."""

_KEPT_AS_OURSELVES: Final = ("KALA_CONFIG", "LD_LIBRARY_PATH", "PYTHON")
"""What this interpreter may need to start again as it was started, and the file that the service then reads itself."""


@dataclass(frozen=True, slots=True)
class ToolsHome:
    """The folder, the user, and what leads to the peers."""

    root: Path
    runtime: Runtime
    sockets: Path
    """Where the service's own socket lies."""
    ethics_public_key: Path
    signing_key: Path
    addresses: Mapping[str, Path]
    """Sockets by which the service reaches its peers."""
    uid: int | None = None
    """None: the caller's own."""
    ways: Mapping[Path, Path] = field(default_factory=dict)
    """Sockets in the home, and where each must be led."""

    @property
    def state(self) -> Path:
        """Workspaces and runs."""
        return self.root / "state"

    def environment(self, ambient: Mapping[str, str]) -> dict[str, str]:
        """Of the caller's environment what this part may know."""
        prefixes = _KEPT_VARIABLES if self.uid is not None else (*_KEPT_VARIABLES, *_KEPT_AS_OURSELVES)
        kept = {name: value for name, value in ambient.items() if name.startswith(prefixes)}
        # gRPC would write a line at each start of a program, which is never a fork of this process's own code.
        quiet = {"GRPC_ENABLE_FORK_SUPPORT": "0"}
        return {**kept, **quiet, **self.runtime.environment, "HOME": str(self.root)}


def tools_home(
    layout: StateLayout,
    sockets: Path,
    keyring: Keyring,
    *,
    ambient: Mapping[str, str],
    section: Section,
    homes: Path = HOMES,
) -> ToolsHome:
    """Prepare the home; FailedPreconditionError says why the service cannot run on this machine."""
    if sys.platform != "linux":
        raise FailedPreconditionError("its sandboxes need Linux; run it in a virtual machine or a container")
    if os.geteuid() != 0:
        root = layout.data / TOOLS
        make_private_directory(root)
        return ToolsHome(
            root,
            Runtime(Path(sys.executable)),
            sockets,
            keyring.ethics_public_key,
            keyring.tools_signing_key,
            {peer: sockets / f"{peer}.sock" for peer in _PEERS},
        )
    uid = _uid(ambient, section)
    runtime = runtime_for(uid, distribution="kala-suite", extra=TOOLS, module="services.tools.__main__")
    root = homes / _home_name(layout.root)
    _make_home(root, uid)
    _forget_homes(homes, layout.root)
    _hand_over(keyring.ethics_public_key.read_bytes(), root / "ethics.pub", uid)
    _hand_over(keyring.tools_signing_key.read_bytes(), root / "tools.key", uid)
    _hand_over(section.yaml.encode(), root / "kala.yaml", uid)
    _hand_over(section.env.encode(), root / ".env", uid)
    return ToolsHome(
        root,
        runtime,
        root,
        root / "ethics.pub",
        root / "tools.key",
        {peer: root / f"{peer}.sock" for peer in _PEERS},
        uid,
        {root / f"{peer}.sock": sockets / f"{peer}.sock" for peer in _PEERS},
    )


def _uid(ambient: Mapping[str, str], section: Section) -> int:
    said = ambient.get(_UID_VARIABLE) or section.values.get("run_as_uid") or str(DEFAULT_UID)
    if not (said.isascii() and said.isdigit()) or not 0 < int(said) < 2**32 - 1:
        raise FailedPreconditionError(
            f"{_UID_VARIABLE} must be the number of a user other than root, not {said!r}"
        )
    return int(said)


def _make_home(root: Path, uid: int) -> None:
    """Make the folder, or take over the one of an earlier run of this same suite under another user."""
    try:
        root.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        parent = root.parent.lstat()
        if parent.st_uid != 0 or parent.st_mode & 0o022 or not stat.S_ISDIR(parent.st_mode):
            raise FailedPreconditionError(f"{root.parent} must belong to root and be writable by root alone")
        if os.path.lexists(root):
            found = root.lstat()
            if not stat.S_ISDIR(found.st_mode):
                raise FailedPreconditionError(f"{root} is in the way: it is no folder")
            if found.st_uid != uid:
                shutil.rmtree(root)
        root.mkdir(mode=0o700, exist_ok=True)
        os.chown(root, uid, uid)
        root.chmod(0o700)
    except OSError as error:
        raise FailedPreconditionError(f"{root} cannot be made: {error.strerror}") from error


def _forget_homes(homes: Path, state: Path) -> None:
    """Note whose home this is, and delete the homes of suites whose state is gone: nobody will ever start them again."""
    note = homes / f"{_home_name(state)}{_NOTE_ENDING}"
    note.write_text(f"{state}\n", encoding="utf-8")
    for other in homes.glob(f"{TOOLS}-*{_NOTE_ENDING}"):
        if not os.path.lexists(other.read_text(encoding="utf-8").strip()):
            shutil.rmtree(other.with_suffix(""), ignore_errors=True)
            other.unlink(missing_ok=True)


def _home_name(state: Path) -> str:
    return f"{TOOLS}-{hashlib.sha256(os.fsencode(state)).hexdigest()[:12]}"


def _hand_over(content: bytes, path: Path, uid: int) -> None:
    """Write a file that its new owner alone may read; root never follows what that user may have planted there."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchown(descriptor, uid, uid)
        file.write(content)
