"""What the probes run inside a tier: each function tries to get something it must not have, and says what it got.

This file is sent as the program of a job, with one call appended. It uses the standard library only, and what it needs to
know of the bait comes as JSON in its first argument. A line begins with ESCAPED when something was got, with HELD when it
was refused; a program that says neither proves nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import platform
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable

CLONE_NEWUSER = 0x10000000
CLONE_NEWNS = 0x00020000
# Numbers of system calls on x86-64 and aarch64.
NUMBERS = {
    "x86_64": {
        "clone": 56,
        "clone3": 435,
        "setns": 308,
        "unshare": 272,
        "bpf": 321,
        "perf_event_open": 298,
        "userfaultfd": 323,
        "io_uring_setup": 425,
        "keyctl": 250,
        "add_key": 248,
        "ptrace": 101,
        "process_vm_readv": 310,
        "kexec_load": 246,
        "init_module": 175,
        "open_by_handle_at": 304,
        "pivot_root": 155,
        "fsopen": 430,
        "mount": 165,
    },
    "aarch64": {
        "clone": 220,
        "clone3": 435,
        "setns": 268,
        "unshare": 97,
        "bpf": 280,
        "perf_event_open": 241,
        "userfaultfd": 282,
        "io_uring_setup": 425,
        "keyctl": 219,
        "add_key": 217,
        "ptrace": 117,
        "process_vm_readv": 270,
        "kexec_load": 104,
        "init_module": 105,
        "open_by_handle_at": 265,
        "pivot_root": 41,
        "fsopen": 430,
        "mount": 40,
    },
}
# Families that open a part of the kernel other than the network of everybody: netlink, packet, AF_ALG, vsock, XDP.
ODD_FAMILIES = {"netlink": 16, "packet": 17, "alg": 38, "vsock": 40, "xdp": 44}
HARMLESS_DEVICES = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"}
EXPECTED_VARIABLES = {
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "OLDPWD",
    "PATH",
    "PWD",
    "SHLVL",
    "TMPDIR",
    "TZ",
    "_",
}
# Where a program might write, besides its workspace.
PLACES = (".", "/workspace", "/tmp", "/dev/shm", "/dev", "/run", "/var/tmp", "/mnt", "/etc", "/usr", "/")  # noqa: S108 - places to try, not to use

Bait = dict[str, str]


def say(*, escaped: bool, detail: object) -> None:
    """Write one verdict."""
    os.write(1, f"{'ESCAPED' if escaped else 'HELD'} {detail}\n"[:400].encode(errors="replace"))


def attempt(what: str, act: Callable[[], object]) -> None:
    """Say ESCAPED when `act` succeeds."""
    try:
        got = act()
    except (OSError, ValueError) as error:
        say(escaped=False, detail=f"{what}: {error}")
    else:
        say(escaped=True, detail=f"{what}: {got!r}")


def system_call(name: str, *arguments: int) -> int:
    """Call the kernel itself; raises OSError as it answers."""
    number = NUMBERS[platform.machine()][name]
    libc = ctypes.CDLL(None, use_errno=True)
    answer = int(libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments)))
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return answer


def fork(limit: int, child: Callable[[], None]) -> list[int]:
    """Make as many children as are allowed, `limit` at most; each runs `child` and ends."""
    pids: list[int] = []
    with contextlib.suppress(OSError):
        while len(pids) < limit:
            pid = os.fork()
            if pid == 0:
                with contextlib.suppress(BaseException):
                    child()
                os._exit(0)
            pids.append(pid)
    return pids


def end(pids: list[int]) -> None:
    """Kill and reap children."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    for pid in pids:
        with contextlib.suppress(OSError):
            os.waitpid(pid, 0)


def runs(bait: Bait) -> None:
    """Do what honest programs do: read stdin and a file, write a file, and leave by a code of one's own."""
    with open("input.txt", encoding="utf-8") as source:  # noqa: PTH123 - the attacks call the kernel's interface
        text = source.read()
    with open("output.txt", "w", encoding="utf-8") as target:  # noqa: PTH123 - as above
        target.write(text.upper())
    os.write(2, b"on stderr\n")
    say(escaped=False, detail=sys.stdin.read() + bait["echo"])
    raise SystemExit(7)


