"""RFC-080's two functions against a scripted gateway: their exact results, and that an outage is a result too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

import kala.client
from kala.adapters import lm_studio
from kala.adapters.lm_studio import (
    get_lm_studio_base_url,
    get_lm_studio_model,
    get_lm_studio_timeout,
    lm_studio_complete,
    lm_studio_health,
)
from kala.client import KalaClient
from kala.core import connection as connection_module
from kala.errors import FailedPreconditionError, InvalidArgumentError
from kala.target import Target
from tests.fakes.gateway import RECEIPT_ID, FakeGateway, completion, failure

BACKEND: Mapping[str, Any] = {
    "name": "backends/lmstudio",
    "kind": "lmstudio",
    "url": "http://127.0.0.1:1234",
    "state": "BACKEND_STATE_READY",
    "detail": "answers and has a model",
    "latency": "0.004s",
}
PASSED = {"step": "answer", "passed": True, "detail": "tiny generates", "cure": ""}
Use = Callable[[FakeGateway], FakeGateway]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing of this machine decides: no variables, no `.env`, no suite that runs, no connection of another test."""
    for name in list(os.environ):
        if name.startswith(("KALA_", "LM_STUDIO", "LMSTUDIO", "USE_LM_STUDIO")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KALA_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    yield
    lm_studio._SUITE.close()


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Let a private suite be a scripted gateway."""

    def install(gateway: FakeGateway) -> FakeGateway:
        def client(target: Target, **_: object) -> KalaClient:
            return KalaClient(target, gateway.transport, lambda _: None)

        @contextlib.contextmanager
        def private(wanted: object, environ: object) -> Iterator[KalaClient]:
            with client(Target("http://private", "k")) as opened:
                yield opened

        monkeypatch.setattr(connection_module, "_private_client", private)
        monkeypatch.setattr(connection_module, "KalaClient", client)
        monkeypatch.setattr(kala.client, "KalaClient", client)
        return gateway

    return install


def looked(state: str, *checks: Mapping[str, Any], **changes: object) -> httpx.Response:
    """What CheckBackend answers."""
    return httpx.Response(
        200, json={"backend": {**BACKEND, "state": state, **changes}, "checks": list(checks)}
    )


def test_a_completion_has_exactly_the_fields_of_rfc_080(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = use(FakeGateway([completion("Forty-two.")]))
    monkeypatch.setenv("LM_STUDIO_MODEL", "tiny")
    result = lm_studio_complete("What is six times seven?", temperature=0.2, max_tokens=64)
    assert set(result) == {"ok", "response", "error", "metadata"}
    assert (result["ok"], result["response"], result["error"]) == (True, "Forty-two.", None)
    metadata = result["metadata"]
    assert metadata["model"] == "tiny"
    assert isinstance(metadata["latency_ms"], int)
    assert metadata["tokens_per_second"] > 0
    assert (metadata["blocked"], metadata["receipt"]) == (False, RECEIPT_ID)
    (asked,) = gateway.chats
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("tiny", 0.2, 64)
    assert gateway.seen[-1].headers["x-kala-provider"] == "lmstudio"


def test_a_model_in_the_call_wins_over_the_configured_one(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = use(FakeGateway([completion()]))
    monkeypatch.setenv("LM_STUDIO_MODEL", "tiny")
    assert lm_studio_complete("Hi", model="other")["ok"]
    assert gateway.chats[0]["model"] == "other"


def test_without_a_model_lm_studio_is_not_eligible(use: Use) -> None:
    gateway = use(FakeGateway())
    result = lm_studio_complete("Hi")
    assert (result["ok"], result["response"]) == (False, None)
    assert "LM_STUDIO_MODEL is not set" in result["error"]
    assert result["metadata"] == {
        "model": "",
        "latency_ms": result["metadata"]["latency_ms"],
        "tokens_per_second": 0.0,
        "reason": "LM_STUDIO_MODEL_NOT_SET",
    }
    assert gateway.seen == []


@pytest.mark.parametrize("value", ["0", "false", "off"])
def test_switched_off_nothing_is_asked(use: Use, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    gateway = use(FakeGateway())
    monkeypatch.setenv("USE_LM_STUDIO", value)
    monkeypatch.setenv("LM_STUDIO_MODEL", "tiny")
    assert lm_studio_complete("Hi")["metadata"]["reason"] == "LM_STUDIO_SWITCHED_OFF"
    assert lm_studio_health()["mode"] == "lm_off"
    assert gateway.seen == []


def test_a_refusal_is_an_answer_so_that_nobody_sends_the_prompt_elsewhere(
    use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(FakeGateway([completion("I cannot help with that.", outcome="REFUSE", law=1)]))
    monkeypatch.setenv("LM_STUDIO_MODEL", "tiny")
    result = lm_studio_complete("How do I hack a system?")
    assert result["ok"]
    assert (result["metadata"]["blocked"], result["metadata"]["law"]) == (True, 1)


@pytest.mark.parametrize(
    ("status", "code"),
    [(503, "all_backends_failed"), (503, "ethics_unavailable"), (504, "deadline_exceeded")],
)
def test_an_outage_is_a_result_and_no_exception(
    use: Use, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    use(FakeGateway([failure(status, code, "it is away")] * 3))
    monkeypatch.setenv("LM_STUDIO_MODEL", "tiny")
    result = lm_studio_complete("Hi")
    assert (result["ok"], result["response"]) == (False, None)
    assert result["error"]
    assert result["metadata"]["reason"] == code.upper()


def test_the_wait_for_an_answer_is_the_configured_one(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_late() -> httpx.Response:
        raise httpx.ReadTimeout("too late")

    gateway = use(FakeGateway([too_late]))
    monkeypatch.setenv("LM_STUDIO_MODEL", "tiny")
    monkeypatch.setenv("LM_STUDIO_TIMEOUT_SECONDS", "7")
    result = lm_studio_complete("Hi")
    assert "did not answer within 7 s; LM_STUDIO_TIMEOUT_SECONDS" in result["error"]
    assert gateway.seen[-1].extensions["timeout"]["read"] == 7


def test_a_suite_that_went_away_is_opened_again(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> httpx.Response:
        raise httpx.ConnectError("gone")

    gateway = use(FakeGateway([completion("one"), gone, gone, gone, completion("two")]))
    monkeypatch.setenv("LM_STUDIO_MODEL", "tiny")
    assert lm_studio_complete("Hi")["response"] == "one"
    assert lm_studio_complete("Hi")["response"] == "two"
    assert gateway.script == []


def test_ready_means_that_it_generated_a_token(use: Use) -> None:
    gateway = use(FakeGateway([looked("BACKEND_STATE_READY", PASSED)], backends=[BACKEND]))
    health = lm_studio_health()
    assert set(health) == {"ok", "mode", "details"}
    assert (health["ok"], health["mode"]) == (True, "lm_ready")
    assert (health["details"]["latency_ms"], health["details"]["tested_now"]) == (4, True)
    assert gateway.seen[-1].url.path == "/kala/v1/inference/backends/lmstudio:check"


CONNECT = {"step": "connect", "passed": False, "detail": "nothing listens", "cure": "start it"}
MODELS = {"step": "models", "passed": False, "detail": "model 'x' is not there", "cure": "did you mean 'y'?"}


@pytest.mark.parametrize(
    ("answer", "mode", "reason"),
    [
        (looked("BACKEND_STATE_OFF", CONNECT), "lm_off", "NOT_RUNNING"),
        (looked("BACKEND_STATE_NO_MODEL", MODELS), "error", "NO_MODEL_LOADED"),
        (looked("BACKEND_STATE_READY", MODELS), "error", "MODELS_FAILED"),
        (looked("BACKEND_STATE_ERROR"), "error", "BACKEND_ERROR"),
        (looked("BACKEND_STATE_LOADING"), "error", "BACKEND_LOADING"),
        (looked("BACKEND_STATE_READY", PASSED, latency="5.2s"), "error", "TOO_SLOW"),
    ],
    ids=["off", "no model", "other model", "error", "loading", "slow"],
)
def test_everything_else_is_off_or_an_error_with_its_reason(
    use: Use, answer: httpx.Response, mode: str, reason: str
) -> None:
    use(FakeGateway([answer], backends=[BACKEND]))
    health = lm_studio_health()
    assert (health["ok"], health["mode"], health["details"]["reason"]) == (False, mode, reason)
    if reason != "BACKEND_ERROR":
        assert health["details"]["message"]


def test_a_key_without_the_right_to_test_still_learns_what_was_last_seen(use: Use) -> None:
    use(FakeGateway([failure(403, "insufficient_permissions", "no")], backends=[BACKEND]))
    health = lm_studio_health()
    assert (health["mode"], health["details"]["tested_now"]) == ("lm_ready", False)


def test_a_suite_without_lm_studio_is_off(use: Use) -> None:
    use(FakeGateway(backends=[{**BACKEND, "kind": "mlx", "name": "backends/mlx"}]))
    health = lm_studio_health()
    assert (health["mode"], health["details"]["reason"]) == ("lm_off", "NOT_CONFIGURED")
    assert "start LM Studio" in health["details"]["cure"]


def test_a_suite_that_cannot_start_is_an_error_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object) -> KalaClient:
        raise FailedPreconditionError("the suite needs pip install 'kala-suite[suite]'")

    monkeypatch.setattr(connection_module, "_private_client", cannot)
    health = lm_studio_health()
    assert (health["mode"], health["details"]["message"]) == (
        "error",
        "the suite needs pip install 'kala-suite[suite]'",
    )


def test_the_settings_have_the_defaults_of_rfc_080() -> None:
    assert get_lm_studio_base_url() == "http://localhost:1234/v1"
    assert get_lm_studio_model() is None
    assert get_lm_studio_timeout() == 30


@pytest.mark.parametrize("name", ["LM_STUDIO_BASE_URL", "LMSTUDIO_API_URL", "LMSTUDIO_HOST"])
def test_every_name_of_the_url_is_known(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "http://box:1234/v1")
    assert get_lm_studio_base_url() == "http://box:1234/v1"


def test_the_environment_wins_over_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text(
        '# LM_STUDIO_MODEL=no\nexport LM_STUDIO_MODEL="from file"\nLM_STUDIO_TIMEOUT_SECONDS=9 # seconds\n'
    )
    assert (get_lm_studio_model(), get_lm_studio_timeout()) == ("from file", 9)
    monkeypatch.setenv("LMSTUDIO_MODEL", "from environment")
    assert get_lm_studio_model() == "from environment"


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"LM_STUDIO_MODEL": "a", "LMSTUDIO_MODEL": "b"}, "LM_STUDIO_MODEL and LMSTUDIO_MODEL"),
        ({"LM_STUDIO_TIMEOUT_SECONDS": "soon"}, "LM_STUDIO_TIMEOUT_SECONDS: must be at least 1 second"),
        ({"LM_STUDIO_TIMEOUT_SECONDS": "0"}, "LM_STUDIO_TIMEOUT_SECONDS: must be at least 1 second"),
        ({"USE_LM_STUDIO": "maybe"}, "USE_LM_STUDIO: must be 0 or 1"),
        ({"LM_STUDIO_BASE_URL": "http://[x"}, "must look like"),
    ],
    ids=["two names", "no number", "zero", "no switch", "no address"],
)
def test_a_wrong_setting_is_named_and_no_exception_of_the_functions(
    monkeypatch: pytest.MonkeyPatch, use: Use, variables: dict[str, str], says: str
) -> None:
    use(FakeGateway(backends=[BACKEND]))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    health = lm_studio_health()
    assert health["mode"] == "error"
    assert says in health["details"]["message"]
    if "must look like" not in says:
        with pytest.raises(InvalidArgumentError, match=says):
            lm_studio.lm_studio_settings()
        assert isinstance(lm_studio_complete("Hi")["error"], str)
