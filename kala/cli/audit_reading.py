"""`kala audit export`, `read` and `gaps`: entries, one payload for a stated reason, and what is missing."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Final

import typer

from kala.cli.audit_gateway import AUDIT, decoded, gateway
from kala.cli.audit_inputs import judged
from kala.cli.options import JsonOption, KeyOption, StateOption, UrlOption
from kala.cli.output import note, show, show_json, table
from kala.cli.tool_words import printable, short
from kala.errors import FailedPreconditionError, InternalError, InvalidArgumentError

if TYPE_CHECKING:
    from kala.client import KalaClient

FORMATS: Final = ("jsonl", "ocsf", "cef", "otlp")
OUTCOMES: Final = ("allow", "refuse", "redirect", "ask_clarification")
EXIT_GAPS: Final = 1
DEFAULT_INTENT_SECONDS: Final = 900
_ENTRY: Final = re.compile(r"(?:entries/)?(0|[1-9][0-9]{0,18})")
_RECEIPT: Final = re.compile(r"rcpt_[0-9a-f]{32}")

ReasonOption = Annotated[
    str, typer.Option("--reason", help="Why; 8 to 1,024 characters. It is logged, so name no person in it.")
]
TenantOption = Annotated[
    str, typer.Option(help="Only this tenant's. Default: your key's own.", show_default=False)
]


def export(
    file: Annotated[
        Path, typer.Argument(help="Where to write; the manifest goes beside it, as FILE.manifest.json.")
    ],
    *,
    form: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")] = "jsonl",
    since: Annotated[
        str, typer.Option("--from", help="From this time on, RFC 3339.", show_default=False)
    ] = "",
    until: Annotated[str, typer.Option("--until", help="Before this time.", show_default=False)] = "",
    types: Annotated[
        list[str] | None,
        typer.Option("--type", help="Only this type; may be repeated.", show_default=False),
    ] = None,
    outcomes: Annotated[
        list[str] | None,
        typer.Option(
            "--outcome", help=f"Only this: {', '.join(OUTCOMES)}; may be repeated.", show_default=False
        ),
    ] = None,
    actor: Annotated[str, typer.Option(help="Only this pseudonym's.", show_default=False)] = "",
    law: Annotated[
        int | None, typer.Option(min=0, max=4, help="Only of this law.", show_default=False)
    ] = None,
    model: Annotated[str, typer.Option(help="Only answers of this model.", show_default=False)] = "",
    tool: Annotated[str, typer.Option(help="Only of this tool.", show_default=False)] = "",
    trace: Annotated[str, typer.Option(help="Only of this trace id.", show_default=False)] = "",
    tenant: TenantOption = "",
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Write entries to a file with a signed manifest, so that another machine verifies them with the log's key alone."""
    if form not in FORMATS:
        raise InvalidArgumentError("--format", f"must be one of {', '.join(FORMATS)}")
    for outcome in outcomes or ():
        if outcome not in OUTCOMES:
            raise InvalidArgumentError("--outcome", f"must be one of {', '.join(OUTCOMES)}")
    manifest_file = file.with_name(f"{file.name}.manifest.json")
    for path in () if force else (file, manifest_file):
        if path.exists():
            raise FailedPreconditionError(f"{path} exists; choose another name, or say --force")
    chosen: dict[str, Any] = {  # Any: JSON
        "from": since,
        "until": until,
        "actor": actor,
        "model": model,
        "tool": tool,
        "trace_id": trace,
        "tenant": tenant,
        "types": types,
        "outcomes": [f"OUTCOME_{outcome.upper()}" for outcome in outcomes or ()],
        "law": law,
    }
    # Law 0 is a law.
    wanted = {name: value for name, value in chosen.items() if value or value == 0}
    body = {"filter": wanted, "format": f"EXPORT_FORMAT_{form.upper()}"}
    with gateway(url, key, state) as client:
        size = _write_export(client, body, file, manifest_file)
    if as_json:
        show_json({"file": str(file), "manifest": str(manifest_file), "bytes": size})
        return
    show(f"{file}: {size} bytes, with {manifest_file.name}")
    note(f"`kala audit verify {file}` checks both, with the log's public key alone")


