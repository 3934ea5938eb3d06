"""`kala audit verify`: a log as a file, as tiles or behind an address, or an export, each with nothing but a public key."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kala.cli.audit_inputs import (
    RememberOption,
    TokenOption,
    VkeyOption,
    is_address,
    is_database,
    judged,
    read_text,
    remember,
    remembered,
    tiles_at,
    trusted_of,
)
from kala.cli.options import JsonOption, StateOption, layout_of
from kala.cli.output import show, show_json
from kala.errors import InvalidArgumentError

if TYPE_CHECKING:
    from kala.audit.export import ExportReport
    from kala.audit.note import Verifier
    from kala.audit.verify import LogReport

_MEGABYTE: Final = 1 << 20

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is to be verified, with what."""

    log: str
    is_database: bool
    trusted: list[Verifier]
    pinned: str | None
    resume: bool
    first: int
    leaves: bool
    quick: bool
    manifest: Path | None
    token_file: Path | None


def verify(
    log: Annotated[
        str | None,
        typer.Argument(
            help="An SQLite file, a directory of tiles, the address of a tile API, or an export with its manifest"
            " beside it. Default: data/audit.db of --state.",
            show_default=False,
        ),
    ] = None,
    *,
    state: StateOption = None,
    database: Annotated[
        Path | None, typer.Option("--db", help="The same as LOG, for a file.", show_default=False)
    ] = None,
    vkey: VkeyOption = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="A checkpoint kept from before. Default: trust/last_checkpoint of --state, for its own log.",
            show_default=False,
        ),
    ] = None,
    keep: RememberOption = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Read only entries that came after the checkpoint kept from before."),
    ] = False,
    first: Annotated[
        int,
        typer.Option(
            "--from-entry",
            min=0,
            help="The first entry to read: for a log that dropped older ones.",
        ),
    ] = 0,
    leaves: Annotated[
        bool,
        typer.Option(
            "--leaves",
            help="Of tiles, also read what each entry says. The signature covers its bytes anyway.",
        ),
    ] = False,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Of a file, check entries and tiles alone: not columns, payloads and older checkpoints.",
        ),
    ] = False,
    manifest: Annotated[
        Path | None,
        typer.Option(help="Of an export. Default: its name with .manifest.json.", show_default=False),
    ] = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> int:
    """Check every entry of a log; names the first bad one. A log in use may be checked too."""
    layout = layout_of(state)
    ours = log is None and database is None
    kept = layout.last_checkpoint if ours and checkpoint is None and keep is None else keep
    started = time.process_time()

    def check() -> int:
        if log is not None and database is not None:
            raise InvalidArgumentError("--db", "is the same as the argument; give one of them")
        if checkpoint is not None and keep is not None:
            raise InvalidArgumentError("--remember", "and --checkpoint both pin the log; give one of them")
        pinned = remembered(kept) if checkpoint is None else read_text(checkpoint)
        asked = _Asked(
            log=log or str(database or layout.audit_database),
            is_database=log is None or (not is_address(log) and is_database(Path(log))),
            trusted=trusted_of(vkey, layout),
            pinned=pinned,
            resume=resume,
            first=first,
            leaves=leaves,
            quick=quick,
            manifest=manifest,
            token_file=token_file,
        )
        facts, newest = _facts(asked)
        if kept is not None and newest is not None:
            remember(kept, newest)
        _show({**facts, **_spent(started)}, as_json=as_json)
        return 0

    return judged(check, as_json=as_json)


# Any below: what `--json` prints.
def _facts(asked: _Asked) -> tuple[dict[str, Any], str | None]:
    """What holds, and the newest checkpoint to keep."""
    path = Path(asked.log)
    with _bar() as on_progress:
        if asked.is_database:
            return _of_log(_database(path, asked, on_progress))
        if is_address(asked.log) or path.is_dir():
            return _of_log(_tiles(asked, on_progress))
        return _of_export(_export(path, asked, on_progress))


def _database(path: Path, asked: _Asked, on_progress: OnProgress) -> LogReport:
    from kala.audit.database import verify_database

    if asked.quick or asked.resume or asked.first:
        return _tiles(asked, on_progress)
    return verify_database(path, asked.trusted, pinned=asked.pinned, on_progress=on_progress)


