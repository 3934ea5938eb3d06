"""The conversation of `kala chat` at a terminal: messages, three commands, and a person's word on calls that wait."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kala.cli.chat import LOG_NAME, explain, say
from kala.cli.output import note, show
from kala.cli.tool_words import call_words, on_one_line
from kala.core.connection import Connection
from kala.core.unified_session import UnifiedKALASession
from kala.errors import KalaError, PermissionDeniedError

if TYPE_CHECKING:
    from kala.client import KalaClient
    from kala.core.conversation import WaitingCall

GREETING: Final = "Commands: quit, stats, tools. Anything else is a message. Ctrl-C stops an answer."
PROMPT: Final = "You:  "
ANSWER: Final = "KALA: "
SHOWN_CHARS: Final = 2_000
"""Of a call that waits. A longer one is not decided here, where its end is not seen."""


def talk(
    client: KalaClient,
    model: str,
    parameters: Mapping[str, Any],  # Any: OpenAI's open set
    *,
    has_tools: bool,
    is_verbose: bool,
    log_dir: Path | None,
) -> None:
    """Talk until `quit` or the end of the input; an answer that fails ends that turn and not the conversation."""
    connection = Connection(client, model, defaults=dict(parameters))
    with UnifiedKALASession(
        connection=connection,
        enable_tools=has_tools,
        log_dir=log_dir,
        session_id=None if log_dir is None else LOG_NAME,
    ) as session:
        _edit_lines()
        show(GREETING)
        while (line := _line(PROMPT)) is not None:
            match line:
                case "":
                    continue
                case "quit":
                    return
                case "stats":
                    show(session.get_summary())
                case "tools":
                    _tell_tools(session)
                case _:
                    _turn(session, line, has_tools=has_tools, is_verbose=is_verbose)


def _turn(session: UnifiedKALASession, line: str, *, has_tools: bool, is_verbose: bool) -> None:
    before = session.last_reply
    try:
        say(ANSWER)
        for piece in session.stream(line, use_tools=has_tools):
            say(piece)
        show("")
        _tell_steps(session)
        while session.waiting is not None and _decided(session):
            say(f"{ANSWER}{session.resume()}")
            show("")
            _tell_steps(session)
    except KeyboardInterrupt:
        show("")
        note("stopped; this turn is not remembered")
    except KalaError as error:
        show("")
        note(f"error: {error.message}")
    reply = session.last_reply
    if is_verbose and reply is not None and reply is not before:
        explain(reply)


def _decided(session: UnifiedKALASession) -> bool:
    """Ask the person about every call that waits; False where somebody else must decide, or elsewhere."""
    waiting = session.waiting
    for call in () if waiting is None else waiting.calls:
        if not _show_call(call):
            note(
                "the call is longer than what is shown: read it with `kala tools approvals list --json`, decide with "
                f"`kala tools approvals approve {call.approval}`; then ask again"
            )
            return False
        answer = _line("Let it run? [y/N] ")
        try:
            session.decide(call.approval, approve=(answer or "").lower() in {"y", "yes"})
        except PermissionDeniedError as error:
            note(f"{error.message}; then ask again")
            return False
    return True


def _show_call(call: WaitingCall) -> bool:
    """Show what would run; False where that is only its beginning."""
    words = call_words(call.arguments)
    show(f"{on_one_line(call.tool)} wants to run, and waits for you: {on_one_line(call.reason)}")
    is_whole = len(words) <= SHOWN_CHARS
    show(f"  {words if is_whole else f'{words[:SHOWN_CHARS]}… ({len(words)} characters)'}")
    return is_whole


def _tell_steps(session: UnifiedKALASession) -> None:
    reply = session.last_reply
    for step in ((reply.tools if reply is not None else None) or {}).get("steps") or ():
        code = step.get("exit_code")
        ended = "" if code is None else f", exit code {code}"
        note(f"tool      {on_one_line(str(step.get('tool')))}: {step.get('status')}{ended}")


def _tell_tools(session: UnifiedKALASession) -> None:
    try:
        show(", ".join(session.list_tools()) or "no tools in this conversation; start it with --tools")
    except KalaError as error:
        note(f"error: {error.message}")


def _line(prompt: str) -> str | None:
    """The next line without blanks around it; None at the end of the input, and when Ctrl-C was pressed."""
    try:
        return input(prompt).strip()
    except (EOFError, KeyboardInterrupt):
        show("")
        return None


def _edit_lines() -> None:
    """Let the arrow keys work, where Python was built with readline."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - its import changes `input`
