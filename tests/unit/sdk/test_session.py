"""The seeds' session and engine against a scripted gateway."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from kala.client import KalaClient
from kala.core import connection as connection_module
from kala.core.connection import Connection, connect
from kala.core.inference import InferenceConfig
from kala.core.lmstudio_adapter import LMStudioConfig, LMStudioInferenceEngine
from kala.core.unified_session import UnifiedKALASession
from kala.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    PermissionDeniedError,
    ToolsDisabled,
    UnavailableError,
)
from tests.fakes.gateway import RECEIPT_ID, FakeGateway, completion, failure

URL = "http://localhost:1234/v1"
LM_STUDIO = {"name": "backends/lmstudio", "kind": "lmstudio", "url": "http://127.0.0.1:1234"}
Use = Callable[[FakeGateway], FakeGateway]


def test_the_quick_start_of_the_guide_runs(use: Use) -> None:
    gateway = use(FakeGateway([completion("A field."), completion("No.", outcome="REFUSE", law=1)]))
    lm_config = LMStudioConfig(base_url=URL, temperature=0.7, max_tokens=256)
    with UnifiedKALASession(lmstudio_config=lm_config) as session:
        assert session.chat("What is machine learning?") == "A field."
        assert session.chat("How do I hack a system?") == "No."
    assert gateway.chats[0]["temperature"] == 0.7
    assert gateway.chats[0]["max_tokens"] == 256
    assert gateway.chats[0]["top_p"] == 0.9
    assert gateway.chats[0]["model"] == "auto"
    assert gateway.seen[0].headers["x-kala-provider"] == "lmstudio"


def test_turns_are_remembered_and_refused_ones_are_not(use: Use) -> None:
    gateway = use(FakeGateway([completion("A"), completion("No", outcome="REFUSE"), completion("B")]))
    with UnifiedKALASession(lmstudio_config=LMStudioConfig(), system_prompt="Be brief.") as session:
        for message in ("one", "bad", "two"):
            session.chat(message)
    assert [message["content"] for message in gateway.chats[-1]["messages"]] == [
        "Be brief.",
        "one",
        "A",
        "two",
    ]


def test_a_clarifying_question_stays_in_the_conversation(use: Use) -> None:
    use(FakeGateway([completion("Which one?", outcome="ASK_CLARIFICATION")]))
    with UnifiedKALASession() as session:
        session.chat("kill it")
        assert [message["content"] for message in session.history] == ["kill it", "Which one?"]


def test_statistics_count_every_outcome_but_allow_as_a_block(use: Use) -> None:
    outcomes = ("ALLOW", "REFUSE", "REDIRECT", "ASK_CLARIFICATION")
    use(FakeGateway([completion(outcome=outcome) for outcome in outcomes]))
    with UnifiedKALASession(session_id="s1") as session:
        for _ in outcomes:
            session.chat("x")
        assert session.get_stats() == {
            "session_id": "s1",
            "requests_processed": 4,
            "ethics_blocks": 3,
            "tokens_generated": 5,
        }
        assert RECEIPT_ID in session.get_summary()


def test_a_request_may_override_the_length(use: Use) -> None:
    gateway = use(FakeGateway([completion()]))
    with UnifiedKALASession(lmstudio_config=LMStudioConfig(max_tokens=256)) as session:
        session.chat("Write a long story", max_new_tokens=1024)
    assert gateway.chats[0]["max_tokens"] == 1024


def test_a_temperature_of_zero_is_not_mistaken_for_unset(use: Use) -> None:
    gateway = use(FakeGateway([completion()]))
    with UnifiedKALASession(lmstudio_config=LMStudioConfig()) as session:
        session.chat("x", temperature=0.0)
    assert gateway.chats[0]["temperature"] == 0.0


def test_ethics_cannot_be_switched_off(use: Use) -> None:
    use(FakeGateway([completion("No.", outcome="REFUSE")]))
    with pytest.warns(UserWarning, match="always on"):
        session = UnifiedKALASession(enable_ethics=False)
    with session:
        session.chat("x")
        assert session.get_stats()["ethics_blocks"] == 1


def test_tools_are_off_unless_asked_for(use: Use) -> None:
    gateway = use(FakeGateway())
    with UnifiedKALASession() as session:
        for call in (
            lambda: session.execute_tool("shell", command="ls"),
            lambda: session.chat("List my files.", use_tools=True),
        ):
            with pytest.raises(ToolsDisabled, match="enable_tools=True"):
                call()
        assert session.list_tools() == ()
    assert gateway.seen == []


WORKSPACE = "workspaces/0." + "c" * 32


def made(**fields: str) -> httpx.Response:
    return httpx.Response(200, json={"workspace": {"name": WORKSPACE, **fields}, "created": True})


def ran(stdout: str = "", status: str = "OK", **ended: object) -> httpx.Response:
    """A run's events as the bridge sends them."""
    data = base64.b64encode(stdout.encode()).decode()
    events = [
        {"output": {"stream": "OUTPUT_STREAM_STDOUT", "data": data}},
        {"exit": {"status": f"RUN_STATUS_{status}", **ended}},
    ]
    content = "".join(json.dumps(event) + "\n" for event in events)
    return httpx.Response(200, content=content.encode(), headers={"x-kala-receipt": RECEIPT_ID})


