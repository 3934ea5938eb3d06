"""Every entry of the seeds' troubleshooting chapters is found out and answered with its cure."""

from __future__ import annotations

import pytest

from services.inference import diagnosis
from services.inference.backend import (
    BackendFailure,
    ContextLengths,
    ContextOverflow,
    Identity,
    Kind,
    LoadState,
    ModelInfo,
    Preferences,
    State,
    Status,
)

LM_STUDIO = Identity("lmstudio", Kind.LMSTUDIO, url="http://127.0.0.1:1234")
LOADED = ModelInfo("qwen/qwen3-4b", LoadState.LOADED, context_tokens=4096, max_context_tokens=32768)
ON_DISK = ModelInfo("mistral-7b", LoadState.NOT_LOADED)


def of(kind: Kind, url: str = "http://127.0.0.1:8080") -> Identity:
    return Identity(kind.value, kind, url=url)


@pytest.mark.parametrize(
    ("identity", "reason", "says"),
    [
        (LM_STUDIO, "CONNECTION_REFUSED", ["open LM Studio", "Local Server tab", "/v1/models opens in a browser", "LM_STUDIO_BASE_URL", "blocked", "host.docker.internal"]),
        (of(Kind.LMSTUDIO, "http://box:1234"), "CONNECT_TIMED_OUT", ["firewall", "Serve on local network"]),
        (of(Kind.LMSTUDIO, "http://host.docker.internal:1234"), "DNS_FAILED", ["inside containers only", "extra_hosts"]),
        (of(Kind.LMSTUDIO, "https://box:1234"), "TLS_FAILED", ["use http://"]),
        (of(Kind.MLX), "CONNECTION_REFUSED", ["pip install mlx-lm", "Apple Silicon", "kala models pull", "MLX_MODEL_PATH"]),
        (of(Kind.LLAMACPP), "CONNECTION_REFUSED", ["llama-cpp-python", "CMAKE_ARGS=-DGGML_METAL=on", "--force-reinstall", "GGUF", "LLAMACPP_SERVER_URL"]),
        (of(Kind.OLLAMA), "CONNECTION_REFUSED", ["ollama serve", "OLLAMA_HOST"]),
    ],
    ids=["lmstudio", "firewall", "container", "tls", "mlx", "llamacpp", "ollama"],
)  # fmt: skip
def test_a_server_that_does_not_answer(identity: Identity, reason: str, says: list[str]) -> None:
    cure = diagnosis.connect_cure(identity, reason)
    assert [word for word in says if word not in cure] == []


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("AUTHENTICATION_FAILED", "KALA_INFERENCE_LMSTUDIO_API_KEY"),
        ("NOT_LM_STUDIO", "another program holds this address"),
        ("NOT_AN_API", "the URL has a wrong path"),
        ("MALFORMED_ANSWER", "another program"),
        ("TLS_FAILED", "use http://"),
    ],
)
def test_a_server_that_answers_wrongly(reason: str, says: str) -> None:
    assert says in diagnosis.identify_cure(LM_STUDIO, reason)


def test_no_model_loaded_names_one_that_could_be() -> None:
    status = Status(State.NO_MODEL, "no model is loaded", (ON_DISK,))
    check, model = diagnosis.model_check(LM_STUDIO, status, "")
    assert (check.passed, model) == (False, None)
    assert check.detail == "no model is loaded; there are: mistral-7b"
    assert "click Load Model" in check.cure
    assert "lms load mistral-7b" in check.cure
    assert "<model>" in diagnosis.model_check(LM_STUDIO, Status(State.NO_MODEL, ""), "")[0].cure


def test_a_model_that_is_still_loading_is_waited_for() -> None:
    check, model = diagnosis.model_check(LM_STUDIO, Status(State.LOADING, "is loading a model"), "")
    assert (check.passed, model) == (False, None)
    assert "wait" in check.cure


def test_a_name_that_does_not_match_is_answered_with_the_nearest() -> None:
    status = Status(State.READY, "", (LOADED, ON_DISK))
    check, _ = diagnosis.model_check(LM_STUDIO, status, "qwen3-4b")
    assert check.detail == "model 'qwen3-4b' is not there"
    assert check.cure.startswith(
        "did you mean 'qwen/qwen3-4b'? the name must match exactly one of: qwen/qwen3-4b, mistral-7b"
    )


def test_a_configured_name_that_does_not_match_names_its_setting() -> None:
    identity = Identity("lmstudio", Kind.LMSTUDIO, url="http://127.0.0.1:1234", default_model="zzz")
    check, _ = diagnosis.model_check(identity, Status(State.READY, "", (LOADED,)), "")
    assert check.detail == "its configured model 'zzz' is not there"
    assert "set LM_STUDIO_MODEL (or LMSTUDIO_MODEL) to it" in check.cure
    assert "did you mean" not in check.cure


