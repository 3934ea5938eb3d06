"""`kala chat` as a conversation and in pipes, against a scripted gateway."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import kala.client
from kala.cli import main
from kala.cli.output import table
from kala.client import KalaClient
from kala.target import Target
from tests.fakes.gateway import RECEIPT_ID, FakeGateway, completion, failure, stream

AT = ("--url", "http://127.0.0.1:8800", "--key", "kala_x")
Use = Callable[..., FakeGateway]
WORKSPACE = "workspaces/0." + "c" * 32
APPROVAL = "approvals/0." + "a" * 32
CALL = {"id": "c1", "type": "function", "function": {"name": "shell", "arguments": '{"command":"rm x"}'}}


class Terminal(io.StringIO):
    """A person's keyboard: lines, and then Ctrl-D."""

    def isatty(self) -> bool:
        return True


class Screen(io.StringIO):
    """A person's screen."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Let the command reach a scripted gateway, with these lines typed at a terminal."""

    def install(gateway: FakeGateway, *lines: str) -> FakeGateway:
        def client(target: Target, **_: object) -> KalaClient:
            return KalaClient(target, gateway.transport, lambda _: None)

        monkeypatch.setattr(kala.client, "KalaClient", client)
        monkeypatch.setattr(sys, "stdin", Terminal("".join(f"{line}\n" for line in lines)))
        return gateway

    return install


def waiting(call: dict[str, Any] = CALL) -> httpx.Response:
    said = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    needed = {"call_id": "c1", "tool": "shell", "approval": APPROVAL, "reason": "it deletes files"}
    tools = {
        "steps": [{"tool": "shell", "status": "APPROVAL_REQUIRED"}],
        "messages": said,
        "requires_action": {"approvals": [needed]},
    }
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, **call}]}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
        {"choices": [], "kala": {"tools": tools}},
    ]
    text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    return httpx.Response(200, content=text.encode())


def ok(**value: Any) -> httpx.Response:
    return httpx.Response(200, json=value)


def decided(state: str) -> httpx.Response:
    return ok(approvals=[{"name": APPROVAL, "state": f"APPROVAL_STATE_{state}"}])


