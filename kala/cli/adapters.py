"""`kala adapters`: list, judge, promote, load, export, verify and revoke what training made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer

from kala.cli.adapter_verify import verify
from kala.cli.evaluate import show_evaluation
from kala.cli.options import JsonOption, KeyOption, StateOption, UrlOption
from kala.cli.output import note, show, show_json, table
from kala.cli.trainer_words import bar_of, hexadecimal, size, trainer_of, when, word
from kala.errors import FailedPreconditionError, InvalidArgumentError

group = typer.Typer(help="List, promote, load, export, verify and revoke adapters.", no_args_is_help=True)

group.command("verify")(verify)

EXIT_FAILED: Final = 1

FORMATS: Final = ("peft", "merged", "gguf-lora", "gguf-merged", "mlx")
STATES: Final = ("candidate", "promoted", "revoked")

EMBEDDED_BASE: Final = "kala-embedded"
EMBEDDED_BACKEND: Final = "demo"

# Any: JSON of the gateway.
Json = Mapping[str, Any]

AdapterArgument = Annotated[
    str, typer.Argument(metavar="ADAPTER", help="adapters/<name>@<version>, or <name>@<version>.")
]


@group.command("list")
def list_adapters(
    *,
    name: Annotated[str, typer.Option(help="Only versions of this one.", show_default=False)] = "",
    in_state: Annotated[
        str | None, typer.Option("--in-state", help=f"Only those: {', '.join(STATES)}.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """List adapters, the newest first."""
    if in_state is not None and in_state not in STATES:
        raise InvalidArgumentError("--in-state", f"must be one of {', '.join(STATES)}")
    wanted = "" if in_state is None else f"ADAPTER_STATE_{in_state.upper()}"
    with trainer_of(url, key, state) as trainer:
        adapters = trainer.adapters(name=name, state=wanted)
    if as_json:
        show_json({"adapters": adapters})
        return
    table(None, ("adapter", "state", "base", "stage", "passed", "size", "created"), map(_row, adapters))


@group.command("show")
def show_adapter(
    adapter: AdapterArgument,
    *,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Show what an adapter is, what it learned from and which gates it passed, with all digests."""
    with trainer_of(url, key, state) as trainer:
        found = trainer.adapter(adapter)
        evaluations = [trainer.evaluation(str(name)) for name in found.get("evaluations") or ()]
    if as_json:
        show_json({**found, "evaluations_read": evaluations})
        return
    for title, value in _facts(found):
        show(f"{title:<14}{value}")
    for evaluation in evaluations:
        show_evaluation(evaluation)