def test_a_long_list_of_models_is_cut() -> None:
    models = tuple(ModelInfo(f"model-{number}") for number in range(20))
    check, _ = diagnosis.model_check(LM_STUDIO, Status(State.READY, "", models), "x")
    assert "and 12 more" in check.cure


@pytest.mark.parametrize("wanted", ["", "local-model", "auto"])
def test_the_model_in_memory_is_the_one_tested(wanted: str) -> None:
    check, model = diagnosis.model_check(LM_STUDIO, Status(State.READY, "", (ON_DISK, LOADED)), wanted)
    assert (check.passed, model) == (True, LOADED)


def test_a_context_below_the_configured_one_is_told_with_both_numbers() -> None:
    preferences = Preferences(contexts=ContextLengths(default=16384))
    identity = Identity("lmstudio", Kind.LMSTUDIO, preferences=preferences)
    check = diagnosis.context_check(identity, LOADED)
    assert check is not None
    assert check.detail == "qwen/qwen3-4b is loaded with 4096 tokens of context, and 16384 are configured"
    assert "kala models load qwen/qwen3-4b --context 16384" in check.cure
    assert "Context tab" in check.cure


def test_a_context_is_told_where_it_is_known() -> None:
    check = diagnosis.context_check(LM_STUDIO, LOADED)
    assert check is not None
    assert (check.passed, "4096 of at most 32768" in check.detail) == (True, True)
    assert diagnosis.context_check(LM_STUDIO, ON_DISK) is None


@pytest.mark.parametrize(
    ("kind", "failure", "says"),
    [
        (Kind.LMSTUDIO, BackendFailure("FIRST_BYTE_TIMED_OUT", ""), "LM_STUDIO_TIMEOUT_SECONDS"),
        (Kind.MLX, BackendFailure("STREAM_STALLED", ""), "KALA_INFERENCE_FIRST_BYTE_SECONDS"),
        (Kind.LMSTUDIO, BackendFailure("BACKEND_BUSY", ""), "Max Concurrent Predictions"),
        (Kind.LLAMACPP, BackendFailure("BACKEND_BUSY", ""), "more slots"),
        (Kind.LMSTUDIO, BackendFailure("NO_MODEL_LOADED", ""), "7B 8-12 GB"),
        (Kind.LMSTUDIO, BackendFailure("WRONG_MODEL", ""), "by its exact name"),
        (Kind.LMSTUDIO, BackendFailure("AUTHENTICATION_FAILED", ""), "API_KEY"),
        (Kind.LLAMACPP, BackendFailure("STREAM_CUT", ""), "the server ended while it answered"),
        (Kind.LMSTUDIO, BackendFailure("HTTP_500", ""), "the server's own log"),
        (Kind.LMSTUDIO, ContextOverflow(prompt_tokens=9, context_tokens=None), "--context 4096"),
        (Kind.LLAMACPP, ContextOverflow(prompt_tokens=9, context_tokens=8), "--ctx-size"),
        (Kind.OLLAMA, ContextOverflow(prompt_tokens=9, context_tokens=8), "a context of 8 tokens"),
    ],
    ids=lambda value: getattr(value, "reason", None) or getattr(value, "value", None),
)
def test_a_model_that_does_not_answer(kind: Kind, failure: BackendFailure, says: str) -> None:
    assert says in diagnosis.answer_cure(of(kind), LOADED, failure)


@pytest.mark.parametrize("kind", [Kind.LMSTUDIO, Kind.LLAMACPP, Kind.MLX, Kind.OLLAMA, Kind.OPENAI])
def test_slow_answers_are_told_with_what_makes_them_faster(kind: Kind) -> None:
    fine = diagnosis.speed_check(of(kind), LOADED, 5.0)
    slow = diagnosis.speed_check(of(kind), LOADED, 5.1)
    assert (fine.passed, fine.cure) == (True, "")
    assert (slow.passed, "5.1 s, more than 5 s" in slow.detail) == (False, True)
    assert slow.cure


@pytest.mark.parametrize(
    ("model", "reason", "says"),
    [
        ("pythia-6.9b", "MODEL_NOT_AVAILABLE", "`kala models pull EleutherAI/pythia-6.9b`"),
        ("pythia-70m", "MODEL_DAMAGED", "remove the folder and get it again"),
        ("my-model", "MODEL_NOT_AVAILABLE", "config.json"),
        ("my-model", "MODEL_DAMAGED", "from their source"),
    ],
)
def test_missing_files_are_answered_with_the_way_to_get_them(model: str, reason: str, says: str) -> None:
    assert says in diagnosis.files_cure(model, reason)
