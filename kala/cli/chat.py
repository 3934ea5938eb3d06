"""`kala chat`: one question, or a conversation at a terminal, its answers shown as they are released."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kala.cli.options import JsonOption, KeyOption, StateOption, UrlOption
from kala.cli.output import note, show, show_json
from kala.errors import InvalidArgumentError

if TYPE_CHECKING:
    from kala.client import KalaClient
    from kala.replies import ChatReply

LOG_NAME: Final = "chat"
"""All questions of the command line share one log, so that its size stays bounded."""

STDIN: Final = "-"


def chat(
    message: Annotated[
        str | None,
        typer.Argument(
            help='What to ask; "-" reads it from standard input. Without it, a conversation at a terminal.',
            show_default=False,
        ),
    ] = None,
    *,
    stdin: Annotated[
        bool,
        typer.Option(
            "--stdin", help="Read standard input, for pipes; it follows the message if there is one."
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the decision and the receipt too.")
    ] = False,
    model: Annotated[str, typer.Option(help="A model id, or auto for the router's choice.")] = "auto",
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest answer, in tokens.", show_default=False)
    ] = None,
    tools: Annotated[
        bool,
        typer.Option("--tools", help="In a conversation: let the model call KALA's tools in the sandbox."),
    ] = False,
    save_receipt: Annotated[
        Path | None, typer.Option(help="Write the receipt to this file.", show_default=False)
    ] = None,
    log_dir: Annotated[
        Path | None,
        typer.Option(
            help="Append a line with the receipt, without words, to session_chat.jsonl in this directory.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Ask one question, or talk; a refusal is an answer too, and its text says why.

    Commands of a conversation: quit, stats, tools. Ctrl-C stops an answer, Ctrl-D ends the conversation.
    """
    from kala.client import KalaClient
    from kala.target import find_target

    text = _text(message, is_piped=stdin)
    parameters: dict[str, Any] = {} if max_tokens is None else {"max_tokens": max_tokens}
    if text is None:
        _require_talk(as_json=as_json, save_receipt=save_receipt)
        from kala.cli.chat_talk import talk

        with KalaClient(find_target(url=url, key=key, state=state)) as client:
            talk(client, model, parameters, has_tools=tools, is_verbose=verbose, log_dir=log_dir)
        return
    if tools:
        raise InvalidArgumentError("--tools", "goes with a conversation; leave the message out")
    with KalaClient(find_target(url=url, key=key, state=state)) as client:
        reply = _ask(client, text, model, parameters, log_dir, is_quiet=as_json)
        if as_json:
            show_json(_as_json(reply))
        elif verbose:
            explain(reply)
        if save_receipt is not None and reply.receipt is not None:
            save_receipt.write_text(client.receipt(reply.receipt.id), encoding="utf-8")
            note(f"receipt saved; verify it with `kala audit receipt {save_receipt}`")


def _text(message: str | None, *, is_piped: bool) -> str | None:
    """The one question; None where there is to be a conversation."""
    if message == STDIN or (is_piped and message is None):
        return sys.stdin.read()
    if is_piped:
        return f"{message}\n\n{sys.stdin.read()}"
    if message is None and not sys.stdin.isatty():
        raise InvalidArgumentError(
            "MESSAGE",
            "is missing, and this is no terminal to talk at; give one, or --stdin to read it from a pipe",
        )
    return message


def _require_talk(*, as_json: bool, save_receipt: Path | None) -> None:
    for name, is_given in (("--json", as_json), ("--save-receipt", save_receipt is not None)):
        if is_given:
            raise InvalidArgumentError(name, "goes with one question; give a message")


def _ask(
    client: KalaClient,
    text: str,
    model: str,
    parameters: dict[str, Any],
    log_dir: Path | None,
    *,
    is_quiet: bool,
) -> ChatReply:
    from kala.session_log import SessionLog

    log = None if log_dir is None else SessionLog(log_dir, LOG_NAME)
    started = time.monotonic()
    with client.stream([{"role": "user", "content": text}], model=model, **parameters) as answer:
        for piece in answer:
            if not is_quiet:
                say(piece)
    reply = answer.reply
    latency_ms = (time.monotonic() - started) * 1000
    if not is_quiet and reply.text and not reply.text.endswith("\n"):
        show("")
    if log is not None:
        log.write(client, text, reply, latency_ms=latency_ms)
    return reply


def say(piece: str) -> None:
    """Show a piece of an answer; a terminal gets no control characters out of a model's mouth."""
    if sys.stdout.isatty():
        from kala.cli.tool_words import printable

        piece = printable(piece)
    sys.stdout.write(piece)
    sys.stdout.flush()


def explain(reply: ChatReply) -> None:
    """Say on standard error what stands behind the answer."""
    if (decision := reply.decision) is not None:
        law = "" if decision.law is None else f", Law {decision.law}"
        category = f" ({decision.category})" if decision.category else ""
        note(f"decision  {decision.outcome}{law}{category}")
        for step in decision.path:
            note(f"          {step}")
    if (receipt := reply.receipt) is not None:
        index = "" if receipt.index is None else f", entry {receipt.index}"
        note(f"receipt   {receipt.id} {receipt.status}{index}")
    overhead = "" if reply.overhead_ms is None else f", overhead {reply.overhead_ms:.1f} ms"
    note(f"model     {reply.model}; {reply.input_tokens} + {reply.output_tokens} tokens{overhead}")
    if reply.attempts:
        note(f"attempts  {'; '.join(reply.attempts)}")


def _as_json(reply: ChatReply) -> dict[str, object]:
    import dataclasses

    return dataclasses.asdict(reply)
