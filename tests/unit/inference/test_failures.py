"""What servers say when they do not answer, recorded or as their documents have it."""

from __future__ import annotations

import orjson
import pytest

from services.inference.backend import Blame, ContextOverflow
from services.inference.failures import MAX_READ_CHARS, ErrorBody, failure_of_body, read_error
from tests.fakes.recordings import recording

NEOX = "llama-server-tiny-neox"
MLX = "mlx_lm-0.32.2-tiny-llama"
PYTHON = "llama-cpp-python-0.3.36"


@pytest.mark.parametrize(
    ("server", "case", "reason", "blame"),
    [
        (NEOX, "err_nomessages", "BACKEND_REJECTED", Blame.CALLER),
        (NEOX, "image_unsupported", "BACKEND_REJECTED", Blame.CALLER),
        (NEOX, "err_404", "NOT_SERVED", Blame.BACKEND),
        (NEOX, "err_malformed", "HTTP_500", Blame.BACKEND),
        ("llama-server-router", "chat_unknown", "MODEL_NOT_FOUND", Blame.BACKEND),
        ("llama-server-router", "chat_nomodel", "MODEL_NOT_FOUND", Blame.BACKEND),
        ("llama-server-router", "noautoload", "NO_MODEL_LOADED", Blame.BACKEND),
        ("llama-server-tiny-llama-auth-tools-draft", "chat_badauth", "AUTHENTICATION_FAILED", Blame.BACKEND),
        (MLX, "image", "BACKEND_REJECTED", Blame.CALLER),
        (MLX, "err_badmodel", "MODEL_NOT_FOUND", Blame.BACKEND),
        (MLX, "err_malformed", "BACKEND_REJECTED", Blame.CALLER),
        (MLX, "err_404", "NOT_SERVED", Blame.BACKEND),
        (PYTHON, "err_malformed", "HTTP_500", Blame.BACKEND),
        ("llama-cpp-python-0.3.36-neox", "badauth", "AUTHENTICATION_FAILED", Blame.BACKEND),
    ],
)
def test_a_recorded_error_is_blamed_on_whom_it_should(
    server: str, case: str, reason: str, blame: Blame
) -> None:
    recorded = recording(server, case)
    failure = failure_of_body(recorded.status, recorded.body)
    assert (failure.reason, failure.blame) == (reason, blame)


@pytest.mark.parametrize(
    ("body", "prompt", "context"),
    [
        pytest.param(recording(NEOX, "overflow").body, 408, 256, id="llama-server"),
        pytest.param(recording(NEOX, "overflow_stream").body, 408, 256, id="llama-server, stream"),
        pytest.param(recording(PYTHON, "overflow").body, 422, 256, id="llama_cpp.server"),
        pytest.param(
            b'{"error":"The number of tokens to keep from the initial prompt is greater than the context length '
            b'(n_keep: 5000>= n_ctx: 4096). Try to load the model with a larger context length."}',
            5000,
            4096,
            id="LM Studio 2026",
        ),
        pytest.param(
            b'{"error":{"message":"Trying to keep the first 5001 tokens when context the overflows. However, the '
            b'model is loaded with context length of only 4096 tokens, which is not enough."}}',
            5001,
            4096,
            id="LM Studio 2025",
        ),
        pytest.param(
            b'{"error":{"message":"the prompt is longer than the context length currently available to the model; '
            b'shorten it","type":"invalid_request_error"}}',
            None,
            None,
            id="Ollama",
        ),
        pytest.param(b'{"error":{"message":"x","code":"context_length_exceeded"}}', None, None, id="by code"),
    ],
)
def test_every_servers_overflow_is_one_kind_of_failure(
    body: bytes, prompt: int | None, context: int | None
) -> None:
    failure = failure_of_body(400, body)
    assert isinstance(failure, ContextOverflow)
    assert (failure.prompt_tokens, failure.context_tokens) == (prompt, context)
    assert failure.blame is Blame.CALLER


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        pytest.param(
            404,
            b'{"error":{"message":"No models loaded. Please load","code":"model_not_found"}}',
            "NO_MODEL_LOADED",
            id="LM Studio 2025, none loaded",
        ),
        pytest.param(
            400,
            b'{"error":{"message":"No models loaded. Please load a model","code":null}}',
            "NO_MODEL_LOADED",
            id="LM Studio 2026, none loaded",
        ),
        pytest.param(
            400,
            b'{"error":{"message":"Invalid model identifier \\"x\\". Please","code":"model_not_found"}}',
            "MODEL_NOT_FOUND",
            id="LM Studio, bad name",
        ),
        pytest.param(404, b'{"error":"model \'x\' not found"}', "MODEL_NOT_FOUND", id="Ollama, bad name"),
        pytest.param(
            503,
            b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}',
            "BACKEND_LOADING",
            id="llama-server, loading",
        ),
        pytest.param(429, b"", "BACKEND_BUSY", id="busy"),
        pytest.param(500, b"", "HTTP_500", id="nothing said"),
        pytest.param(502, b"<html><body>Bad Gateway</body></html>", "NOT_AN_API", id="HTML"),
        pytest.param(200, b" \n<!DOCTYPE html><title>x</title>", "NOT_AN_API", id="HTML as 200"),
        pytest.param(
            200, b'{"error":"Unexpected endpoint or method."}', "BACKEND_ERROR", id="LM Studio's false 200"
        ),
        pytest.param(401, b'{"detail":"Invalid API key"}', "AUTHENTICATION_FAILED", id="detail"),
        pytest.param(
            422, b'{"detail":[{"loc":["body"],"msg":"bad"}]}', "BACKEND_REJECTED", id="detail as list"
        ),
    ],
)
def test_errors_are_read_in_every_shape(status: int, body: bytes, reason: str) -> None:
    assert failure_of_body(status, body).reason == reason


def test_a_servers_free_text_is_told_to_the_caller_but_kept_out_of_the_detail() -> None:
    failure = failure_of_body(
        400, b'{"error":{"message":"cannot parse: my secret prompt","type":"my secret type"}}'
    )
    assert failure.told == "cannot parse: my secret prompt"
    assert "secret" not in failure.detail


def test_a_long_error_text_is_cut() -> None:
    assert len(failure_of_body(400, b'{"error":"' + b"x" * 10_000 + b'"}').told) == 300


@pytest.mark.parametrize("piece", ["model '", "maximum context length is 1 tokens "])
def test_no_more_of_an_error_is_read_than_its_patterns_can_bear(piece: str) -> None:
    # Servers quote requests, so a client could keep the event loop busy for minutes.
    text = piece * 1_000_000
    for parsed in ({"error": {"message": text}}, {"error": text}, {"detail": text}, {"detail": [text]}):
        error = read_error(parsed)
        assert error is not None
        assert len(error.message) == MAX_READ_CHARS


def test_a_detail_too_deep_to_be_written_is_an_error_without_words() -> None:
    detail = orjson.loads("[" * 500 + "]" * 500)
    assert read_error({"detail": detail}) == ErrorBody("")


def test_a_count_in_signs_that_are_no_digits_is_no_count() -> None:
    body = '{"error":{"message":"x","code":"exceed_context_size_error","n_prompt_tokens":"²","n_ctx":"٣"}}'
    failure = failure_of_body(400, body.encode())
    assert isinstance(failure, ContextOverflow)
    assert (failure.prompt_tokens, failure.context_tokens) == (None, 3)