def network(bait: Bait) -> None:
    """Reach a listener outside, over every kind of socket that could."""

    def send(family: int, kind: int, address: object) -> str:
        with socket.socket(family, kind) as link:
            link.settimeout(1.0)
            link.connect(address)  # type: ignore[arg-type]  # an address is whatever its family says
            link.sendall(b"probe")
        return "connected"

    host, port, datagrams = bait["host"], int(bait["tcp_port"]), int(bait["udp_port"])
    attempt("tcp", lambda: send(socket.AF_INET, socket.SOCK_STREAM, (host, port)))
    # A datagram to a loopback of its own is sent and reaches nobody: whether it arrived is seen outside.
    with contextlib.suppress(OSError):
        send(socket.AF_INET, socket.SOCK_DGRAM, (host, datagrams))
    attempt("udp outside", lambda: send(socket.AF_INET, socket.SOCK_DGRAM, ("192.0.2.1", 53)))
    attempt("tcp over ipv6", lambda: send(socket.AF_INET6, socket.SOCK_STREAM, ("::1", port)))
    attempt("abstract socket", lambda: send(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + bait["abstract_name"]))
    attempt("socket file", lambda: send(socket.AF_UNIX, socket.SOCK_STREAM, bait["socket_path"]))


def host_file(bait: Bait) -> None:
    """Read a file of the host by every name it might have, and write beside it."""
    secret = bait["secret_path"]
    ways = [
        "",
        "/proc/1/root",
        "/proc/self/root",
        "/proc/self/cwd/../../../../../..",
        "/workspace/../../../..",
    ]

    def read(path: str) -> str:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, 64).decode(errors="replace")
        finally:
            os.close(descriptor)

    for way in ways:
        attempt(f"read {way or 'plain'}", lambda path=way + secret: read(path))  # type: ignore[misc]  # a bound default
    os.symlink(secret, "way_out")  # noqa: PTH211 - as above
    attempt("read through a link", lambda: read("way_out"))
    attempt("link", lambda: os.link(secret, "hard"))
    flags = os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC
    attempt("write beside it", lambda: os.open(bait["directory"] + "/planted", flags, 0o600))


