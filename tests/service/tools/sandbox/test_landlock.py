"""The Landlock tier's confinement for real: every program here is executed by the kernel under all of it, as a plain user."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from services.tools.sandbox.landlock import kernel, program
from services.tools.sandbox.landlock.confinement import Confinement, Limit, filter_for_this_machine
from tests.tools_runtime import unprivileged_directory, unprivileged_python, unprivileged_subprocess

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or kernel.abi() < kernel.REQUIRED_ABI,
    reason=f"the kernel's Landlock is older than ABI {kernel.REQUIRED_ABI}",
)

PYTHON = ("/usr/bin/python3", "-I", "-S", "-c")
SHELL = ("/bin/bash", "--norc", "--noprofile", "-c")
# `T(what)` prints HELD with the errno when it fails, ESCAPED when it works.
PRELUDE = """
import ctypes, errno, os, signal, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if result < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def T(what):
    try: print("ESCAPED", repr(what()))
    except OSError as error: print("HELD", errno.errorcode[error.errno])
"""


@pytest.fixture
def place() -> Iterator[Path]:
    with unprivileged_directory() as path:
        yield path


@pytest.fixture
def workspace(place: Path) -> Path:
    path = place / "workspace"
    path.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(path, *(unprivileged_subprocess()[name] for name in ("user", "group")))
    return path


def confinement(workspace: Path, *arguments: str) -> Confinement:
    return Confinement(
        arguments=arguments,
        environment=(("HOME", str(workspace)), ("PATH", "/usr/bin"), ("LANG", "C.UTF-8")),
        workspace=str(workspace),
        limits=(Limit("CORE", 0),),
        seccomp=filter_for_this_machine(),
    )


@cache
def path_of_program() -> str:
    """Where the user without rights finds it."""
    command = [*unprivileged_python(), "-c", f"import {program.__name__} as it; print(it.__file__)"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def start(asked: Confinement, **keywords: object) -> tuple["subprocess.Popen[str]", int]:
    """Start the keeper; give it and the reading end of its info pipe."""
    info, told = os.pipe()
    process = subprocess.Popen(
        [*unprivileged_python(), "-I", "-S", path_of_program(), str(os.getpid()), str(told), asked.to_json()],
        pass_fds=(told, *asked.descriptors),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **keywords,
    )
    os.close(told)
    return process, info


def run(asked: Confinement) -> "subprocess.CompletedProcess[str]":
    process, info = start(asked)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        os.close(info)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_python_reads_and_writes_its_workspace(workspace: Path) -> None:
    code = "import os, json; os.mkdir('d'); open('a', 'w').write('x'); os.rename('a', 'd/b'); print(os.listdir('d'))"
    done = run(confinement(workspace, *PYTHON, code))
    assert (done.returncode, done.stdout, done.stderr) == (0, "['b']\n", "")
    assert (workspace / "d" / "b").read_text() == "x"


def test_bash_runs_pipes_and_its_exit_code_comes_back(workspace: Path) -> None:
    done = run(confinement(workspace, *SHELL, "printf 'b\\na\\n' | sort | tee f; cat <(cat f); exit 7"))
    assert (done.returncode, done.stdout) == (7, "a\nb\na\nb\n")


@pytest.mark.skipif(not Path("/usr/bin/node").exists(), reason="node is not installed")
def test_node_compiles_and_starts_threads(workspace: Path) -> None:
    code = """
        const { Worker } = require("worker_threads");
        const worker = new Worker('require("worker_threads").parentPort.postMessage(42)', { eval: true });
        let sum = 0; for (let i = 0; i < 3e6; i++) sum += i % 7;
        worker.on("message", (m) => console.log(m, sum, require("child_process").execSync("echo x") + ""));
    """
    done = run(confinement(workspace, "/usr/bin/node", "-e", code))
    assert done.stdout == "42 8999994 x\n\n", done.stderr


def test_a_signal_that_ends_the_program_shows_in_the_exit_code(workspace: Path) -> None:
    done = run(confinement(workspace, *SHELL, "kill -SEGV $$"))
    assert done.returncode == 128 + signal.SIGSEGV


def test_files_of_the_same_user_outside_are_out_of_reach(place: Path, workspace: Path) -> None:
    secret = place / "secret"
    secret.write_text("token")
    if os.geteuid() == 0:
        os.chown(secret, unprivileged_subprocess()["user"], -1)
    code = f"""{PRELUDE}
