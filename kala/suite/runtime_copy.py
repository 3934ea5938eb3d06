"""An interpreter that another user of this machine may run, with the packages of one part.

A virtual environment often lies where only its owner may look (`/root`, a home directory). A part that runs as a user
without rights then gets a copy: hard links where the file system allows them, so it costs no space and little time.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Final

from kala.errors import FailedPreconditionError

PLACES: Final = (Path("/var/lib/kala/runtime"), Path("/var/tmp/kala-runtime"))  # noqa: S108 - its owner is checked
"""Where copies are kept, the first that can be made; every user may look into them and only their owner may write."""

KEPT: Final = 4
"""Copies that stay: one for each version that may still run."""

_OWN_PACKAGES: Final = ("kala", "services")
_SOURCE_ENDINGS: Final = frozenset(
    {".json", ".onnx", ".pem", ".py", ".pyi", ".sh", ".js", ".toml", ".typed", ".yaml"}
)
_LEFT_OUT: Final = frozenset(
    {"ensurepip", "idlelib", "site-packages", "test", "tests", "tkinter", "turtledemo"}
)
_REQUIREMENT: Final = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?")
_EXTRA: Final = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")
_CHECK_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Runtime:
    """What to start, and the variables that it needs."""

    python: Path
    environment: Mapping[str, str] = field(default_factory=dict)


def runtime_for(
    uid: int, *, distribution: str, extra: str, module: str, places: Sequence[Path] = PLACES
) -> Runtime:
    """Give an interpreter that `uid` may run and that can import `module`; this one where that is possible.

    Copies at most once for each state of the packages. Raises FailedPreconditionError, which names what is out of reach.
    """
    opened = [Path(entry) for entry in _path_entries() if is_open_to_others(Path(entry))]
    hidden = [Path(entry) for entry in _path_entries() if not is_open_to_others(Path(entry))]
    if not hidden and is_open_to_others(Path(sys.executable)) and is_open_to_others(Path(os.__file__)):
        return Runtime(Path(sys.executable))
    files = list(_interpreter_files())
    if hidden:
        files += list(_package_files(distribution, extra))
    place = _first_place(places)
    copy = place / _key(files, opened)
    if copy.is_dir():
        os.utime(copy)
        return _runtime(copy)
    _make(copy, files, opened)
    try:
        _check(_runtime(copy), uid, module)
    except FailedPreconditionError:
        shutil.rmtree(copy, ignore_errors=True)
        raise
    _forget_old(place)
    return _runtime(copy)


def is_open_to_others(path: Path) -> bool:
    """Tell whether any user of this machine may read `path` (and enter it), links followed."""
    wanted = stat.S_IROTH | stat.S_IXOTH if path.is_dir() else stat.S_IROTH
    try:
        if path.stat().st_mode & wanted != wanted:
            return False
        parents = {*path.absolute().parents, *path.resolve().parents}
        return all(parent.stat().st_mode & stat.S_IXOTH for parent in parents)
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the copy: where it comes from and its place in it."""

    source: Path
    target: str


def _path_entries() -> list[str]:
    """Where this process finds packages that are not the interpreter's own."""
    own = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), ""}
    found = [entry for entry in sys.path if entry not in own and Path(entry).is_dir()]
    root = str(Path(__file__).resolve().parents[2])
    found = [entry for entry in found if Path(entry).name != "lib-dynload" and entry != root]
    return [*dict.fromkeys(os.path.abspath(entry) for entry in found if _holds_packages(entry)), root]  # noqa: PTH100 - keep links as named


def _holds_packages(entry: str) -> bool:
    return Path(entry).name in {"site-packages", "dist-packages"}


def _interpreter_files() -> Iterator[_File]:
    """The program, the library it is linked to, and the standard library without what no service needs."""
    library = Path(os.__file__).parent
    relative = f"lib/{library.name}"
    yield _File(Path(sys.executable).resolve(), "bin/python3")
    shared = Path(sysconfig.get_config_var("LIBDIR") or "") / str(
        sysconfig.get_config_var("INSTSONAME") or ""
    )
    if sysconfig.get_config_var("Py_ENABLE_SHARED") and shared.is_file():
        yield _File(shared, f"lib/{shared.name}")
    for folder, names, files in os.walk(library):
        names[:] = [name for name in names if name not in _LEFT_OUT and not name.startswith("config-")]
        inside = os.path.relpath(folder, library)
        prefix = relative if inside == "." else f"{relative}/{inside}"
        for name in files:
            # Compiled files stay: that user could not write them, and would compile at every start.
            if not name.endswith(".pyc") or name.endswith(f".{sys.implementation.cache_tag}.pyc"):
                yield _File(Path(folder, name), f"{prefix}/{name}")