def pid_visibility(bait: Bait) -> None:
    """Find a process of the host, read its environment and signal it."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    canary, found = int(bait["canary_pid"]), []
    try:
        names = [name for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - as above
    except OSError:
        names = []
    for name in {*names, str(canary)}:
        with contextlib.suppress(OSError):
            descriptor = os.open(f"/proc/{name}/environ", os.O_RDONLY | os.O_CLOEXEC)
            if b"KALA_CANARY" in os.read(descriptor, 1 << 16):
                found.append(name)
            os.close(descriptor)
    say(escaped=bool(found), detail=f"environments of the host: {found}")
    # The same number may be a process in here. Whether the canary was hit is seen outside.
    with contextlib.suppress(OSError):
        os.kill(canary, signal.SIGUSR1)
    with contextlib.suppress(OSError):
        signal.pidfd_send_signal(os.pidfd_open(canary), signal.SIGUSR1)


def user_namespace(_bait: Bait) -> None:
    """Become the root of a new user namespace, where half the kernel opens."""

    def clone() -> int:
        pid = system_call("clone", CLONE_NEWUSER | signal.SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            os._exit(0)
        return pid

    def clone3() -> int:
        arguments = (ctypes.c_uint64 * 11)(CLONE_NEWUSER, 0, 0, 0, signal.SIGCHLD)
        pid = system_call("clone3", ctypes.addressof(arguments), ctypes.sizeof(arguments))
        if pid == 0:
            os._exit(0)
        return pid

    attempt("unshare", lambda: system_call("unshare", CLONE_NEWUSER))
    attempt("unshare mounts", lambda: system_call("unshare", CLONE_NEWNS))
    attempt("clone", clone)
    attempt("clone3", clone3)


def system_calls(_bait: Bait) -> None:
    """Call the parts of the kernel that most of its break-outs began with."""
    page = ctypes.addressof(ctypes.create_string_buffer(4096))
    tries: dict[str, tuple[int, ...]] = {
        "bpf": (0, page, 72),
        "perf_event_open": (page, 0, -1, -1, 0),
        "userfaultfd": (1,),
        "io_uring_setup": (1, page),
        "keyctl": (0, -3, 1),
        "ptrace": (0, 0, 0, 0),
        "kexec_load": (0, 0, 0, 0),
        "init_module": (page, 0, page),
        "open_by_handle_at": (-100, page, 0),
        "pivot_root": (page, page),
        "fsopen": (page, 0),
    }
    refusals = {errno.EPERM, errno.ENOSYS, errno.EACCES}
    for name, arguments in tries.items():
        try:
            system_call(name, *arguments)
        except OSError as error:
            # Any other error means that the call was looked at: the filter let it pass.
            say(escaped=error.errno not in refusals, detail=f"{name}: {error}")
        else:
            say(escaped=True, detail=f"{name}: done")
    for name, family in ODD_FAMILIES.items():
        attempt(f"socket {name}", lambda number=family: socket.socket(number, socket.SOCK_RAW).close())  # type: ignore[misc]  # a bound default


def privileges(bait: Bait) -> None:
    """Hold a capability, gain one by a set-id file, or mount."""
    # In a kernel of the run's own, 0 is but a number.
    shared = bait["shared_kernel"] == "yes"
    say(escaped=shared and 0 in {os.geteuid(), os.getegid()}, detail=f"runs as {os.geteuid()}:{os.getegid()}")
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123 - as above
        fields = dict(line.split(":", 1) for line in status if ":" in line)
        for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
            value = int(fields.get(name, "0").strip(), 16)
            # A bounding set is worth nothing without a way to gain; where no_new_privs is shown it must be set.
            say(escaped=bool(value) and name != "CapBnd", detail=f"{name} is {value:x}")
        say(escaped=fields.get("NoNewPrivs", "1").strip() != "1", detail="no_new_privs")
    libc = ctypes.CDLL(None, use_errno=True)
    say(escaped=libc.prctl(39, 0, 0, 0, 0) == 0, detail="prctl says that privileges can be gained")
    say(escaped=libc.mount(b"none", b"/workspace", b"tmpfs", 0, None) == 0, detail="mount")
    attempt("chroot", lambda: os.chroot("/workspace"))
    attempt("a device node", lambda: os.mknod("disk", 0o600 | stat.S_IFBLK, os.makedev(8, 0)))
    if os.geteuid() != 0:
        attempt("become root", lambda: os.setuid(0))
    attempt("host name", lambda: socket.sethostname("kala-probe"))


def devices(_bait: Bait) -> None:
    """Open a device that is more than a source of bytes."""
    opened = []
    for folder, _, names in os.walk("/dev"):
        for name in names:
            path = f"{folder}/{name}"
            with contextlib.suppress(OSError):
                kind = os.stat(path).st_mode  # noqa: PTH116 - as above
                plain = name in HARMLESS_DEVICES or folder.startswith("/dev/pts")
                if plain or not (stat.S_ISCHR(kind) or stat.S_ISBLK(kind)):
                    continue
                os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY))
                opened.append(path)
    say(escaped=bool(opened), detail=f"devices: {opened[:8]}")


def descriptors(_bait: Bait) -> None:
    """Find a descriptor that somebody forgot to close."""
    found = []
    for number in range(3, 4096):
        with contextlib.suppress(OSError):
            fcntl.fcntl(number, fcntl.F_GETFD)
            found.append(number)
    say(escaped=bool(found), detail=f"inherited descriptors: {found[:16]}")


def environment(_bait: Bait) -> None:
    """Find a variable that belongs to the service."""
    odd = sorted(set(os.environ) - EXPECTED_VARIABLES)
    say(escaped=bool(odd), detail=f"variables: {odd[:16]}")


def fork_limit(bait: Bait) -> None:
    """Make four times as many processes as are allowed."""
    allowed = int(bait["processes"])
    pids = fork(4 * allowed, lambda: time.sleep(30))
    # What watches from outside needs a moment to see them.
    time.sleep(0.2 if len(pids) >= allowed else 0)
    say(escaped=len(pids) > allowed, detail=f"{len(pids)} of {allowed} processes")
    end(pids)


def memory(bait: Bait) -> None:
    """Hold three times the memory that is allowed, in four processes that stay below it each."""
    share = int(bait["memory_bytes"]) * 3 // 4
    ready, signalled = os.pipe()

    def hold() -> None:
        block = bytearray(share)
        for offset in range(0, share, 4096):
            block[offset] = 1
        os.write(signalled, b"x")
        time.sleep(30)

    pids = fork(4, hold)
    os.close(signalled)
    held, deadline = 0, time.monotonic() + 3.0
    os.set_blocking(ready, False)
    while held < len(pids) and time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            held += len(os.read(ready, 16))
        time.sleep(0.01)
    time.sleep(0.3)
    alive = sum(os.waitpid(pid, os.WNOHANG)[0] == 0 for pid in pids)
    got = min(held, alive) * share
    say(escaped=got > int(bait["memory_bytes"]), detail=f"{got >> 20} MiB in {alive} processes")
    end(pids)


def cpu_time(_bait: Bait) -> None:
    """Compute for ever, deaf to every signal that can be ignored."""
    for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    say(escaped=False, detail="computing")
    while True:
        pass


def timeout(bait: Bait) -> None:
    """Outlive the run: a daemon in a session of its own, named so that it can be found from outside."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(15, bait["survivor_name"].encode(), 0, 0, 0)
            for descriptor in (0, 1, 2):
                os.close(descriptor)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(60)
        os._exit(0)
    say(escaped=False, detail="left a daemon")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
    say(escaped=True, detail="a minute passed")