path = {str(secret)!r}
T(lambda: open(path).read())
T(lambda: open(path, "a"))
T(lambda: os.truncate(path, 0))
T(lambda: os.unlink(path))
T(lambda: os.rename(path, "mine"))
T(lambda: os.link(path, "mine"))
T(lambda: os.chmod(path, 0o777))
T(lambda: os.utime(path))
T(lambda: os.listdir({str(place)!r}))
T(lambda: os.listdir("/etc"))
T(lambda: os.listdir("/proc"))
os.symlink(path, "link")
T(lambda: open("link").read())
"""
    done = run(confinement(workspace, *PYTHON, code))
    assert done.stdout.count("HELD") == 12, done.stdout + done.stderr
    assert "ESCAPED" not in done.stdout
    assert secret.read_text() == "token"


def test_no_socket_reaches_anything(place: Path, workspace: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as abstract:
        listener.bind(str(place / "socket"))
        listener.listen()
        abstract.bind("\0kala-test-" + str(os.getpid()))
        abstract.listen()
        (place / "socket").chmod(0o777)
        code = f"""{PRELUDE}
T(lambda: socket.socket(socket.AF_UNIX).connect({str(place / "socket")!r}))
T(lambda: socket.create_connection(("127.0.0.1", 9)))
a, b = socket.socketpair()
a.send(b"x"); print(b.recv(1))
T(lambda: a.connect({str(place / "socket")!r}))
T(lambda: a.connect("\\0kala-test-{os.getpid()}"))
T(lambda: a.sendto(b"x", {str(place / "socket")!r}))
T(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
"""
        done = run(confinement(workspace, *PYTHON, code))
    assert done.stdout.count("HELD") == 6, done.stdout + done.stderr
    assert "b'x'" in done.stdout
    assert "ESCAPED" not in done.stdout


def test_processes_outside_are_neither_signalled_nor_changed_nor_read(workspace: Path) -> None:
    canary = subprocess.Popen(["/bin/sleep", "60"], **unprivileged_subprocess())
    try:
        code = f"""{PRELUDE}
import resource
pid = {canary.pid}
T(lambda: os.kill(pid, 0))
T(lambda: os.kill(os.getppid(), signal.SIGKILL))
T(lambda: signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGKILL))
T(lambda: call(101, 16, pid, 0, 0))
T(lambda: open(f"/proc/{{pid}}/environ").read())
T(lambda: open(f"/proc/{{pid}}/cmdline").read())
T(lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (1, 1)))
T(lambda: os.sched_setaffinity(pid, {{0}}))
T(lambda: os.setpriority(os.PRIO_PROCESS, pid, 19))
T(lambda: os.setpriority(os.PRIO_USER, 0, 19))
"""
        done = run(confinement(workspace, *PYTHON, code))
        assert done.stdout.count("HELD") == 10, done.stdout + done.stderr
        assert canary.poll() is None
    finally:
        canary.kill()
        canary.wait()


def test_no_namespace_no_tracing_no_set_id_file(workspace: Path) -> None:
    code = f"""{PRELUDE}