def test_the_tools_of_the_guide_run_in_the_directory_of_a_private_suite(use: Use, tmp_path: Path) -> None:
    listed = ran(result_json='{"success": true, "output": "a.py\\nb.py"}')
    gateway = use(FakeGateway([made(), ran("total 0\n", exit_code=0), listed]))
    file = {"path": "a.txt", "sha256": "aGFzaA==", "bytes": "5"}
    gateway.files = [file, {"path": "out", "sha256": "", "bytes": "0"}]
    with UnifiedKALASession(enable_tools=True, log_dir=tmp_path, session_id="s1") as session:
        result = session.execute_tool("shell", command="ls -la")
        assert (result.success, result.output, result.error, result.ethics_approved) == (
            True,
            "total 0\n",
            None,
            True,
        )
        assert session.execute_tool("filesystem", operation="list", path="./kala").output == "a.py\nb.py"
    bodies = [json.loads(request.content) for request in gateway.seen if request.method == "POST"]
    assert bodies[0]["host_directory"] == str(Path.cwd())
    assert json.loads(bodies[1]["arguments_json"]) == {"command": "ls -la"}
    assert bodies[1]["workspace"] == WORKSPACE
    assert bodies[1]["files"] == [{"name": "a.txt", "sha256": "aGFzaA==", "bytes": "5"}]
    assert bodies[2]["files"] == []
    assert gateway.seen[-1].method == "DELETE"
    first = json.loads((tmp_path / "session_s1.jsonl").read_text().splitlines()[0])
    assert (first["tool"], first["success"], first["receipt"]) == ("shell", True, RECEIPT_ID)
    assert "ls -la" not in json.dumps(first)


def test_a_tool_that_the_laws_refuse_is_a_result_and_counts_as_a_block(use: Use) -> None:
    use(FakeGateway([made(), failure(403, "refuse", "I cannot help with that.")]))
    with UnifiedKALASession(enable_tools=True) as session:
        result = session.execute_tool("shell", command="steal")
        assert (result.success, result.ethics_approved, result.error) == (
            False,
            False,
            "I cannot help with that.",
        )
        assert session.get_stats()["ethics_blocks"] == 1


def test_a_tool_that_fails_says_why(use: Use) -> None:
    approval = "approvals/0." + "b" * 32
    waiting = ran(status="APPROVAL_REQUIRED", reason="it deletes files", approval=approval)
    use(FakeGateway([made(), ran("", "ERROR", exit_code=2, reason="exited with 2"), waiting, ran("gone")]))
    with UnifiedKALASession(enable_tools=True) as session:
        failed = session.execute_tool("shell", command="false")
        assert (failed.success, failed.error, failed.exit_code) == (False, "exited with 2", 2)
        asked = session.execute_tool("shell", command="rm x")
        assert (asked.success, asked.ethics_approved, asked.approval) == (False, True, approval)
        assert session.execute_tool("shell", command="rm x", approval=asked.approval).success


def test_arguments_that_utf8_cannot_spell_are_named(use: Use) -> None:
    use(FakeGateway([made()]))
    with UnifiedKALASession(enable_tools=True) as session, pytest.raises(InvalidArgumentError, match="UTF-8"):
        session.execute_tool("shell", command="\ud800")


def test_no_arguments_cost_the_result_of_a_run_its_line_in_the_log(use: Use, tmp_path: Path) -> None:
    use(FakeGateway([made(), ran("done")]))
    with UnifiedKALASession(enable_tools=True, log_dir=tmp_path) as session:
        assert session.execute_tool("shell", environment={1: "a", "b": 2}).output == "done"
    (log,) = tmp_path.glob("*.jsonl")
    assert json.loads(log.read_text())["success"]