def _tiles(asked: _Asked, on_progress: OnProgress) -> LogReport:
    from kala.audit.leaf_check import LeafCheck
    from kala.audit.mirror import verify_tiles

    with tiles_at(asked.log, asked.token_file) as source:
        return verify_tiles(
            source,
            asked.trusted,
            pinned=asked.pinned,
            resume=asked.resume,
            first=asked.first,
            on_progress=on_progress,
            on_entry=LeafCheck().take if asked.leaves else None,
        )


def _export(path: Path, asked: _Asked, on_progress: OnProgress) -> ExportReport:
    from kala.audit.export import manifest_path, verify_export
    from kala.audit.report import UnverifiableError

    for option, is_given in (("--resume", asked.resume), ("--from-entry", asked.first)):
        if is_given:
            raise InvalidArgumentError(option, "is for logs; an export is checked whole")
    described = asked.manifest or manifest_path(path)
    if not path.is_file() or not described.is_file():
        raise UnverifiableError(
            f"{path} is not a file of a log, nor a directory of tiles, nor an export with its manifest {described}"
            if path.exists()
            else f"{path} is not a file, a directory or an address"
        )
    return verify_export(
        path, asked.trusted, manifest=described, pinned=asked.pinned, on_progress=on_progress
    )


def _of_log(report: LogReport) -> tuple[dict[str, Any], str]:  # Any: JSON
    facts = {
        "result": "good",
        "kind": "log",
        "entries": report.entries,
        "resumed_from": report.resumed_from,
        "checkpoints": report.checkpoints,
        "payloads": report.payloads,
        "payloads_erased": report.payloads_erased,
        "root": report.checkpoint.root.hex(),
        "origin": report.checkpoint.origin,
    }
    return facts, report.checkpoint_note


def _of_export(report: ExportReport) -> tuple[dict[str, Any], None]:  # Any: JSON
    manifest = report.manifest
    facts = {
        "result": "good",
        "kind": "export",
        "entries": manifest.count,
        "format": manifest.format,
        "filter": dict(manifest.filter),
        "is_whole_log": manifest.is_whole,
        "proved_line_by_line": report.is_proved,
        "tree_size": manifest.checkpoint.size,
        "root": manifest.checkpoint.root.hex(),
        "origin": manifest.origin,
        "created_at": manifest.created_at,
        "receipt": manifest.receipt,
    }
    return facts, None


def _show(facts: Mapping[str, Any], *, as_json: bool) -> None:  # Any: JSON
    if as_json:
        show_json(facts)
        return
    entries, origin = facts["entries"], facts["origin"]
    if facts["kind"] == "log":
        start = facts["resumed_from"]
        read = f", read from entry {start} on" if start else ""
        show(f"good: {entries} entries of {origin}{read}, {facts['checkpoints']} signed checkpoints")
    else:
        part = "the whole log" if facts["is_whole_log"] else f"part of its {facts['tree_size']}"
        proved = "every line proved" if facts["proved_line_by_line"] else "the data as the log signed it"
        show(f"good: an export of {entries} entries of {origin}, {part}; {proved}")
        show(
            f"exported {facts['created_at']}, receipt {facts['receipt']}, filter {facts['filter'] or 'none'}"
        )
    show(
        f"root {facts['root']}, {facts['cpu_seconds']:.2f} s of CPU time,"
        f" {facts['peak_memory_mb']:.0f} MB of memory at most"
    )


def _spent(started: float) -> dict[str, float]:
    """What this process used since then, in CPU time, and ever, in memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In kilobytes, but on macOS in bytes.
    peak_bytes = peak if sys.platform == "darwin" else peak * 1024
    return {
        "cpu_seconds": round(time.process_time() - started, 3),
        "peak_memory_mb": round(peak_bytes / _MEGABYTE, 1),
    }


@contextmanager
def _bar() -> Iterator[OnProgress]:
    """A bar on standard error while entries go by; none where nobody would see it move."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.progress import Progress

    from kala.cli.output import console

    with Progress(console=console(to_stderr=True), transient=True) as progress:
        task = progress.add_task("entries", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