# Any below: JSON of the gateway.
def _write_export(client: KalaClient, body: Mapping[str, Any], file: Path, manifest_file: Path) -> int:
    """Write both files under their names only when the last part has come; give the size of the data."""
    manifest: bytes | None = None
    with _replacing(file) as out, client.lines(f"{AUDIT}/entries:export", body=body) as parts:
        for part in parts:
            if "manifest" in part:
                manifest = decoded(part["manifest"], "manifest")
            else:
                out.write(decoded(part.get("data"), "export"))
        if manifest is None:
            raise InternalError("the export ended without its manifest; nothing was written")
        with _replacing(manifest_file) as beside:
            beside.write(manifest)
        return out.tell()


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A private file that takes its name when all of it is written, and leaves nothing behind otherwise."""
    import tempfile

    partial: Path | None = None
    try:
        # A name that nobody can lay a link or a file of their own under before.
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        partial = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        raise FailedPreconditionError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def read(
    entry: Annotated[str, typer.Argument(help="An entry's index, entries/<index>, or rcpt_<id>.")],
    kind: Annotated[
        str, typer.Argument(help="request, derived, generated, released, tool_arguments or tool_result.")
    ],
    *,
    reason: ReasonOption,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write to this file, for you alone. Default: print.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Read the content that belongs to an entry. The reason is logged before the content is given."""
    with gateway(url, key, state) as client:
        name = _entry_name(client, entry)
        path = f"{AUDIT}/{name}/payloads/{kind}:read"
        reply = client.call("POST", path, body={"reason": reason})
    data, salt = decoded(reply.get("data"), "payload"), decoded(reply.get("salt"), "salt").hex()
    if out is not None:
        with _replacing(out) as file:
            file.write(data)
    if as_json:
        text = {} if out is not None else {"text": data.decode(errors="replace")}
        show_json({"entry": name, "kind": kind, "bytes": len(data), "opening": salt, **text})
    elif out is not None:
        show(f"{out}: {len(data)} bytes of {name}, opened by {salt}")
    elif sys.stdout.isatty():
        show(printable(data.decode(errors="replace")))
    else:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def _entry_name(client: KalaClient, entry: str) -> str:
    if _RECEIPT.fullmatch(entry):
        receipt = client.call("GET", f"{AUDIT}/receipts/{entry}")["receipt"]
        return f"entries/{int(receipt.get('index') or 0)}"
    found = _ENTRY.fullmatch(entry)
    if found is None:
        raise InvalidArgumentError("ENTRY", "must be an index, entries/<index> or rcpt_<32 hex>")
    return f"entries/{found[1]}"


def gaps(
    *,
    intent_seconds: Annotated[
        int, typer.Option("--intent-seconds", min=0, help="Age at which an intent without outcome counts.")
    ] = DEFAULT_INTENT_SECONDS,
    tenant: TenantOption = "",
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> int:
    """List intents without an outcome and holes in producers' numbers; exit code 1 when there are any, 2 when nobody tells."""
    params = {"intent_age": f"{intent_seconds}s", **({"filter.tenant": tenant} if tenant else {})}

    def check() -> int:
        with gateway(url, key, state) as client:
            found = client.pages(f"{AUDIT}/gaps", "gaps", params=params)
        if as_json:
            show_json({"gaps": found})
        elif found:
            table(None, ("what", "producer", "boot", "where", "noticed"), map(_gap_row, found))
        else:
            show("no gaps")
        return EXIT_GAPS if found else 0

    return judged(check, as_json=as_json)


def _gap_row(gap: Mapping[str, Any]) -> tuple[str, str, str, str, str]:  # Any: JSON
    producer: Mapping[str, Any] = gap.get("producer") or {}  # Any: JSON
    kind = short(gap.get("kind"), "GAP_KIND_")
    where = str(gap.get("entry") or f"numbers {gap.get('first_missing')} to {gap.get('last_missing')}")
    boot = decoded(producer.get("boot"), "boot").hex()
    return kind, str(producer.get("id")), boot, where, str(gap.get("noticed_at") or "")