def test_a_result_of_endless_brackets_stays_text(use: Use) -> None:
    use(FakeGateway([made(), ran("", result_json="[" * 100_000)]))
    with UnifiedKALASession(enable_tools=True) as session:
        assert session.execute_tool("shell", command="ls").data == "[" * 100_000


def test_a_key_without_the_scope_is_no_judgement_of_the_laws(use: Use) -> None:
    use(FakeGateway([made(), failure(403, "insufficient_permissions", "lacks the scope")]))
    with UnifiedKALASession(enable_tools=True) as session, pytest.raises(PermissionDeniedError):
        session.execute_tool("shell", command="ls")


def test_a_directory_that_cannot_be_shown_is_told_and_done_without(use: Use) -> None:
    status = {"code": 400, "message": "lies under a home", "status": "FAILED_PRECONDITION", "details": []}
    refused = httpx.Response(400, json={"error": status})
    gateway = use(FakeGateway([refused, made(), ran("")]))
    with (
        UnifiedKALASession(enable_tools=True) as session,
        pytest.warns(UserWarning, match="lies under a home"),
    ):
        assert session.execute_tool("shell", command="ls").success
    assert "host_directory" not in json.loads(gateway.seen[1].content)


def test_a_machine_without_isolation_says_so(use: Use) -> None:
    tool = {"name": "shell", "available": False, "unavailable_reason": "bubblewrap: not installed"}
    use(FakeGateway([httpx.Response(200, json={"tools": [tool]})]))
    with (
        UnifiedKALASession(enable_tools=True) as session,
        pytest.raises(FailedPreconditionError, match="not installed"),
    ):
        session.list_tools()


def test_a_model_may_use_the_tools_by_itself_and_the_conversation_remembers_it(use: Use) -> None:
    between = [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]},
        {"role": "tool", "tool_call_id": "c", "content": "42"},
    ]
    used, waiting = completion("It is 42."), completion("")
    bodies = [answer.json() for answer in (used, waiting)]
    bodies[0]["kala"]["tools"] = {"messages": between, "requires_action": None}
    bodies[1]["kala"]["tools"] = {"messages": between, "requires_action": {"approvals": [{}]}}
    gateway = use(FakeGateway([made(), *(httpx.Response(200, json=body) for body in bodies)]))
    with UnifiedKALASession(enable_tools=True) as session:
        assert session.chat("What is 6*7?", use_tools=True) == "It is 42."
        assert gateway.chats[0]["kala_tools"] == "auto"
        assert gateway.chats[0]["kala_workspace"] == WORKSPACE
        assert [message["role"] for message in session.history] == ["user", "assistant", "tool", "assistant"]
        session.chat("And now?", use_tools=True)
        assert len(session.history) == 4


def test_the_log_has_one_line_per_request_and_no_words(use: Use, tmp_path: Path) -> None:
    use(FakeGateway([completion("Secret answer.")]))
    with UnifiedKALASession(log_dir=tmp_path, session_id="s1") as session:
        session.chat("Secret question?")
    (line,) = (tmp_path / "session_s1.jsonl").read_text().splitlines()
    logged = json.loads(line)
    assert (logged["outcome"], logged["receipt"]) == ("ALLOW", RECEIPT_ID)
    assert logged["proof"].startswith("c2sp.org/tlog-proof")
    assert "Secret" not in line


def test_a_closed_session_says_so(use: Use) -> None:
    use(FakeGateway())
    with UnifiedKALASession() as session:
        pass
    with pytest.raises(FailedPreconditionError, match="closed"):
        session.chat("x")


def test_two_configurations_are_one_too_many() -> None:
    with pytest.raises(InvalidArgumentError, match="not both"):
        UnifiedKALASession(LMStudioConfig(), InferenceConfig())


@pytest.mark.parametrize(("asked", "setting"), [("8bit", "8bit"), ("4bit", "4bit"), (None, "none")])
def test_a_private_suite_holds_the_weights_as_asked(asked: str | None, setting: str) -> None:
    wanted = connection_module._Wanted(None, InferenceConfig(model_size="6.9b", quantization=asked))
    environment = wanted.environment({"KALA_INFERENCE_PYTHIA_QUANTIZATION": "4bit"})
    assert environment["KALA_INFERENCE_PYTHIA_QUANTIZATION"] == setting


def test_a_quantization_that_nobody_knows_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match="quantization: must be 8bit, 4bit or None"):
        InferenceConfig(quantization="3bit")


