"""The tree of commands; each module imports what is heavy only when its command runs."""

from __future__ import annotations

import sys
from typing import Final

import typer
from typer.exceptions import TyperException

from kala.cli import (
    adapters,
    audit,
    bench,
    chat,
    control,
    data,
    ethics,
    evaluate,
    health,
    init,
    keys,
    log_keys,
    logs,
    models,
    suite,
    tools,
    train,
)

EXIT_ABORTED: Final = 130
"""As a shell reports a command that Ctrl-C ended."""

application = typer.Typer(
    name="kala",
    help="Run, use and verify KALA: local models behind signed laws and a log that proves what happened.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

application.command("init")(init.init)
application.command("up")(suite.up)
application.command("down")(suite.down)
application.command("status")(suite.status)
application.command("logs")(logs.logs)
application.command("chat")(chat.chat)
application.add_typer(health.group, name="health")
application.add_typer(control.group, name="control")
application.add_typer(models.group, name="models")
application.add_typer(tools.group, name="tools")
application.add_typer(data.group, name="data")
application.add_typer(train.group, name="train")
application.command("eval")(evaluate.evaluate)
application.add_typer(adapters.group, name="adapters")
application.add_typer(bench.group, name="bench")
keys.group.command("rotate-log")(log_keys.rotate_log)
keys.group.command("cosigner")(log_keys.cosigner)
application.add_typer(keys.group, name="keys")
application.add_typer(audit.group, name="audit")
application.add_typer(ethics.group, name="ethics")


def command_line(argv: list[str] | None = None) -> int:
    """Parse and run; a usage error is one line that points to the help, exit code 2."""
    command = typer.main.get_command(application)
    try:
        result = command.main(args=argv, prog_name="kala", standalone_mode=False)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        place = "kala" if context is None else context.command_path
        # Typer words the help of a bare group as an error too.
        is_help = error.format_message().startswith("Usage:")
        hint = "" if is_help else f" (see `{place} --help`)"
        sys.stderr.write(f"{'' if is_help else 'kala: '}{error.format_message()}{hint}\n")
        return error.exit_code
    except typer.Abort:
        return EXIT_ABORTED
    return result if isinstance(result, int) else 0
