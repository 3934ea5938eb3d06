"""One suite in one state directory: prepare what it needs, run it, and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final

from kala.errors import FailedPreconditionError, KalaError
from kala.ethics.constitution import DEVELOPMENT_BANNER
from kala.suite.ambient import named_in_files, section_of_files
from kala.suite.backups import Database, back_up_before_migration, back_up_before_release
from kala.suite.keyring import Keyring, make_keyring
from kala.suite.layout import StateLayout, make_private_directory
from kala.suite.lock import suite_lock
from kala.suite.parts import GRPC_PARTS, Wiring, parts_of
from kala.suite.ports import DEFAULT_GATEWAY_PORT, LOOPBACK, PortClaims, is_free, port_claims
from kala.suite.processes import ProcessId, stop
from kala.suite.record import Condition, PartRecord, Phase, SuiteRecord, read_record, write_record
from kala.suite.relay import relays
from kala.suite.supervisor import DEFAULT_LIMITS, STOP_GRACE_SECONDS, STOP_ORDER, Limits, Supervisor
from kala.suite.tools_home import TOOLS, ToolsHome, tools_home
from kala.suite.trainer_home import TRAINER, TrainerHome, trainer_home

DISTRIBUTION: Final = "kala-suite"

REQUIRED_PACKAGES: Final = ("grpc", "grpc_health", "re2", "services", "sqlalchemy", "starlette", "uvicorn")
"""One of each extra that the parts need; without torch only the embedded model is missing."""

_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class SuiteOptions:
    """What the caller of `kala up` decides."""

    layout: StateLayout
    host: str = LOOPBACK
    port: int | None = None
    """None takes 8800, or any free port when somebody has that one."""
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    limits: Limits = DEFAULT_LIMITS


OnReady = Callable[[SuiteRecord], Awaitable[None]]


async def run_suite(
    options: SuiteOptions,
    *,
    on_ready: OnReady,
    say: Callable[[str], None],
    stop_when: Callable[[asyncio.Event], Coroutine[None, None, None]] | None = None,
) -> None:
    """Run a suite until SIGTERM or SIGINT, or until `stop_when` sets its event.

    Raises SuiteRunningError when one runs there already, StartFailedError when a part does not come up.
    """
    require_packages()
    layout = options.layout
    layout.create()
    with suite_lock(layout), port_claims() as claims:
        _stop_leftovers(layout)
        record, wiring = _prepare(options, claims)
        journal = _Journal(layout, record, dict(record.parts))
        supervisor = Supervisor(layout, parts_of(wiring, claims), journal, say, options.limits)
        stopping = _stop_on_signals()
        watching = asyncio.create_task(stop_when(stopping)) if stop_when is not None else None
        try:
            async with _ways_for_tools(wiring.tools):
                await supervisor.run(stopping, lambda: on_ready(journal.record))
        except KalaError as error:
            journal.fail(error.message)
            raise
        finally:
            if watching is not None:
                watching.cancel()
            _remove_sockets(wiring)


def require_packages(names: Sequence[str] = REQUIRED_PACKAGES) -> None:
    """Raise FailedPreconditionError when the parts' packages are not installed, before four processes say so."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise FailedPreconditionError(
            f"the suite's packages are not installed ({', '.join(missing)} is missing): "
            "run `pip install 'kala-suite[suite]'`, or `make run` in a clone"
        )


@dataclass(slots=True)
class _Journal:
    """Keeps `suite.json` equal to what the supervisor knows."""

    layout: StateLayout
    record: SuiteRecord
    off: Mapping[str, PartRecord]
    """Parts that the supervisor does not have, since they cannot run here."""

    def __call__(self, phase: Phase, parts: Mapping[str, PartRecord]) -> None:
        self._write(replace(self.record, phase=phase, parts={**self.off, **parts}))

    def fail(self, problem: str) -> None:
        self._write(replace(self.record, phase=Phase.FAILED, problem=problem))

    def _write(self, record: SuiteRecord) -> None:
        if record != self.record or not self.layout.record_file.exists():
            self.record = record
            write_record(self.layout, record)