def output(bait: Bait) -> None:
    """Write sixteen times the output that is allowed."""
    say(escaped=False, detail="writing")
    piece = b"x" * 4095 + b"\n"
    for _ in range(16 * int(bait["output_bytes"]) // len(piece)):
        os.write(1, piece)
    say(escaped=True, detail="all of it")


def disk(bait: Bait) -> None:
    """Fill every place that can be written, with twice the bytes that are allowed."""
    allowed, piece, written = int(bait["disk_bytes"]), b"x" * 65536, 0
    for place in PLACES:
        for number in range(64):
            if written > 2 * allowed:
                break
            with contextlib.suppress(OSError):
                path = f"{place}/fill{number}"
                descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
                with contextlib.suppress(OSError):
                    for _ in range(int(bait["file_bytes"]) // len(piece)):
                        written += os.write(descriptor, piece)
                os.close(descriptor)
    # What watches from outside needs a moment to see them.
    time.sleep(1.0 if written > allowed else 0)
    say(escaped=written > allowed + allowed // 4, detail=f"{written >> 10} KiB of {allowed >> 10} KiB")


def inodes(bait: Bait) -> None:
    """Make twice as many files as are allowed, and directories a thousand deep."""
    allowed, made = int(bait["inodes"]), 0
    for place in PLACES:
        with contextlib.suppress(OSError):
            while made <= 2 * allowed:
                os.close(os.open(f"{place}/n{made}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
                made += 1
    time.sleep(1.0 if made > allowed else 0)
    say(escaped=made > allowed + allowed // 4 + 8, detail=f"{made} of {allowed} inodes")


def file_size(bait: Bait) -> None:
    """Make one file larger than is allowed, by writing and by a hole."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    allowed = int(bait["file_bytes"])
    descriptor = os.open("large", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    attempt("a hole", lambda: os.truncate(descriptor, 4 * allowed))
    os.lseek(descriptor, allowed, os.SEEK_SET)
    attempt("a byte past the end", lambda: os.write(descriptor, b"x" * 4096))


def leave(_bait: Bait) -> None:
    """Leave something for the next run, wherever it sticks."""
    for place in PLACES:
        with contextlib.suppress(OSError):
            os.close(os.open(f"{place}/kala-left", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    say(escaped=False, detail="left")


def freshness(_bait: Bait) -> None:
    """Find what the run before has left."""
    found = [place for place in PLACES if os.path.lexists(f"{place}/kala-left")]
    names = os.listdir(".")  # noqa: PTH208 - as above
    say(escaped=bool(found or names), detail=f"left by another run: {found} {names[:8]}")


def own_kernel(bait: Bait) -> None:
    """Ask which kernel answers."""
    release = os.uname().release
    say(escaped=release == bait["kernel_release"], detail=f"the kernel says {release}")


def run(name: str) -> None:
    """Run one program by its name."""
    bait: Bait = json.loads(sys.argv[1])
    # The names come from the probes' own list.
    program: Callable[[Bait], None] = globals()[name]
    program(bait)