T(lambda: call(272, 0x10000000))
T(lambda: call(56, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0))
T(lambda: call(165, b"none", b"/mnt", b"tmpfs", 0, 0))
T(lambda: call(425, 8, b"x" * 120))
T(lambda: os.memfd_create("x"))
T(lambda: os.open("s", os.O_CREAT | os.O_WRONLY, 0o4755))
T(lambda: os.mkfifo("f", 0o4600))
"""
    done = run(confinement(workspace, *PYTHON, code))
    assert done.stdout.count("HELD") == 7, done.stdout + done.stderr


def test_only_the_given_descriptors_are_inherited(workspace: Path, place: Path) -> None:
    stray = os.open(place, os.O_RDONLY)
    given, write = os.pipe()
    try:
        os.set_inheritable(stray, True)
        code = "import os\nfor d in range(250):\n try: os.fstat(d); print(d, end=' ')\n except OSError: pass"
        asked = replace(confinement(workspace, *PYTHON, code), descriptors=(given,))
        done = run(asked)
    finally:
        for descriptor in (stray, given, write):
            os.close(descriptor)
    assert done.stdout.split() == ["0", "1", "2", str(given)]


def test_nothing_outlives_the_program(workspace: Path) -> None:
    name = f"kala-survivor-{os.getpid()}"
    shutil.copy("/bin/sleep", workspace / name)
    (workspace / name).chmod(0o755)
    script = f"""
        trap '' TERM HUP INT
        (setsid ./{name} 300 &)
        (./{name} 300 & disown)
        for i in 1 2 3; do (trap '' TERM; while :; do ./{name} 0.01; done) & done
        sleep 0.2
    """
    done = run(confinement(workspace, *SHELL, script))
    assert done.returncode == 0, done.stderr
    assert living(name) == []


def test_a_request_to_end_kills_what_ignores_it(workspace: Path) -> None:
    name = f"kala-stubborn-{os.getpid()}"
    shutil.copy("/bin/sleep", workspace / name)
    (workspace / name).chmod(0o755)
    process, info = start(
        confinement(workspace, *SHELL, f"trap '' TERM; (setsid ./{name} 300 &); echo up; ./{name} 300")
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    os.close(info)
    assert process.returncode == 128 + signal.SIGKILL
    assert living(name) == []


def living(name: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if name.encode() in (entry / "cmdline").read_bytes():
                    found.append(entry.name)
            except OSError:
                continue
    return found


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seccomp": b""}, errno.EINVAL),
        ({"seccomp": b"\0" * 16}, errno.EINVAL),
        ({"workspace": "/nonexistent"}, errno.ENOENT),
        ({"readable": ("/nonexistent",)}, errno.ENOENT),
        ({"limits": (Limit("NOFILE", 2**40),)}, None),
        ({"limits": (Limit("NO_SUCH_LIMIT", 1),)}, None),
        ({"directory": "/root/nowhere"}, None),
    ],
    ids=[
        "no filter",
        "a broken filter",
        "no workspace",
        "no readable",
        "limit",
        "unknown limit",
        "no directory",
    ],
)
def test_a_step_that_fails_means_that_nothing_is_executed(
    workspace: Path, change: dict[str, object], told: int | None
) -> None:
    asked = replace(confinement(workspace, *SHELL, "echo ran"), **change)
    done = run(asked)
    assert done.returncode == program.SETUP_FAILED_CODE
    assert done.stdout == ""
    assert done.stderr.startswith("landlock: ")
    if told is not None:
        assert f"[Errno {told}]" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0 to be refused")
def test_uid_0_is_refused(tmp_path: Path) -> None:
    info, told = os.pipe()
    command = [sys.executable, "-I", "-S", program.__file__, str(os.getpid()), str(told)]
    done = subprocess.run(
        [*command, confinement(tmp_path, *SHELL, "echo ran").to_json()],
        check=False,
        pass_fds=(told,),
        capture_output=True,
        text=True,
    )
    os.close(info)
    os.close(told)
    assert (done.returncode, done.stdout) == (program.SETUP_FAILED_CODE, "")
    assert "uid 0 is not confined" in done.stderr


def test_a_keeper_whose_parent_is_gone_starts_nothing(workspace: Path) -> None:
    info, told = os.pipe()
    command = [*unprivileged_python(), "-I", "-S", path_of_program(), "1", str(told)]
    done = subprocess.run(
        [*command, confinement(workspace, *SHELL, "echo ran").to_json()],
        check=False,
        pass_fds=(told,),
        capture_output=True,
        text=True,
    )
    os.close(told)
    assert (done.returncode, done.stdout, os.read(info, 10)) == (program.SETUP_FAILED_CODE, "", b"")
    os.close(info)
