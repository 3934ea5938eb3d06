"""`kala audit diff` and `kala audit monitor`: two checkpoints against each other, and a log against what it was."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kala.cli.audit_inputs import (
    EXIT_TAMPERED,
    EXIT_UNVERIFIABLE,
    RememberOption,
    TokenOption,
    VkeyOption,
    judged,
    read_text,
    remember,
    remembered,
    say_bad,
    say_tampered,
    tiles_at,
    trusted_of,
    vkey_text,
)
from kala.cli.options import JsonOption, KeyOption, StateOption, UrlOption, layout_of
from kala.cli.output import note, show, show_json
from kala.target import URL_VARIABLE

if TYPE_CHECKING:
    from kala.audit.checkpoint import Checkpoint
    from kala.audit.compare import Comparison, LogView
    from kala.audit.cosignature import Witness
    from kala.audit.monitor import Policy, Sight
    from kala.audit.note import Verifier

DEFAULT_SECONDS: Final = 60.0
CONFLICT_SUFFIX: Final = ".conflict"

LogOption = Annotated[
    str | None,
    typer.Option(
        "--log",
        help="Where proofs are: an address, a directory of tiles, or an SQLite file. Default: the gateway.",
        show_default=False,
    ),
]


def diff(
    first: Annotated[Path, typer.Argument(help="A checkpoint, as a file.")],
    second: Annotated[
        Path | None,
        typer.Argument(help="Another one. Default: what the log shows now.", show_default=False),
    ] = None,
    *,
    log: LogOption = None,
    vkey: VkeyOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> int:
    """Say whether two checkpoints are the same, one continues the other, or the log was forked; exit code 1 for a fork."""
    layout = layout_of(state)

    def check() -> int:
        from kala.audit.compare import compare

        trusted = trusted_of(vkey, layout)
        older = _signed(read_text(first), str(first), trusted)
        known = None if second is None else _signed(read_text(second), str(second), trusted)
        if known is not None and known.size == older.size:
            return _tell(compare(older, known), as_json=as_json)
        with _view(log, token_file, (url, key, state)) as view:
            newer = known or _signed(view.newest(), "the log's checkpoint", trusted)
            return _tell(compare(older, newer, view, trusted), as_json=as_json)

    return judged(check, as_json=as_json)


def monitor(
    log: Annotated[
        str | None,
        typer.Argument(
            help="An address of tiles, or a directory of them. Default: the gateway.", show_default=False
        ),
    ] = None,
    *,
    keep: RememberOption = None,
    every: Annotated[
        float, typer.Option("--every", min=0.1, help="Seconds between two looks.")
    ] = DEFAULT_SECONDS,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    witness: Annotated[
        list[str] | None,
        typer.Option(
            help="Public key of a witness, as text or as a file. May be given several times.",
            show_default=False,
        ),
    ] = None,
    require: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="How many of the witnesses must have cosigned. Default: a majority.",
            show_default=False,
        ),
    ] = None,
    max_age: Annotated[
        float | None,
        typer.Option(
            "--max-age", min=0, help="Seconds that their cosignatures may be old.", show_default=False
        ),
    ] = None,
    vkey: VkeyOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> int:
    """Follow a log: that it only grows, and that witnesses saw the same. Ends with 1 when it was forked, cut or forged.

    With --once it ends with 2 when that cannot be told; without, it says so and looks again.
    """
    ours = log is None and url is None and URL_VARIABLE not in os.environ
    kept = layout_of(state).trust / "monitored_checkpoint" if keep is None and ours else keep

    def check() -> int:
        policy = _policy(vkey, witness, require, max_age, state)
        before = remembered(kept)
        while True:
            code, seen = _look(log, token_file, (url, key, state), policy, before, kept, as_json=as_json)
            if seen is not None and seen != before:
                before = seen
                if kept is not None:
                    remember(kept, seen)
            if once or code == EXIT_TAMPERED:
                return code
            time.sleep(every)

    return judged(check, as_json=as_json)


def _look(
    log: str | None,
    token_file: Path | None,
    at: tuple[str | None, str | None, Path | None],
    policy: Policy,
    before: str | None,
    kept: Path | None,
    *,
    as_json: bool,
) -> tuple[int, str | None]:
    """Look once: the exit code of it, and the checkpoint to keep."""
    from kala.audit.monitor import HistoryError, look
    from kala.audit.report import TamperedError
    from kala.errors import KalaError

    try:
        with _view(log, token_file, at) as view:
            sight = look(view, policy, before, now=time.time())
    except TamperedError as error:
        say_tampered(error, as_json=as_json)
        if isinstance(error, HistoryError) and kept is not None:
            evidence = kept.with_name(f"{kept.name}{CONFLICT_SUFFIX}")
            remember(evidence, error.note)
            note(
                f"{kept} and {evidence} together prove it: keep both"
                if error.is_proof
                else f"what it showed is kept in {evidence}; it proves a fork only with another history's entries"
            )
        return EXIT_TAMPERED, None
    except KalaError as error:
        say_bad("unverifiable", error, as_json=as_json)
        return EXIT_UNVERIFIABLE, None
    if sight.note != before:
        _tell_sight(sight, is_first=before is None, as_json=as_json)
    return 0, sight.note


def _policy(
    vkey: list[str] | None,
    witness: list[str] | None,
    require: int | None,
    max_age: float | None,
    state: Path | None,
) -> Policy:
    from kala.audit.monitor import Policy
    from kala.audit.report import UnverifiableError

    witnesses = [_witness(line) for given in witness or () for line in vkey_text(given).splitlines() if line]
    needed = (len(witnesses) // 2 + 1 if witnesses else 0) if require is None else require
    if needed > len({one.name for one in witnesses}):
        raise UnverifiableError(
            f"--require {needed} is more than the {len(witnesses)} witnesses that are named"
        )
    return Policy(trusted_of(vkey, layout_of(state)), witnesses, needed, max_age)


def _witness(line: str) -> Witness:
    from kala.audit.cosignature import Witness
    from kala.audit.report import UnverifiableError
    from kala.errors import VerificationError

    try:
        return Witness.parse(line)
    except VerificationError as error:
        raise UnverifiableError(f"--witness: {error.message}") from error


def _signed(text: str, name: str, trusted: list[Verifier]) -> Checkpoint:
    from kala.audit.checkpoint import open_checkpoint
    from kala.audit.report import UnverifiableError
    from kala.errors import VerificationError

    try:
        return open_checkpoint(text, trusted)
    except VerificationError as error:
        raise UnverifiableError(f"{name} cannot be used: {error.message}") from error


@contextmanager
def _view(
    log: str | None, token_file: Path | None, at: tuple[str | None, str | None, Path | None]
) -> Iterator[LogView]:
    """What is asked for checkpoints and proofs: tiles where they are named, else the gateway."""
    from kala.audit.compare import TileView

    if log is not None:
        with tiles_at(log, token_file) as source:
            yield TileView(source)
        return
    from kala.cli.audit_gateway import GatewayView, gateway

    with gateway(*at) as client:
        yield GatewayView(client)


def _tell(found: Comparison, *, as_json: bool) -> int:
    from kala.audit.compare import Relation

    is_forked = found.relation is Relation.FORKED
    if as_json:
        show_json(
            {
                "result": found.relation.value,
                "origin": found.older.origin,
                "sizes": [found.older.size, found.newer.size],
                "roots": [found.older.root.hex(), found.newer.root.hex()],
            }
        )
    else:
        words = {
            Relation.SAME: "the same: both are of {1} entries with one root",
            Relation.CONSISTENT: "consistent: the {1} entries begin with the {0}",
            Relation.FORKED: "forked: the log signed two histories, of {0} and of {1} entries, that part before {0}",
        }
        show(words[found.relation].format(found.older.size, found.newer.size))
    return EXIT_TAMPERED if is_forked else 0


def _tell_sight(sight: Sight, *, is_first: bool, as_json: bool) -> None:
    relation = "first seen" if is_first else sight.relation.value
    if as_json:
        show_json(
            {
                "result": "good",
                "relation": relation,
                "origin": sight.checkpoint.origin,
                "size": sight.checkpoint.size,
                "root": sight.checkpoint.root.hex(),
                "cosigned_by": list(sight.cosigned),
            }
        )
        return
    cosigned = f", cosigned by {', '.join(sight.cosigned)}" if sight.cosigned else ""
    show(f"{relation}: {sight.checkpoint.size} entries of {sight.checkpoint.origin}{cosigned}")
