"""`kala chat`: one question, its answer as it is released, and on request the decision and the receipt."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kala.cli.options import JsonOption, KeyOption, StateOption, UrlOption
from kala.cli.output import note, show, show_json

if TYPE_CHECKING:
    from kala.replies import ChatReply

LOG_NAME: Final = "chat"
"""All questions of the command line share one log, so that its size stays bounded."""


def chat(
    message: Annotated[str, typer.Argument(help='What to ask; "-" reads it from standard input.')],
    *,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the decision and the receipt too.")
    ] = False,
    model: Annotated[str, typer.Option(help="A model id, or auto for the router's choice.")] = "auto",
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest answer, in tokens.", show_default=False)
    ] = None,
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
    """Ask one question; a refusal is an answer too, and its text says why."""
    from kala.client import KalaClient
    from kala.session_log import SessionLog
    from kala.target import find_target

    log = None if log_dir is None else SessionLog(log_dir, LOG_NAME)
    text = sys.stdin.read() if message == "-" else message
    parameters: dict[str, Any] = {} if max_tokens is None else {"max_tokens": max_tokens}
    with KalaClient(find_target(url=url, key=key, state=state)) as client:
        started = time.monotonic()
        with client.stream([{"role": "user", "content": text}], model=model, **parameters) as answer:
            for piece in answer:
                if not as_json:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
        reply = answer.reply
        latency_ms = (time.monotonic() - started) * 1000
        if as_json:
            show_json(_as_json(reply))
        elif reply.text and not reply.text.endswith("\n"):
            show("")
        if verbose and not as_json:
            _explain(reply)
        if log is not None:
            log.write(client, text, reply, latency_ms=latency_ms)
        if save_receipt is not None and reply.receipt is not None:
            save_receipt.write_text(client.receipt(reply.receipt.id), encoding="utf-8")
            note(f"receipt saved; verify it with `kala audit receipt {save_receipt}`")


def _explain(reply: ChatReply) -> None:
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
