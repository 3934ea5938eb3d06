"""`kala up`, `kala down`, `kala status`: the suite on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kala.cli.options import JsonOption, KeyOption, StateOption, UrlOption, layout_of
from kala.cli.output import note, show, show_json, table
from kala.errors import FailedPreconditionError, KalaError
from kala.target import URL_VARIABLE

if TYPE_CHECKING:
    from kala.suite.layout import StateLayout
    from kala.suite.record import SuiteRecord

_BACKEND_STATES: Final = "BACKEND_STATE_"
_MIB: Final = 1024 * 1024


def up(
    *,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once the suite is ready.")] = False,
    as_json: JsonOption = False,
    state: StateOption = None,
    host: Annotated[
        str, typer.Option(help="Where the gateway listens; beyond this machine it needs TLS files.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(help="Port of the gateway. Default: 8800, or a free one.", show_default=False),
    ] = None,
) -> None:
    """Start the suite and print its URL and key; without --detach, run until Ctrl-C."""
    _require_unix()
    from kala.suite.lock import SuiteRunningError

    layout = layout_of(state)
    if detach:
        from kala.suite.control import start_detached

        launched = start_detached(layout, host=host, port=port)
        if launched.process is None:
            note(f"a suite is running in {layout.root} already")
        _print_suite(layout, launched.record, as_json=as_json)
        return
    try:
        _run_in_foreground(layout, host, port, as_json=as_json)
    except SuiteRunningError:
        from kala.suite.control import wait_for_running

        record = wait_for_running(layout)
        if record is None:
            raise
        note(f"a suite is running in {layout.root} already; stop it with `kala down`")
        _print_suite(layout, record, as_json=as_json)


def down(*, state: StateOption = None) -> None:
    """Stop the suite; every part finishes its requests first."""
    _require_unix()
    from kala.suite.control import stop_suite

    layout = layout_of(state)
    stopped = stop_suite(layout)
    note(f"stopped {', '.join(stopped)}" if stopped else f"no suite runs in {layout.root}")


def status(
    *, as_json: JsonOption = False, state: StateOption = None, url: UrlOption = None, key: KeyOption = None
) -> int:
    """Show what runs; exit code 0 only when the suite is ready."""
    url = url or (os.environ.get(URL_VARIABLE) if state is None else None)
    if url is not None:
        return _remote_status(url, key, as_json=as_json)
    from kala.suite.record import Phase, running_suite

    layout = layout_of(state)
    record = running_suite(layout)
    if record is None:
        if as_json:
            show_json({"phase": "stopped", "state": str(layout.root)})
        else:
            note(f"no suite runs in {layout.root}; start one with `kala up`")
        return 1
    if as_json:
        show_json(_status_json(layout, record))
    else:
        show(f"{record.phase.value} since {record.started_at}, gateway at {record.gateway_url}")
        table(None, ("part", "condition", "pid", "memory", "restarts", "metrics"), _part_rows(record))
        _print_backends(layout, record)
        _print_tools(layout, record)
    healthy = record.phase is Phase.READY and all(
        part.condition.value in {"ready", "off"} for part in record.parts.values()
    )
    return 0 if healthy else 1


def _run_in_foreground(layout: StateLayout, host: str, port: int | None, *, as_json: bool) -> None:
    import asyncio

    from kala.suite.suite import SuiteOptions, run_suite

    async def ready(record: SuiteRecord) -> None:
        await asyncio.to_thread(_print_suite, layout, record, as_json=as_json)
        note("Ctrl-C stops it.")

    note(f"starting in {layout.root} …")
    asyncio.run(run_suite(SuiteOptions(layout, host=host, port=port), on_ready=ready, say=note))


def _print_suite(layout: StateLayout, record: SuiteRecord, *, as_json: bool) -> None:
    from kala.target import read_cli_key

    key = read_cli_key(layout)
    for line in record.notes:
        note(line)
    if as_json:
        show_json({**_status_json(layout, record), "api_key": key, "console_url": None})
        return
    from kala.suite.parts import OFF_PARTS

    rows = [
        (name, part.condition.value, part.problem or str(record.pids.get(name, "")))
        for name, part in record.parts.items()
    ]
    rows += [(name, "off", reason) for name, reason in OFF_PARTS.items()]
    table(None, ("part", "condition", "pid"), rows)
    _print_backends(layout, record)
    _print_tools(layout, record)
    show(f"gateway  {record.gateway_url}")
    show(f"api key  {key}")
    show(f'try      kala chat "What is machine learning?" -v{_state_flag(layout)}')


def _status_json(layout: StateLayout, record: SuiteRecord) -> dict[str, Any]:  # Any: JSON
    return {
        "gateway_url": record.gateway_url,
        "phase": record.phase.value,
        "pids": record.pids,
        "supervisor": record.supervisor.pid,
        "state": str(layout.root),
        "started_at": record.started_at,
        "parts": {
            name: {
                "condition": part.condition.value,
                "restarts": part.restarts,
                "metrics_url": part.metrics_url,
                "problem": part.problem,
            }
            for name, part in record.parts.items()
        },
        "vkey_file": str(layout.vkey_file),
        "notes": list(record.notes),
    }


def _part_rows(record: SuiteRecord) -> list[tuple[str, ...]]:
    from kala.suite.processes import resident_bytes

    rows: list[tuple[str, ...]] = []
    for name, part in record.parts.items():
        pid = record.pids.get(name)
        memory = None if pid is None else resident_bytes(pid)
        rows.append(
            (
                name,
                part.condition.value,
                str(pid or ""),
                "" if memory is None else f"{memory // _MIB} MiB",
                str(part.restarts),
                part.metrics_url or "",
            )
        )
    return rows


def _print_backends(layout: StateLayout, record: SuiteRecord) -> None:
    from kala.client import KalaClient
    from kala.target import Target, read_cli_key

    try:
        with KalaClient(Target(record.gateway_url, read_cli_key(layout)), sleep=lambda _: None) as client:
            backends = client.backends()
    except KalaError as error:
        note(f"backends unknown: {error.message}")
        return
    table(None, ("backend", "state", "where", "detail"), [_backend_row(backend) for backend in backends])


def _print_tools(layout: StateLayout, record: SuiteRecord) -> None:
    """Say what keeps tools inside on this machine, or why none runs."""
    part = record.parts.get("tools")
    if part is None:
        return
    if part.condition.value != "ready":
        note(
            f"tools {part.condition.value}: {part.problem}"
            if part.problem
            else f"tools {part.condition.value}"
        )
        return
    from kala.client import KalaClient
    from kala.target import Target, read_cli_key

    try:
        with KalaClient(Target(record.gateway_url, read_cli_key(layout)), sleep=lambda _: None) as client:
            tools = client.call("GET", "/kala/v1/tools/tools").get("tools") or ()
    except KalaError as error:
        note(f"tools unknown: {error.message}")
        return
    usable = [str(tool.get("name", "")) for tool in tools if tool.get("available")]
    if usable:
        note(f"tools run in a sandbox: {', '.join(usable)}; `kala tools selftest` says which and why")
    for reason in dict.fromkeys(
        str(tool["unavailable_reason"]) for tool in tools if tool.get("unavailable_reason")
    ):
        note(f"tools are off: {reason}")


def _backend_row(backend: Mapping[str, Any]) -> tuple[str, ...]:  # Any: JSON
    return (
        str(backend.get("name", "")).removeprefix("backends/"),
        str(backend.get("state", "")).removeprefix(_BACKEND_STATES).lower(),
        str(backend.get("url") or "in process"),
        str(backend.get("detail", "")),
    )


def _remote_status(url: str, key: str | None, *, as_json: bool) -> int:
    from kala.client import KalaClient
    from kala.target import find_target

    with KalaClient(find_target(url=url, key=key)) as client:
        models, backends = client.models(), client.backends()
    if as_json:
        show_json({"phase": "ready", "gateway_url": url, "models": models, "backends": list(backends)})
    else:
        show(f"ready at {url}; models: {', '.join(models) or 'none'}")
        table(None, ("backend", "state", "where", "detail"), [_backend_row(backend) for backend in backends])
    return 0


def _state_flag(layout: StateLayout) -> str:
    from kala.suite.layout import StateLayout as Layout

    return "" if layout == Layout.at(None) else f" --state {layout.root}"


def _require_unix() -> None:
    if sys.platform == "win32":
        raise FailedPreconditionError("kala up needs Linux or macOS; on Windows use it inside WSL2")