def _prepare(options: SuiteOptions, claims: PortClaims) -> tuple[SuiteRecord, Wiring]:
    layout = options.layout
    sockets = layout.sockets()
    port, notes = _choose_port(options, claims)
    keyring, _ = make_keyring(layout.keys, layout.trust)
    started_at = datetime.now(UTC)
    copies = _back_up(layout, stamp=started_at.strftime("%Y%m%dT%H%M%SZ"))
    notes = (*notes, *(f"backed up before migration: {copy}" for copy in copies))
    decided = named_in_files(options.environment, Path.cwd())
    tools, off = _tools(options, sockets, keyring)
    trainer, trainer_off = _trainer(layout, keyring)
    wiring = Wiring(
        layout, sockets, keyring, options.host, port, options.environment, decided, tools, trainer
    )
    if wiring.trusts_development:
        notes = (*notes, DEVELOPMENT_BANNER)
    if not layout.gateway_database.exists():
        # A key whose hash is gone opens nothing; a new one is made with the new database.
        layout.cli_key_file.unlink(missing_ok=True)
    _remove_sockets(wiring)
    make_private_directory(sockets)
    me = ProcessId.of(os.getpid())
    if me is None:
        raise FailedPreconditionError("this process cannot see itself; /proc or ps is missing")
    host = LOOPBACK if options.host in {"0.0.0.0", "::"} else options.host  # noqa: S104 - compared, not bound
    scheme = "https" if options.environment.get("KALA_GATEWAY_HTTP_CERT_FILE") else "http"
    netloc = f"[{host}]" if ":" in host else host
    record = SuiteRecord(
        phase=Phase.STARTING,
        supervisor=me,
        gateway_url=f"{scheme}://{netloc}:{port}",
        sockets=sockets,
        started_at=started_at.isoformat(timespec="seconds"),
        notes=notes,
        parts={**off, **trainer_off},
    )
    write_record(layout, record)
    return record, wiring


def _tools(
    options: SuiteOptions, sockets: Path, keyring: Keyring
) -> tuple[ToolsHome | None, dict[str, PartRecord]]:
    """Give the tools service its home, or say why it is off: the suite chats without it."""
    section = section_of_files(options.environment, Path.cwd(), TOOLS)
    try:
        home = tools_home(options.layout, sockets, keyring, ambient=options.environment, section=section)
    except KalaError as error:
        return None, {TOOLS: PartRecord(None, Condition.OFF, problem=error.message)}
    return home, {}


def _trainer(layout: StateLayout, keyring: Keyring) -> tuple[TrainerHome | None, dict[str, PartRecord]]:
    """Give the trainer its home, or say why it is off: the suite chats without it."""
    try:
        return trainer_home(layout, keyring), {}
    except KalaError as error:
        return None, {TRAINER: PartRecord(None, Condition.OFF, problem=error.message)}


def _ways_for_tools(home: ToolsHome | None) -> contextlib.AbstractAsyncContextManager[None]:
    if home is None or home.uid is None:
        return contextlib.nullcontext()
    return relays(home.ways, owner=home.uid)


def _back_up(layout: StateLayout, *, stamp: str) -> list[Path]:
    # The log may be large, and is copied only for a new schema; the keys are a few kilobytes.
    log = [Database(layout.audit_database, "services.audit")]
    return [
        *back_up_before_migration(log, layout.backups, stamp=stamp),
        *back_up_before_release(
            layout.gateway_database, layout.backups, release=metadata.version(DISTRIBUTION), stamp=stamp
        ),
    ]


def _choose_port(options: SuiteOptions, claims: PortClaims) -> tuple[int, tuple[str, ...]]:
    if options.port is not None:
        if options.port and not is_free(options.port, options.host):
            raise FailedPreconditionError(
                f"port {options.port} is taken by another program; choose another with --port, or leave --port out"
            )
        return options.port or claims.claim(0, options.host), ()
    port = claims.claim(DEFAULT_GATEWAY_PORT, options.host)
    if port == DEFAULT_GATEWAY_PORT:
        return port, ()
    return port, (
        f"port {DEFAULT_GATEWAY_PORT} is taken by another program, so the gateway listens on {port}",
    )


def _stop_leftovers(layout: StateLayout) -> None:
    """End what a supervisor that was killed has left: two audit services must never share one log."""
    with contextlib.suppress(KalaError):
        record = read_record(layout)
        for name in STOP_ORDER:
            part = record.parts.get(name) if record is not None else None
            if part is not None and part.process is not None:
                stop(part.process, grace_seconds=STOP_GRACE_SECONDS)


def _remove_sockets(wiring: Wiring) -> None:
    """A socket file that nobody listens on would make the next start dial a dead end."""
    for part in GRPC_PARTS:
        wiring.socket(part).unlink(missing_ok=True)
    if wiring.sockets != wiring.layout.run:
        with contextlib.suppress(OSError):
            Path(wiring.sockets).rmdir() if not any(wiring.sockets.iterdir()) else None


def _stop_on_signals() -> asyncio.Event:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stopping.set)
    return stopping