def test_lm_studio_that_is_off_is_named_with_its_cure(use: Use) -> None:
    use(FakeGateway([failure(503, "backends_unavailable", "lmstudio: CONNECTION_REFUSED")] * 3))
    with (
        UnifiedKALASession(lmstudio_config=LMStudioConfig(base_url=URL)) as session,
        pytest.raises(UnavailableError, match=r"Could not connect to LM Studio at .*1234.*Start Server"),
    ):
        session.chat("Hello!")


def test_lm_studio_without_a_model_is_named_with_its_cure(use: Use) -> None:
    use(FakeGateway([failure(400, "no_model_loaded", "none")]))
    with (
        UnifiedKALASession(lmstudio_config=LMStudioConfig()) as session,
        pytest.raises(FailedPreconditionError, match=r"No model loaded.*Load Model"),
    ):
        session.chat("Hello!")


def test_the_engine_generates_through_the_guarded_pipeline(use: Use) -> None:
    gateway = use(FakeGateway([completion("Hi."), completion("No.", outcome="REFUSE", law=2)]))
    with LMStudioInferenceEngine(LMStudioConfig()) as engine:
        text, metadata = engine.generate(prompt="Hello!", max_new_tokens=100, temperature=0.8)
        assert (text, metadata["blocked"], metadata["tokens_generated"]) == ("Hi.", False, 5)
        _, metadata = engine.chat([{"role": "user", "content": "bad"}])
        assert (metadata["blocked"], metadata["law"]) == (True, 2)
    assert (gateway.chats[0]["max_tokens"], gateway.chats[0]["temperature"]) == (100, 0.8)


def test_the_configuration_takes_its_fields_in_the_promised_order() -> None:
    config = LMStudioConfig("http://h:1/v1", "key", "m", 0.1, 9, 0.5)
    assert (config.base_url, config.api_key, config.model) == ("http://h:1/v1", "key", "m")
    assert (config.temperature, config.max_tokens, config.top_p) == (0.1, 9, 0.5)
    assert "key" not in repr(LMStudioConfig(api_key="key-1"))


def test_a_remote_suite_must_have_the_wanted_lm_studio(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = FakeGateway(backends=[{**LM_STUDIO, "url": "http://10.0.0.9:1234"}])
    _patch_client(monkeypatch, gateway)
    with (
        pytest.raises(FailedPreconditionError, match="KALA_INFERENCE_LMSTUDIO_URL"),
        connect(lmstudio_config=LMStudioConfig(base_url=URL), url="http://remote", api_key="k"),
    ):
        pass


def test_a_remote_suite_is_matched_by_host_and_port(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = FakeGateway(backends=[LM_STUDIO])
    _patch_client(monkeypatch, gateway)
    with connect(lmstudio_config=LMStudioConfig(base_url=URL), url="http://remote", api_key="k") as found:
        assert isinstance(found, Connection)
        assert not found.is_private


def _patch_client(monkeypatch: pytest.MonkeyPatch, gateway: FakeGateway) -> None:
    monkeypatch.setattr(
        connection_module, "KalaClient", lambda target: KalaClient(target, gateway.transport, lambda _: None)
    )


def test_a_private_suite_serves_exactly_the_configured_backend() -> None:
    wanted = connection_module._Wanted(LMStudioConfig(base_url=URL, model="qwen"), None)
    environment = wanted.environment(
        {"PATH": "/bin", "LM_STUDIO_BASE_URL": "http://other", "LLM_PROVIDER": "openai"}
    )
    assert environment["KALA_INFERENCE_LMSTUDIO_URL"] == URL
    assert environment["KALA_INFERENCE_LMSTUDIO_MODEL"] == "qwen"
    assert environment["KALA_INFERENCE_EMBEDDED"] == "false"
    assert "LM_STUDIO_BASE_URL" not in environment
    assert environment["PATH"] == "/bin"


def test_the_name_local_model_is_never_sent_upstream() -> None:
    environment = connection_module._Wanted(LMStudioConfig(model="local-model"), None).environment({})
    assert "KALA_INFERENCE_LMSTUDIO_MODEL" not in environment


def test_pythia_is_asked_for_by_size() -> None:
    environment = connection_module._Wanted(None, InferenceConfig(model_size="1b")).environment({})
    assert environment["KALA_INFERENCE_MODEL_SIZE"] == "1b"
    assert environment["KALA_INFERENCE_EMBEDDED"] == "false"
