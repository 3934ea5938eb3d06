"""`kala tools`: which tools there are and under which rules, what isolation this machine gives, and running code in it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kala.cli import tool_approvals
from kala.cli.options import JsonOption, KeyOption, StateOption, UrlOption
from kala.cli.output import note, show, show_json, table
from kala.cli.tool_words import printable, short, size
from kala.errors import InvalidArgumentError

if TYPE_CHECKING:
    from kala.client import KalaClient
    from kala.tool_replies import ToolResult

group = typer.Typer(
    help="Run tools in the sandbox, and see its rules and its isolation.", no_args_is_help=True
)
group.add_typer(tool_approvals.group, name="approvals")

PATH: Final = "/kala/v1/tools"
LANGUAGES: Final = ("python", "javascript", "shell")
CODE_TOOL: Final = "code_execution"

EXIT_NOT_RUN: Final = 1
EXIT_NOT_READY: Final = 1
"""Of `kala tools selftest` where nothing may run."""

TIERS: Final = ("kubernetes", "runsc", "bubblewrap", "landlock")

SELFTEST_SECONDS: Final = 600.0
"""Every mechanism starts a dozen sandboxes; a container runtime takes a second for each."""

# Any: JSON of the gateway.
Json = Mapping[str, Any]


@group.command("list")
def list_tools(
    *, as_json: JsonOption = False, state: StateOption = None, url: UrlOption = None, key: KeyOption = None
) -> None:
    """List the tools that a model may call, with their least risk."""
    with _client(url, key, state) as client:
        reply = client.call("GET", f"{PATH}/tools")
    if as_json:
        show_json(reply)
        return
    tools: Sequence[Json] = reply.get("tools") or ()
    table(None, ("tool", "risk", "available", "what it does"), map(_tool_row, tools))
    for reason in dict.fromkeys(str(each.get("unavailable_reason") or "") for each in tools):
        if reason:
            note(f"not available: {reason}")


@group.command()
def policy(
    *, as_json: JsonOption = False, state: StateOption = None, url: UrlOption = None, key: KeyOption = None
) -> None:
    """Show the rules in force: programs, zones, limits, and what a person must approve."""
    with _client(url, key, state) as client:
        reply = client.call("GET", f"{PATH}/policy")
    if as_json:
        show_json(reply)
        return
    rules: Json = reply.get("policy") or {}
    show(f"policy {rules.get('version') or '?'} for {', '.join(rules.get('tools') or ()) or 'no tools'}")
    approvals: Json = rules.get("approvals") or {}
    show(
        f"approval from {short(approvals.get('from_risk'), 'RISK_') or 'no'} risk, "
        f"{short(approvals.get('from_risk_after_untrusted'), 'RISK_') or 'no'} after untrusted content, "
        f"by {short(approvals.get('approver'), 'APPROVER_') or 'nobody'}"
    )
    table("programs of `shell`", ("program", "risk", "files in and out", "refused arguments"),
          map(_command_row, rules.get("commands") or ()))  # fmt: skip
    table("zones of a workspace", ("path", "rights"), map(_zone_row, rules.get("zones") or ()))
    least, most = rules.get("default_limits") or {}, rules.get("max_limits") or {}
    names = [*least, *(name for name in most if name not in least)]
    table("limits of a run", ("limit", "default", "most"),
          [(name, size(name, least.get(name)), size(name, most.get(name))) for name in names])  # fmt: skip


@group.command()
def selftest(
    *,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help=f"Only this mechanism: {', '.join(TIERS)}.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Try every isolation mechanism by really starting it, and say which holds and why the others do not."""
    unknown = [name for name in only or () if name not in TIERS]
    if unknown:
        raise InvalidArgumentError("--only", f"must be one of {', '.join(TIERS)}")
    body = {"tiers": [f"ISOLATION_TIER_{name.upper()}" for name in only or ()]}
    with _client(url, key, state) as client:
        reply = client.call("POST", f"{PATH}/selftest", body=body, timeout_seconds=SELFTEST_SECONDS)
    mechanisms: Sequence[Json] = reply.get("mechanisms") or ()
    if as_json:
        show_json(reply)
    else:
        show(str(reply.get("host") or ""))
        table(
            None,
            ("mechanism", "strength", "version", "usable", "in use", "held"),
            map(_mechanism_row, mechanisms),
        )
        for each in mechanisms:
            _explain(each)
        show("tools may run" if reply.get("ready") else "nothing may run here: no mechanism holds")
    if not reply.get("ready"):
        raise typer.Exit(EXIT_NOT_READY)