@group.command()
def promote(
    adapter: AdapterArgument,
    *,
    evaluation: Annotated[
        str | None,
        typer.Option(
            help="evaluations/… that it passed. Default: the newest that it passed.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Have an adapter's manifest signed with a passed gate, so that inference may load it."""
    with trainer_of(url, key, state) as trainer:
        found = trainer.adapter(adapter)
        passed = trainer.passed_evaluation(found) if evaluation is None else trainer.evaluation(evaluation)
        promoted = trainer.promote(found, passed)
    if as_json:
        show_json(promoted)
    else:
        show(f"promoted {promoted.get('name')} by {passed.get('profile')}")
        note(f"`kala adapters load {promoted.get('name')}` lets it serve")


@group.command()
def load(
    adapter: AdapterArgument,
    *,
    backend: Annotated[
        str | None,
        typer.Option(help="The backend that has its base. Default: the one in process.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Load a promoted adapter into inference; chats then name it in the header x-kala-adapters."""
    with trainer_of(url, key, state) as trainer:
        found = trainer.adapter(adapter)
        where = backend or _backend_of(found, trainer.client.backends())
        loaded = trainer.load(found, where)
    if as_json:
        show_json(loaded)
    else:
        show(f"loaded {found['name']} in {where}")
        note(f"it answers where a chat says x-kala-adapters: {found['name']}")


@group.command()
def export(
    adapter: AdapterArgument,
    *,
    layout: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")],
    weights: Annotated[
        str, typer.Option(help="Number format of merged weights: f32, f16, q8_0. Default: the base's own.")
    ] = "",
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Write a promoted adapter for other software, and compare it with what was trained. It leaves KALA's guard."""
    if layout not in FORMATS:
        raise InvalidArgumentError("--format", f"must be one of {', '.join(FORMATS)}")
    wire = f"EXPORT_FORMAT_{layout.upper().replace('-', '_')}"
    with trainer_of(url, key, state) as trainer, bar_of(_export_words, quiet=as_json) as show_metadata:
        exported = trainer.export(adapter, wire, weights, show_metadata)
    if as_json:
        show_json(exported)
        return
    show(f"exported to {exported.get('location')}")
    rows = [
        (
            str(c.get("name")),
            f"{float(c.get('value') or 0):.6g}",
            f"{float(c.get('bound') or 0):.6g}",
            str(c.get("prompts")),
        )
        for c in exported.get("checks") or ()
    ]
    if rows:
        table(None, ("comparison", "value", "bound", "prompts"), rows)


@group.command()
def revoke(
    adapter: AdapterArgument,
    *,
    reason: Annotated[str, typer.Option(help="Why; it is logged and shown.")],
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """End an adapter's right to serve, and that of everything built on it. It cannot be undone."""
    with trainer_of(url, key, state) as trainer:
        reply = trainer.revoke(adapter, reason)
    if as_json:
        show_json(reply)
        return
    show(f"revoked {(reply.get('adapter') or {}).get('name')}")
    for descendant in reply.get("descendants") or ():
        show(f"revoked {descendant}, which is built on it")


def _export_words(metadata: Json) -> tuple[str, int, int | None]:
    return str(metadata.get("phase") or "waiting"), int(metadata.get("written_bytes") or 0), None


def _backend_of(adapter: Json, backends: list[Json]) -> str:
    """Give the backend in process that has an adapter's base."""
    base = str(adapter.get("base") or "")
    names = [
        str(each.get("name")).removeprefix("backends/") for each in backends if each.get("kind") == "pythia"
    ]
    wanted = [name for name in names if (name == EMBEDDED_BACKEND) == (base == EMBEDDED_BASE)]
    if len(wanted) != 1:
        raise FailedPreconditionError(
            f"the base {base} is in {'no' if not wanted else 'more than one'} backend of this suite; "
            f"name it with --backend (there are: {', '.join(names) or 'none'})"
        )
    return wanted[0]


def _facts(adapter: Json) -> list[tuple[str, str]]:
    description = adapter.get("description") or {}
    base, lora = description.get("base") or {}, description.get("lora") or {}
    training = description.get("training") or {}
    targets = ", ".join(f"{t.get('module')} x{t.get('matched')}" for t in lora.get("targets") or ())
    facts = [
        ("adapter", str(adapter.get("name"))),
        ("state", word(adapter.get("state"), "ADAPTER_STATE_")),
        ("digest", hexadecimal(adapter.get("adapter_digest"))),
        ("base", f"{base.get('name')} {hexadecimal(base.get('digest'))}"),
        ("shape", f"rank {lora.get('rank')}, alpha {lora.get('alpha')}, {targets}"),
        (
            "job",
            f"{training.get('job')}, {training.get('steps')} steps, receipt {training.get('intent_receipt')}",
        ),
        *(
            (
                word(dataset.get("use"), "DATASET_USE_"),
                f"{dataset.get('name')} {hexadecimal(dataset.get('digest'))}, {dataset.get('rows')} rows",
            )
            for dataset in description.get("datasets") or ()
        ),
        *(("built on", str(each.get("name"))) for each in description.get("ancestors") or ()),
        ("location", f"{adapter.get('location')} ({size(adapter.get('bytes'))})"),
        ("passed", ", ".join(map(str, adapter.get("passed_profiles") or ())) or "no gate"),
    ]
    if adapter.get("revoked_reason"):
        facts.append(("revoked", str(adapter["revoked_reason"])))
    if description.get("summary"):
        facts.append(("for", str(description["summary"])))
    return facts


def _row(adapter: Json) -> tuple[str, ...]:
    return (
        str(adapter.get("name")).removeprefix("adapters/"),
        word(adapter.get("state"), "ADAPTER_STATE_"),
        str(adapter.get("base") or ""),
        word(adapter.get("stage"), "ADAPTER_STAGE_"),
        ", ".join(map(str, adapter.get("passed_profiles") or ())),
        size(adapter.get("bytes")),
        when(adapter.get("created_at")),
    )