def _package_files(distribution: str, extra: str) -> Iterator[_File]:
    """The files of the distribution's own packages, and of everything that it requires with this extra."""
    target = f"lib/{Path(os.__file__).parent.name}/site-packages"
    root = Path(__file__).resolve().parents[2]
    for package in _OWN_PACKAGES:
        for folder, names, files in os.walk(root / package):
            names[:] = [name for name in names if name != "__pycache__"]
            for name in files:
                path = Path(folder, name)
                if path.suffix in _SOURCE_ENDINGS:
                    yield _File(path, f"{target}/{path.relative_to(root)}")
    for found in _closure(distribution, extra):
        for entry in found.files or ():
            path = Path(str(found.locate_file(entry)))
            if ".." not in entry.parts and entry.parts[0] not in _OWN_PACKAGES and path.is_file():
                yield _File(path, f"{target}/{entry}")


def _closure(distribution: str, extra: str) -> list[metadata.Distribution]:
    """Every installed distribution that this one needs; environment markers are not read, which only adds."""
    waiting, seen = [(distribution, frozenset({extra}))], set[tuple[str, frozenset[str]]]()
    found: dict[str, metadata.Distribution] = {}
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            dist = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found[dist.name.lower()] = dist
        for line in dist.requires or ():
            marked = set(_EXTRA.findall(line))
            matched = _REQUIREMENT.match(line)
            if matched is not None and (not marked or marked & extras):
                asked = frozenset(part.strip() for part in (matched[2] or "").split(",") if part.strip())
                waiting.append((matched[1].lower(), asked))
    return list(found.values())


def _key(files: Sequence[_File], opened: Sequence[Path]) -> str:
    """Name of the copy: another one as soon as a file of it is another."""
    digest = hashlib.sha256(repr((sys.version, [str(path) for path in opened])).encode())
    for file in files:
        found = file.source.stat()
        digest.update(f"{file.target}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ino}\n".encode())
    return digest.hexdigest()[:16]


def _first_place(places: Sequence[Path]) -> Path:
    problems = []
    for place in places:
        try:
            place.mkdir(mode=0o755, parents=True, exist_ok=True)
            found = place.lstat()
        except OSError as error:
            problems.append(f"{place}: {error.strerror}")
            continue
        if found.st_uid != os.geteuid() or found.st_mode & 0o022 or not stat.S_ISDIR(found.st_mode):
            problems.append(f"{place}: belongs to somebody else, or others may write to it")
        elif not is_open_to_others(place):
            problems.append(f"{place}: other users cannot reach it")
        else:
            return place
    raise FailedPreconditionError(
        f"there is no place for an interpreter that another user may run ({'; '.join(problems)})"
    )


def _make(copy: Path, files: Sequence[_File], opened: Sequence[Path]) -> None:
    """Build the copy beside its place and move it there whole; whoever was quicker wins."""
    building = copy.with_name(f".{copy.name}.{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    made: set[Path] = set()
    for file in files:
        target = building / file.target
        if target.parent not in made:
            target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            made.add(target.parent)
        _link_or_copy(file.source, target)
    packages = building / "lib" / Path(os.__file__).parent.name / "site-packages"
    packages.mkdir(mode=0o755, parents=True, exist_ok=True)
    (packages / "kala_runtime.pth").write_text("".join(f"{path}\n" for path in opened), encoding="utf-8")
    for folder, _, _ in os.walk(building):
        # The caller's umask may be private.
        Path(folder).chmod(0o755)
    (packages / "kala_runtime.pth").chmod(0o644)
    try:
        building.rename(copy)
    except OSError:
        shutil.rmtree(building, ignore_errors=True)
        if not copy.is_dir():
            raise


def _link_or_copy(source: Path, target: Path) -> None:
    real = source.resolve()
    if real.stat().st_mode & stat.S_IROTH and real.stat().st_uid == os.geteuid():
        try:
            os.link(real, target)
        except OSError:
            pass  # another file system, or one without links
        else:
            return
    # With its times, by which Python tells whether the compiled file beside it is still true.
    shutil.copy2(real, target)
    target.chmod(0o755 if real.stat().st_mode & stat.S_IXUSR else 0o644)


def _runtime(copy: Path) -> Runtime:
    shared = sysconfig.get_config_var("Py_ENABLE_SHARED")
    return Runtime(copy / "bin/python3", {"LD_LIBRARY_PATH": str(copy / "lib")} if shared else {})


def _check(runtime: Runtime, uid: int, module: str) -> None:
    """Really start it as that user; raises FailedPreconditionError with its last words."""
    ended = subprocess.run(  # noqa: S603 - the interpreter just made
        [str(runtime.python), "-B", "-c", f"import {module}"],
        env={"PATH": "/usr/bin:/bin", **runtime.environment},
        cwd="/",
        user=uid,
        group=uid,
        extra_groups=[],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_CHECK_SECONDS,
        check=False,
    )
    if ended.returncode != 0:
        words = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise FailedPreconditionError(f"user {uid} cannot run {module} with a copied interpreter: {words}")


def _forget_old(place: Path) -> None:
    copies = [path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for path in sorted(copies, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
        shutil.rmtree(path, ignore_errors=True)
