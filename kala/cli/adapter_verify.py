"""`kala adapters verify`: hold an adapter's folder against pinned keys, offline, as inference does before it loads."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kala.cli.options import JsonOption, StateOption, layout_of
from kala.cli.output import note, show, show_json
from kala.errors import FailedPreconditionError

if TYPE_CHECKING:
    from kala.suite.layout import StateLayout

VERIFIER: Final = "services.trainer.verify"
EXIT_REFUSED: Final = 1

KeyFiles = list[Path] | None


def verify(
    adapter: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTER", help="A folder, or the name of an adapter of the suite: <name>@<version>."
        ),
    ],
    *,
    trainer_key: Annotated[
        KeyFiles,
        typer.Option(help="Who may have signed it, PEM. Default: the suite's trainer.", show_default=False),
    ] = None,
    ethics_key: Annotated[
        KeyFiles,
        typer.Option(help="Whose counts a gate rests on, PEM. Default: the suite's.", show_default=False),
    ] = None,
    tools_key: Annotated[KeyFiles, typer.Option(help="The same of tools.", show_default=False)] = None,
    log_key: Annotated[
        KeyFiles,
        typer.Option(
            help="The log that holds its gate, vkey lines. Default: the suite's.", show_default=False
        ),
    ] = None,
    profile: Annotated[
        KeyFiles, typer.Option(help="Gate profiles that count. Default: this release's.", show_default=False)
    ] = None,
    constitution: Annotated[
        str, typer.Option(help="Digest of the laws in force, hex. Default: whichever its gates name.")
    ] = "",
    revocations: Annotated[
        Path | None, typer.Option(help="The signed list. Default: the suite's.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
    state: StateOption = None,
) -> int:
    """Check an adapter's files, signature, gates and lineage with nothing but keys; exit code 1 when it may not serve."""
    from kala.suite.keyring import Keyring

    layout = layout_of(state)
    keyring = Keyring(layout.keys, layout.trust)
    listed = revocations or _own(layout) / "revocations.binpb"
    arguments = [
        str(_folder(adapter, layout)),
        *_each("--trainer-key", trainer_key or [keyring.trainer_public_key]),
        *_each("--ethics-key", ethics_key or [keyring.ethics_public_key]),
        *_each("--tools-key", tools_key or [keyring.tools_public_key]),
        *_each("--log-key", log_key or [layout.vkey_file]),
        *_each("--profile", profile or []),
        # The demonstration's gates count where a suite on one machine would count them, and nowhere else.
        *(["--allow-demo"] if trainer_key is None else []),
        *(["--constitution", constitution] if constitution else []),
        *(["--revocations", str(listed)] if revocations is not None or listed.exists() else []),
    ]
    return _told(arguments, as_json=as_json)


def _told(arguments: list[str], *, as_json: bool) -> int:
    """Have the verifier look, and say what it found; give the exit code."""
    command = [sys.executable, "-m", VERIFIER, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - this interpreter and our own module
    if done.returncode:
        reason = done.stderr.strip().splitlines() or ["the verifier said nothing"]
        if as_json:
            show_json({"verified": False, "reason": reason[-1]})
        note(reason[-1])
        return EXIT_REFUSED
    found: dict[str, Any] = json.loads(done.stdout)  # Any: JSON of our own module
    if as_json:
        show_json({"verified": True, **found})
    else:
        _show(found)
    return 0


def _show(found: dict[str, Any]) -> None:  # Any: as above
    show(f"{found['adapter']} holds: every file, signature, gate and ancestor")
    show(f"digest        {found['adapter_digest']}")
    show(f"signed by     {found['issuer']}")
    show(f"base          {found['base']['name']}  {found['base']['digest']}")
    for ancestor in found["ancestors"]:
        show(f"built on      {ancestor['adapter']}  {ancestor['digest']}")
    for dataset in found["datasets"]:
        show(f"learned from  {dataset['dataset']}  {dataset['digest']}")
    show(
        f"cleared by    decision {found['training']['decision']}, receipt {found['training']['intent_receipt']}"
    )
    for gate in found["gates"]:
        show(
            f"passed        {gate['profile']} under laws {gate['constitution'][:16]}, log entry {gate['log_index']}"
        )


def _folder(adapter: str, layout: StateLayout) -> Path:
    path = Path(adapter)
    if path.is_dir():
        return path
    own = _own(layout) / "adapters" / adapter.removeprefix("adapters/")
    if not own.is_dir():
        raise FailedPreconditionError(f"neither {path} nor {own} is a folder; name the adapter's folder")
    return own


def _own(layout: StateLayout) -> Path:
    from kala.suite.trainer_home import TRAINER

    return layout.data / TRAINER


def _each(option: str, files: Iterable[Path]) -> Iterator[str]:
    for file in files:
        yield from (option, str(file))
