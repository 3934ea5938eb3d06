"""The seeds' session and engine against a scripted gateway."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

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
    ToolsDisabled,
    UnavailableError,
    UnimplementedError,
)
from kala.target import Target
from tests.fakes.gateway import RECEIPT_ID, FakeGateway, completion, failure

URL = "http://localhost:1234/v1"
LM_STUDIO = {"name": "backends/lmstudio", "kind": "lmstudio", "url": "http://127.0.0.1:1234"}
Use = Callable[[FakeGateway], FakeGateway]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Let every connection, private ones included, reach a scripted gateway."""

    def install(gateway: FakeGateway) -> FakeGateway:
        def client(target: Target, **_: object) -> KalaClient:
            return KalaClient(target, gateway.transport, lambda _: None)

        @contextlib.contextmanager
        def private(wanted: object, environ: object) -> Iterator[KalaClient]:
            with client(Target("http://private", "k")) as opened:
                yield opened

        monkeypatch.setattr(connection_module, "KalaClient", client)
        monkeypatch.setattr(connection_module, "_private_client", private)
        monkeypatch.setattr(connection_module, "_running_client", lambda *_: None)
        return gateway

    return install


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


def test_tools_are_off_unless_asked_for_and_never_faked(use: Use) -> None:
    use(FakeGateway())
    with UnifiedKALASession() as session, pytest.raises(ToolsDisabled):
        session.execute_tool("shell", command="ls")
    with UnifiedKALASession(enable_tools=True) as session:
        assert session.list_tools() == ()
        with pytest.raises(UnimplementedError):
            session.execute_tool("shell", command="ls")


def test_the_log_has_one_line_per_request_and_no_words(use: Use, tmp_path: Path) -> None:
    use(FakeGateway([completion("Secret answer.")]))
    with UnifiedKALASession(log_dir=tmp_path, session_id="s1") as session:
        session.chat("Secret question?")
    (line,) = (tmp_path / "session_s1.jsonl").read_text().splitlines()
    logged = json.loads(line)
    assert (logged["outcome"], logged["receipt"]) == ("ALLOW", RECEIPT_ID)
    assert (tmp_path / logged["receipt_file"]).read_text().startswith("c2sp.org/tlog-proof")
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
