"""Commands that talk to a gateway, against a scripted one: what they print, where, and with which exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import kala.client
from kala.cli import main
from kala.client import KalaClient
from kala.target import Target
from tests.fakes.gateway import RECEIPT_ID, FakeGateway, failure, stream

AT = ("--url", "http://127.0.0.1:8800", "--key", "kala_x")
KEY = {
    "name": "keys/k1",
    "display_name": "a test",
    "scopes": ["SCOPE_CHAT", "SCOPE_AUDIT_READ"],
    "tenant": "default",
    "prefix": "kala_abc",
    "created_at": "2026-01-01T00:00:00Z",
    "expires_at": None,
    "revoked_at": None,
}
Use = Callable[[FakeGateway], FakeGateway]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Let commands reach a scripted gateway instead of the network."""

    def install(gateway: FakeGateway) -> FakeGateway:
        def client(target: Target, **_: object) -> KalaClient:
            return KalaClient(target, gateway.transport, lambda _: None)

        monkeypatch.setattr(kala.client, "KalaClient", client)
        return gateway

    return install


def answers(*values: dict[str, Any]) -> FakeGateway:
    return FakeGateway([httpx.Response(200, json=value) for value in values])


def test_chat_prints_the_answer_alone_on_standard_output(
    use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = use(FakeGateway([stream("Hel", "lo.")]))
    assert main(["chat", "hi", "--max-tokens", "7", *AT]) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("Hello.\n", "")
    assert gateway.chats[0]["max_tokens"] == 7


def test_chat_explains_itself_on_request(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    use(FakeGateway([stream("Hello.")]))
    assert main(["chat", "hi", "-v", *AT]) == 0
    explained = capsys.readouterr().err
    assert "decision  ALLOW" in explained
    assert f"receipt   {RECEIPT_ID} LOGGED, entry 7" in explained
    assert "attempts  lmstudio: ok" in explained


def test_chat_as_json_is_one_object(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    use(FakeGateway([stream("Hello.")]))
    assert main(["chat", "hi", "--json", *AT]) == 0
    parsed = json.loads(capsys.readouterr().out)
    assert (parsed["text"], parsed["receipt"]["id"]) == ("Hello.", RECEIPT_ID)


def test_chat_keeps_a_line_without_words_and_with_the_receipt(
    use: Use, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use(FakeGateway([stream("A secret", " answer."), stream("Again.")]))
    logs = tmp_path / "logs"
    for _ in range(2):
        assert main(["chat", "A secret question?", "--log-dir", str(logs), *AT]) == 0
    assert capsys.readouterr().out == "A secret answer.\nAgain.\n"
    first, second = map(json.loads, (logs / "session_chat.jsonl").read_text().splitlines())
    assert (first["outcome"], first["receipt"], second["receipt"]) == ("ALLOW", RECEIPT_ID, RECEIPT_ID)
    assert first["proof"].startswith("c2sp.org/tlog-proof")
    assert "secret" not in json.dumps(first)


def test_chat_saves_its_receipt(use: Use, tmp_path: Path) -> None:
    use(FakeGateway([stream("Hello.")]))
    assert main(["chat", "hi", "--save-receipt", str(tmp_path / "r.txt"), *AT]) == 0
    assert (tmp_path / "r.txt").read_text().startswith("c2sp.org/tlog-proof")


def test_chat_without_a_judge_fails_in_one_line(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    use(FakeGateway([failure(503, "ethics_unavailable", "the judge does not answer")] * 3))
    assert main(["chat", "hi", *AT]) == 1
    assert capsys.readouterr().err == "kala: the judge does not answer\n"


def test_a_new_key_is_shown_once_and_alone(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    gateway = use(answers({"key": KEY, "secret": "kala_secret"}))
    assert (
        main(["keys", "create", "a test", "--scope", "chat", "--scope", "audit.read", "--ttl", "60", *AT])
        == 0
    )
    assert capsys.readouterr().out == "kala_secret\n"
    assert json.loads(gateway.seen[0].content) == {
        "display_name": "a test",
        "scopes": ["SCOPE_CHAT", "SCOPE_AUDIT_READ"],
        "tenant": "default",
        "ttl": "60s",
    }


def test_keys_are_listed_without_secrets(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    revoked = {**KEY, "name": "keys/k2", "revoked_at": "2026-02-02T00:00:00Z"}
    gateway = use(answers({"keys": [KEY, revoked]}, {"keys": []}))
    assert main(["keys", "list", "--all", *AT]) == 0
    listed = capsys.readouterr().out
    assert "chat audit.read" in listed
    assert "revoked 2026-02-02" in listed
    assert gateway.seen[0].url.params["include_ended"] == "true"
    assert main(["keys", "list", "--json", *AT]) == 0


def test_a_key_is_revoked_by_its_id_or_its_name(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    gateway = use(answers({"key": KEY}, {"key": KEY}))
    assert main(["keys", "revoke", "k1", *AT]) == 0
    assert main(["keys", "revoke", "keys/k1", *AT]) == 0
    assert {request.url.path for request in gateway.seen} == {"/kala/v1/gateway/keys/k1:revoke"}
    assert "revoked keys/k1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("decision", "code", "says"),
    [
        ({"outcome": "OUTCOME_ALLOW", "path": ["looked"]}, 0, "ALLOW"),
        (
            {"outcome": "OUTCOME_REFUSE", "law": 1, "category": "cyber", "message": "No."},
            3,
            "REFUSE by Law 1 (cyber)",
        ),
    ],
    ids=["allowed", "refused"],
)
def test_ethics_check_tells_by_text_and_exit_code(
    use: Use, capsys: pytest.CaptureFixture[str], decision: dict[str, Any], code: int, says: str
) -> None:
    use(answers({"decision": decision}, {"decision": decision}))
    assert main(["ethics", "check", "a text", *AT]) == code
    assert capsys.readouterr().out.startswith(says)
    assert main(["ethics", "check", "a text", "--json", *AT]) == code
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["outcome"] == decision["outcome"].removeprefix("OUTCOME_")
    assert verdict["law"] == decision.get("law")


def test_the_status_of_a_remote_suite_names_models_and_backends(
    use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = {
        "name": "backends/lmstudio",
        "state": "BACKEND_STATE_READY",
        "url": "http://h:1",
        "detail": "fine",
    }
    models = {"object": "list", "data": [{"id": "auto"}, {"id": "tiny"}]}
    gateway = use(answers(models, models))
    gateway.backends = [backend]
    assert main(["status", *AT]) == 0
    shown = capsys.readouterr().out
    assert "auto, tiny" in shown
    assert "lmstudio" in shown
    assert main(["status", "--json", *AT]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == ["auto", "tiny"]


def test_a_refused_key_is_one_line(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    use(FakeGateway([failure(401, "invalid_api_key", "the key is unknown, expired or revoked")]))
    assert main(["keys", "list", *AT]) == 1
    assert capsys.readouterr().err == "kala: the key is unknown, expired or revoked\n"


def test_the_repositorys_constitution_verifies_with_the_development_key(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["ethics", "verify", "--development"]) == 0
    printed = capsys.readouterr()
    assert "holds" in printed.out
    assert "DEVELOPMENT" in printed.err