@group.command(context_settings={"ignore_unknown_options": True})
def run(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Arguments of the program.", show_default=False)
    ] = None,
    *,
    language: Annotated[
        str | None,
        typer.Option(help="python, javascript or shell. Default: by the file's ending.", show_default=False),
    ] = None,
    code_file: Annotated[
        str, typer.Option("--code-file", "--file", help='File with the code; "-" reads standard input.')
    ],
    stdin_file: Annotated[
        Path | None, typer.Option("--stdin-file", help="File for its standard input.", show_default=False)
    ] = None,
    workspace: Annotated[
        str,
        typer.Option(help="workspaces/… whose files it may use. Default: an empty one.", show_default=False),
    ] = "",
    timeout: Annotated[
        float | None,
        typer.Option(help="Longest wall time, in seconds. Default: the policy's.", show_default=False),
    ] = None,
    approval: Annotated[
        str, typer.Option(help="approvals/… that a person gave for this same call.", show_default=False)
    ] = "",
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Run code in the sandbox, judged, cleared and logged. The exit code is the program's, or 1 when it never ran."""
    call: dict[str, Any] = {"language": _language(language, code_file), "code": _code(code_file)}
    if arguments:
        call["arguments"] = arguments
    action: dict[str, Any] = {
        "tool": CODE_TOOL,
        "arguments_json": json.dumps(call, ensure_ascii=False),
        "workspace": workspace,
        "approval": approval,
    }
    if timeout is not None:
        action["limits"] = {"wall_time": f"{timeout:g}s"}
    if stdin_file is not None:
        import base64

        action["stdin"] = base64.b64encode(_read(stdin_file, "--stdin-file")).decode("ascii")
    with _client(url, key, state) as client:
        if workspace:
            action["files"] = client.workspace_files(workspace)
        result = client.run_tool(action)
    if as_json:
        import dataclasses

        show_json(dataclasses.asdict(result))
    else:
        _show_run(result)
    if not result.success:
        raise typer.Exit(result.exit_code or EXIT_NOT_RUN)


def _show_run(result: ToolResult) -> None:
    if not result.ethics_approved:
        note(f"the Five Laws: {printable(result.error or '')}")
        return
    for text, stream in ((result.stdout, sys.stdout), (result.stderr, sys.stderr)):
        # A program's own escape sequences must not reach a person's terminal.
        stream.write(printable(text) if stream.isatty() else text)
        stream.flush()
    where = f" in {result.isolation}" if result.isolation else ""
    if not result.success:
        note(f"{result.status or 'not run'}{where}: {printable(result.error or '')}")
    if result.approval:
        note(
            f"a person must approve it: `kala tools approvals approve {result.approval}`, then run it again with"
        )
        note(f"--approval {result.approval}")
    for artifact in result.artifacts:
        path = printable(str(artifact.get("path")))
        note(f"artifact  {path} ({(artifact.get('content') or {}).get('bytes')} bytes)")
    if result.receipt:
        note(f"receipt   {result.receipt}{where}")


def _language(named: str | None, file: str) -> str:
    endings = {".py": "python", ".js": "javascript", ".mjs": "javascript", ".sh": "shell", ".bash": "shell"}
    found = named or endings.get(Path(file).suffix)
    if found not in LANGUAGES:
        raise InvalidArgumentError("--language", f"must be one of {', '.join(LANGUAGES)}")
    return found


def _code(file: str) -> str:
    given = sys.stdin.buffer.read() if file == "-" else _read(Path(file), "--code-file")
    try:
        return given.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgumentError("--code-file", f"is not UTF-8 at byte {error.start}") from error


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgumentError(option, f"{path} cannot be read ({error.strerror})") from error


def _client(url: str | None, key: str | None, state: Path | None) -> KalaClient:
    from kala.client import KalaClient
    from kala.target import find_target

    return KalaClient(find_target(url=url, key=key, state=state))


def _tool_row(tool: Json) -> tuple[str, ...]:
    return (
        str(tool.get("name")),
        short(tool.get("risk"), "RISK_"),
        "yes" if tool.get("available") else "no",
        str(tool.get("description") or ""),
    )


def _command_row(rule: Json) -> tuple[str, ...]:
    return (
        str(rule.get("program")),
        short(rule.get("risk"), "RISK_"),
        "yes" if rule.get("redirections") else "no",
        "  ".join(rule.get("refused_arguments") or ()),
    )


def _zone_row(zone: Json) -> tuple[str, ...]:
    rights = [name for name in ("read", "write", "delete") if zone.get(name)]
    return (str(zone.get("path") or "(all)"), ", ".join(rights) or "none")


def _mechanism_row(mechanism: Json) -> tuple[str, ...]:
    cases = mechanism.get("cases") or ()
    held = sum(bool(case.get("held")) for case in cases)
    return (
        short(mechanism.get("tier"), "ISOLATION_TIER_"),
        short(mechanism.get("strength"), "ISOLATION_STRENGTH_"),
        str(mechanism.get("version") or ""),
        "yes" if mechanism.get("usable") else "no",
        "yes" if mechanism.get("selected") else "",
        f"{held} of {len(cases)}" if cases else "",
    )


def _explain(mechanism: Json) -> None:
    """Say why a mechanism is not used, and every case in which it did not hold."""
    name = short(mechanism.get("tier"), "ISOLATION_TIER_")
    if mechanism.get("reason"):
        show(f"{name}: {mechanism['reason']}")
    for case in mechanism.get("cases") or ():
        if not case.get("held"):
            show(f"  {case.get('id')}: {case.get('description')} — {case.get('detail')}")
