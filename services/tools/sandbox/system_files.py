"""The few files of /etc that programs in a sandbox need; none of them is the host's own."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

_DIRECTORY: Final = "etc"
_ALTERNATIVES: Final = Path("/etc/alternatives")
_LINKER_CACHE: Final = Path("/etc/ld.so.cache")
# Where alternatives may point: what a sandbox sees anyway.
_VISIBLE: Final = ("/usr/bin/", "/usr/lib/")


def lay_out(state_directory: Path) -> Path:
    """Make the directory, anew when it is there; give its path."""
    directory = state_directory / _DIRECTORY
    if directory.exists():
        shutil.rmtree(directory)
    alternatives = directory / "alternatives"
    alternatives.mkdir(parents=True)
    # No passwd and no group: nobody has a name in there, and a program that finds such a file believes it is the host's.
    files = {
        "nsswitch.conf": "hosts: files\n",
        "hosts": "127.0.0.1 localhost sandbox\n",
    }
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")
    if _LINKER_CACHE.is_file():
        shutil.copyfile(_LINKER_CACHE, directory / "ld.so.cache")
    for link in _ALTERNATIVES.iterdir() if _ALTERNATIVES.is_dir() else ():
        with suppress(OSError):
            target = str(link.readlink())
            if target.startswith(_VISIBLE):
                (alternatives / link.name).symlink_to(target)
    return directory