def test_a_conversation_remembers_and_counts(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    gateway = use(
        FakeGateway([stream("A ", "field."), stream("Many.")]), "What is AI?", "", "And?", "stats", "quit"
    )
    assert main(["chat", "--max-tokens", "9", "--model", "tiny", *AT]) == 0
    printed = capsys.readouterr()
    assert "KALA: A field.\n" in printed.out
    assert "requests          2" in printed.out
    assert f"last receipt      {RECEIPT_ID}" in printed.out
    assert [message["content"] for message in gateway.chats[1]["messages"]] == [
        "What is AI?",
        "A field.",
        "And?",
    ]
    assert (gateway.chats[0]["max_tokens"], gateway.chats[0]["model"]) == (9, "tiny")
    assert "kala_tools" not in gateway.chats[0]


def test_the_end_of_the_input_ends_the_conversation(use: Use) -> None:
    gateway = use(FakeGateway([stream("Hi.")]), "Hello")
    assert main(["chat", *AT]) == 0
    assert len(gateway.chats) == 1


def test_a_turn_that_fails_ends_no_conversation(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    away = [failure(503, "ethics_unavailable", "the judge does not answer") for _ in range(3)]
    gateway = use(FakeGateway([*away, stream("Here.")]), "one", "two", "quit")
    assert main(["chat", *AT]) == 0
    printed = capsys.readouterr()
    assert "error: the judge does not answer" in printed.err
    assert "KALA: Here." in printed.out
    assert [message["content"] for message in gateway.chats[-1]["messages"]] == ["two"]


def test_an_answer_can_be_stopped_and_the_conversation_goes_on(
    use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stopped(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b'data: {"choices": [{"index": 0, "delta": {"content": "Half"}}]}\n\n'
            raise KeyboardInterrupt

    gateway = use(
        FakeGateway([httpx.Response(200, stream=Stopped()), stream("Whole.")]), "one", "two", "quit"
    )
    assert main(["chat", *AT]) == 0
    printed = capsys.readouterr()
    assert "KALA: Half\n" in printed.out
    assert "not remembered" in printed.err
    assert [message["content"] for message in gateway.chats[-1]["messages"]] == ["two"]


def test_the_tools_are_listed_where_there_are_any(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    use(FakeGateway(), "tools", "quit")
    assert main(["chat", *AT]) == 0
    assert "start it with --tools" in capsys.readouterr().out
    use(FakeGateway([ok(tools=[{"name": "shell", "available": True}])]), "tools", "quit")
    assert main(["chat", "--tools", *AT]) == 0
    assert " shell\n" in capsys.readouterr().out


def test_a_call_whose_end_is_not_shown_is_not_decided_here(
    use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    # A model could write something harmless first, and what it is after behind that.
    arguments = json.dumps({"command": f"echo {'a' * 3_000}; rm -r ~"})
    long_call = {**CALL, "function": {"name": "shell", "arguments": arguments}}
    gateway = use(
        FakeGateway([ok(workspace={"name": WORKSPACE}), waiting(long_call)]), "Clean up.", "y", "quit"
    )
    gateway.script.append(stream("y is a letter."))
    assert main(["chat", "--tools", *AT]) == 0
    assert not [request for request in gateway.seen if request.url.path.endswith(":decide")]
    assert f"approve {APPROVAL}" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "approves"), [("y", True), ("", False)], ids=["yes", "no answer"])
def test_a_call_that_waits_is_shown_and_runs_by_the_persons_word_alone(
    use: Use, capsys: pytest.CaptureFixture[str], word: str, approves: bool
) -> None:
    state = "APPROVED" if approves else "DENIED"
    script = [ok(workspace={"name": WORKSPACE}), waiting(), ok(), decided(state), completion("So be it.")]
    gateway = use(FakeGateway([*script]), "Clean up.", word, "quit")
    assert main(["chat", "--tools", *AT]) == 0
    printed = capsys.readouterr()
    assert "shell wants to run, and waits for you: it deletes files" in printed.out
    assert '{"command": "rm x"}' in printed.out
    assert "KALA: So be it." in printed.out
    assert "tool      shell: APPROVAL_REQUIRED" in printed.err
    word_given = next(request for request in gateway.seen if request.url.path.endswith(":decide"))
    assert json.loads(word_given.content)["approve"] is approves
    assert gateway.chats[-1]["kala_approvals"] == {"c1": APPROVAL}


def test_a_call_that_another_must_approve_stays_waiting(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    other = failure(403, "wrong_approver", "the policy wants another person to decide")
    use(FakeGateway([ok(workspace={"name": WORKSPACE}), waiting(), other]), "Clean up.", "y", "quit")
    assert main(["chat", "--tools", *AT]) == 0
    assert "another person to decide" in capsys.readouterr().err


def test_a_terminal_gets_no_control_characters_from_a_model(
    use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(FakeGateway([stream("a\x1b]52;c;aGk=\x07b")]), "hi", "quit")
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    assert main(["chat", *AT]) == 0
    assert "\x1b" not in screen.getvalue()
    assert "a\\x1b]52" in screen.getvalue()


def test_a_log_has_a_line_for_each_turn(use: Use, tmp_path: Path) -> None:
    use(FakeGateway([stream("A."), stream("B.")]), "one", "two", "quit")
    assert main(["chat", "--log-dir", str(tmp_path), *AT]) == 0
    lines = (tmp_path / "session_chat.jsonl").read_text().splitlines()
    assert [json.loads(line)["receipt"] for line in lines] == [RECEIPT_ID] * 2


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["--stdin"], "a text\nof lines\n"),
        (["-"], "a text\nof lines\n"),
        (["Review this.", "--stdin"], "Review this.\n\na text\nof lines\n"),
    ],
)
def test_a_pipe_is_one_question(
    use: Use,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    asked: str,
) -> None:
    gateway = use(FakeGateway([stream("Fine.")]))
    monkeypatch.setattr(sys, "stdin", io.StringIO("a text\nof lines\n"))
    assert main(["chat", *arguments, *AT]) == 0
    assert capsys.readouterr().out == "Fine.\n"
    assert gateway.chats[0]["messages"] == [{"role": "user", "content": asked}]


def test_without_a_message_and_a_terminal_the_cure_is_named(
    use: Use, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = use(FakeGateway())
    monkeypatch.setattr(sys, "stdin", io.StringIO("piped"))
    assert main(["chat", *AT]) == 1
    assert "--stdin" in capsys.readouterr().err
    assert gateway.seen == []


@pytest.mark.parametrize(
    ("arguments", "names"),
    [(["--json"], "--json"), (["--save-receipt", "r"], "--save-receipt"), (["hi", "--tools"], "--tools")],
)
def test_what_does_not_go_together_is_named(
    use: Use, capsys: pytest.CaptureFixture[str], arguments: list[str], names: str
) -> None:
    gateway = use(FakeGateway())
    assert main(["chat", *arguments, *AT]) == 1
    assert names in capsys.readouterr().err
    assert gateway.seen == []


HOSTILE = "the model broke\x1b]0;owned\x07\x1b[2J\u202e"


def test_no_words_about_an_answer_move_a_terminals_cursor(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the answer itself was made harmless; errors, models and attempts are a backend's words too.
    answer = completion("Hi.").json()
    answer["model"] = HOSTILE
    answer["kala"]["attempts"] = [{"backend": HOSTILE, "outcome": "failed", "reason": HOSTILE}]
    event = f"data: {json.dumps({**answer, 'choices': []})}\n\ndata: [DONE]\n\n".encode()
    use(FakeGateway([httpx.Response(200, content=event), failure(500, "internal_error", HOSTILE)]))
    screen, errors = Screen(), Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", errors)
    assert main(["chat", "hello", "-v", *AT]) == 0
    assert main(["chat", "hello", *AT]) == 1
    shown = screen.getvalue() + errors.getvalue()
    assert shown.count("the model broke") >= 3
    assert not set(shown) & set("\x1b\x07\u202e")


def test_no_cell_of_a_table_moves_a_terminals_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    table(None, ["model"], [[HOSTILE]])
    assert "\\x1b[2J" in screen.getvalue()
    assert not {"\x07", "\u202e"} & set(screen.getvalue())
