"""Nothing outside the directory is ever opened, by the kernel's own resolution and by the walk that stands in for it."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.tools.files import beneath
from services.tools.files.beneath import (
    NotRegularError,
    closing,
    open_at_once,
    open_beneath,
    open_by_steps,
    open_directory,
    open_regular,
    status_beneath,
)

from .conftest import SECRET, Place

Opener = Callable[[int, bytes, int], int]

# Exchanges "swap", a directory with a harmless file, and "link", a link to the outside, as fast as it can.
EXCHANGE = """
import ctypes, sys
libc = ctypes.CDLL(None)
print("ready", flush=True)
while True:
    libc.renameat2(-100, sys.argv[1].encode(), -100, sys.argv[2].encode(), 2)
"""
RACES = 20_000


@pytest.fixture(params=[open_at_once, open_by_steps], ids=["openat2", "steps"])
def opener(request: pytest.FixtureRequest, inside: Place) -> Opener:
    opener: Opener = request.param
    if opener is open_at_once:
        try:
            os.close(open_at_once(inside.descriptor, b"", os.O_RDONLY))
        except OSError as error:
            pytest.skip(f"this kernel serves no openat2: {error}")
    return opener


def test_a_file_below_is_opened(inside: Place, opener: Opener) -> None:
    (inside.path / "a/b").mkdir(parents=True)
    (inside.path / "a/b/c.txt").write_bytes(b"content")
    with closing(opener(inside.descriptor, b"a/b/c.txt", os.O_RDONLY)) as descriptor:
        assert os.read(descriptor, 100) == b"content"


def test_the_empty_path_is_the_directory_itself(inside: Place, opener: Opener) -> None:
    with closing(opener(inside.descriptor, b"", os.O_RDONLY | os.O_DIRECTORY)) as descriptor:
        assert os.path.samestat(os.fstat(descriptor), os.fstat(inside.descriptor))


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda top, out: top.joinpath("link").symlink_to(out / "secret.txt"), b"link"),
        (lambda top, out: top.joinpath("link").symlink_to("../outside/secret.txt"), b"link"),
        (lambda top, out: top.joinpath("link").symlink_to(out), b"link/secret.txt"),
        (lambda top, out: top.joinpath("link").symlink_to("link"), b"link"),
        (lambda top, out: top.joinpath("link").symlink_to("/proc/self/root"), b"link/etc/passwd"),
        (lambda top, out: top.joinpath("link").symlink_to("/proc/self/fd/0"), b"link"),
        (lambda top, out: top.joinpath("link").symlink_to("."), b"link/inner"),
        (lambda top, out: top.joinpath("link").symlink_to("/nowhere"), b"link"),
    ],
    ids=["file", "relative", "directory", "loop", "proc-root", "proc-fd", "inward", "dangling"],
)
def test_no_link_is_followed(
    inside: Place, outside: Path, opener: Opener, make: Callable[[Path, Path], None], path: bytes
) -> None:
    (inside.path / "inner").write_bytes(b"x")
    make(inside.path, outside)
    with pytest.raises(OSError) as failure:
        opener(inside.descriptor, path, os.O_RDONLY)
    assert failure.value.errno in {errno.ELOOP, errno.ENOTDIR}


@pytest.mark.parametrize(
    "path", [b"..", b"../outside/secret.txt", b"a/../../outside", b".", b"a//b", b"/etc/passwd"]
)
def test_no_way_out_is_walked(inside: Place, outside: Path, path: bytes) -> None:
    (inside.path / "a").mkdir()
    with pytest.raises(OSError) as failure:
        open_beneath(inside.descriptor, path, os.O_RDONLY)
    assert failure.value.errno == errno.EXDEV


@pytest.mark.parametrize("path", [b"..", b"../outside/secret.txt", b"a/../../outside", b"/etc/passwd"])
def test_neither_way_of_opening_needs_the_other_to_stay_inside(
    inside: Place, outside: Path, opener: Opener, path: bytes
) -> None:
    (inside.path / "a").mkdir()
    with pytest.raises(OSError) as failure:
        opener(inside.descriptor, path, os.O_RDONLY)
    assert failure.value.errno == errno.EXDEV


def test_another_mount_is_not_entered(opener: Opener) -> None:
    with closing(os.open("/", os.O_RDONLY | os.O_DIRECTORY)) as root, pytest.raises(OSError) as failure:
        opener(root, b"proc/version", os.O_RDONLY)
    assert failure.value.errno == errno.EXDEV


def test_another_mount_itself_is_not_opened(opener: Opener) -> None:
    with closing(os.open("/", os.O_RDONLY | os.O_DIRECTORY)) as root, pytest.raises(OSError) as failure:
        opener(root, b"proc", os.O_RDONLY | os.O_DIRECTORY)
    assert failure.value.errno == errno.EXDEV


def test_nothing_is_made(inside: Place) -> None:
    with pytest.raises(OSError) as failure:
        open_beneath(inside.descriptor, b"new", os.O_WRONLY | os.O_CREAT)
    assert (failure.value.errno, list(inside.path.iterdir())) == (errno.EINVAL, [])


def test_a_pipe_is_refused_and_does_not_block(inside: Place) -> None:
    os.mkfifo(inside.path / "pipe")
    with pytest.raises(NotRegularError):
        open_regular(inside.descriptor, b"pipe")


def test_a_socket_is_refused(inside: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(inside.path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("sock")
        with pytest.raises(OSError):
            open_regular(inside.descriptor, b"sock")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_a_device_is_refused(inside: Place) -> None:
    try:
        os.mknod(inside.path / "null", 0o666 | 0o020000, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("no devices may be made here")
    with pytest.raises(OSError):
        open_regular(inside.descriptor, b"null")


def test_a_file_with_a_second_link_is_refused(inside: Place, outside: Path) -> None:
    (inside.path / "hard").hardlink_to(outside / "secret.txt")
    with pytest.raises(NotRegularError):
        open_regular(inside.descriptor, b"hard")


def test_a_directory_is_no_file(inside: Place) -> None:
    (inside.path / "a").mkdir()
    with pytest.raises(NotRegularError):
        open_regular(inside.descriptor, b"a")


def test_the_status_is_the_links_own(inside: Place, outside: Path) -> None:
    (inside.path / "link").symlink_to(outside / "secret.txt")
    status = status_beneath(inside.descriptor, b"link")
    assert status is not None
    assert os.path.samestat(status, os.lstat(inside.path / "link"))
    assert status_beneath(inside.descriptor, b"nothing") is None


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_a_kernel_without_openat2_follows_the_same_rules(
    inside: Place, outside: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(root: int, path: bytes, flags: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(beneath, "open_at_once", refuse)
    (inside.path / "a").mkdir()
    (inside.path / "a/b").write_bytes(b"content")
    (inside.path / "a/link").symlink_to(outside)
    with closing(open_beneath(inside.descriptor, b"a/b", os.O_RDONLY)) as descriptor:
        assert os.read(descriptor, 100) == b"content"
    with pytest.raises(OSError):
        open_beneath(inside.descriptor, b"a/link/secret.txt", os.O_RDONLY)


def test_no_descriptor_is_left_open(inside: Place, outside: Path, opener: Opener) -> None:
    (inside.path / "a").symlink_to(outside)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in (b"a/secret.txt", b"b", b"b/c/d", b"a"):
        with pytest.raises(OSError):
            opener(inside.descriptor, path, os.O_RDONLY)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_directory_that_is_exchanged_for_a_link_never_lets_out(
    inside: Place, outside: Path, opener: Opener
) -> None:
    (inside.path / "swap").mkdir()
    (inside.path / "swap/secret.txt").write_bytes(b"harmless")
    (inside.path / "link").symlink_to(outside)
    arguments = [str(inside.path / "swap"), str(inside.path / "link")]
    read, refused = [], 0
    with subprocess.Popen(
        [sys.executable, "-I", "-c", EXCHANGE, *arguments], stdout=subprocess.PIPE
    ) as racer:
        try:
            assert racer.stdout is not None
            racer.stdout.readline()
            for _ in range(RACES):
                try:
                    with closing(opener(inside.descriptor, b"swap/secret.txt", os.O_RDONLY)) as descriptor:
                        read.append(os.read(descriptor, 100))
                except OSError:
                    refused += 1
        finally:
            racer.kill()
    assert SECRET not in read
    assert len(read) + refused == RACES


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.lists(
        st.sampled_from([b"a", b"b", b"link", b"up", b"..", b".", b"", b"secret.txt", b"\xff"]), max_size=5
    )
)
def test_whatever_opens_lies_inside(inside: Place, outside: Path, path: list[bytes]) -> None:
    if not (inside.path / "a").exists():
        (inside.path / "a/b/a").mkdir(parents=True)
        (inside.path / "a/b/secret.txt").write_bytes(b"x")
        (inside.path / "a/link").symlink_to(outside)
        (inside.path / "a/up").symlink_to("..")
    allowed = {inside.path.stat().st_ino, *(found.lstat().st_ino for found in inside.path.rglob("*"))}
    try:
        descriptor = open_beneath(inside.descriptor, b"/".join(path), os.O_RDONLY)
    except OSError:
        return
    with closing(descriptor):
        assert os.fstat(descriptor).st_ino in allowed


def test_a_directory_is_opened_for_its_names(inside: Place) -> None:
    (inside.path / "a").mkdir()
    (inside.path / "a/b").write_bytes(b"")
    with closing(open_directory(inside.descriptor, b"a")) as directory, os.scandir(directory) as names:
        assert [name.name for name in names] == ["b"]
