"""What is wrong with a model server and how to mend it, for a person who does not know it.  Pure.

Each cure answers an entry of a troubleshooting chapter: connection, model, context, time, speed, memory, keys.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

from services.inference.backend import (
    AUTO_MODEL,
    LOCAL_MODEL,
    BackendFailure,
    Check,
    ContextOverflow,
    Identity,
    Kind,
    LoadState,
    ModelInfo,
    State,
    Status,
)
from services.inference.base_url import parse_base_url

SLOW_SECONDS: Final = 5.0
"""For one token of a short prompt from a model in memory; RFC-080 takes no server that needs longer."""

MAX_LISTED: Final = 8

LOCAL_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "::1"})

_START: Final = {
    Kind.LMSTUDIO: (
        "open LM Studio, load a model, and start the server (Developer page or Local Server tab, or `lms server start`); "
        "it must show `Server running`"
    ),
    Kind.LLAMACPP: (
        "start it, e.g. `llama-server -m model.gguf --port 8080`, or set LLAMACPP_MODEL_PATH and let KALA start it; "
        "`pip install 'llama-cpp-python[server]'` brings one (on a Mac with CMAKE_ARGS=-DGGML_METAL=on and "
        "--force-reinstall where its Metal part failed to build); `kala models pull` gets a GGUF file"
    ),
    Kind.MLX: (
        "start it, e.g. `mlx_lm.server --model <model> --port 8080`, or set MLX_MODEL_PATH and let KALA start it; "
        "`pip install mlx-lm` brings it; its Metal backend needs a Mac with Apple Silicon, elsewhere `pip install 'mlx[cpu]'`; "
        "`kala models pull` gets a model"
    ),
    Kind.OLLAMA: "start it with `ollama serve`",
}

_URL_SETTINGS: Final = {
    Kind.LMSTUDIO: "LM_STUDIO_BASE_URL (or LMSTUDIO_API_URL)",
    Kind.LLAMACPP: "LLAMACPP_SERVER_URL",
    Kind.MLX: "KALA_INFERENCE_MLX_URL",
    Kind.OLLAMA: "OLLAMA_HOST",
}

_MODEL_SETTINGS: Final = {
    Kind.LMSTUDIO: "LM_STUDIO_MODEL (or LMSTUDIO_MODEL)",
    Kind.LLAMACPP: "KALA_INFERENCE_LLAMACPP_MODEL",
    Kind.MLX: "KALA_INFERENCE_MLX_MODEL",
    Kind.OLLAMA: "OLLAMA_MODEL",
    Kind.OPENAI: "OPENAI_MODEL",
}

_LOAD: Final = {
    Kind.LMSTUDIO: (
        "`kala models load {model}` or `lms load {model}` loads it; in LM Studio choose it in the Local Server tab, click "
        "Load Model, and wait until it is loaded"
    ),
    Kind.LLAMACPP: "start llama-server with -m, or in router mode `kala models load {model}`",
    Kind.MLX: "start mlx_lm.server with --model {model}",
    Kind.OLLAMA: "`ollama pull {model}`, then `kala models load {model}`",
}

_FASTER: Final = {
    Kind.LMSTUDIO: (
        "use a smaller model (Phi-2, Mistral-7B) or a quantized one (Q4_K_M is the fastest), enable GPU acceleration in LM "
        "Studio's settings, ask for fewer max_tokens, close other programs"
    ),
    Kind.LLAMACPP: (
        "use a smaller or stronger quantized GGUF, offload layers (`--n-gpu-layers 999`, n_gpu_layers=-1), lower --ctx-size, "
        "close other programs"
    ),
    Kind.MLX: "use a 4-bit model and close other programs that use the GPU or much memory",
    Kind.OLLAMA: "use a smaller or quantized model; `ollama ps` shows whether it runs on the GPU",
}

_MEMORY: Final = "it may have run out of memory: a 1B model needs 2-3 GB, 3B 4-6 GB, 7B 8-12 GB; use a smaller or quantized one"

_TOOK_TOO_LONG: Final = ("FIRST_BYTE_TIMED_OUT", "STREAM_STALLED", "BACKEND_TIMED_OUT")
_ENDED: Final = ("CONNECTION_REFUSED", "DISCONNECTED", "STREAM_CUT")

_TIMEOUT: Final = "KALA_INFERENCE_FIRST_BYTE_SECONDS"
_TIMEOUTS: Final = {Kind.LMSTUDIO: "LM_STUDIO_TIMEOUT_SECONDS"}

_BUSY: Final = {
    Kind.LMSTUDIO: "raise Max Concurrent Predictions in LM Studio's model loader, or send fewer requests at once"
}

LEAST_CONTEXT: Final = 4096
"""What a conversation needs (seed 001)."""

_TOO_LONG: Final = (
    "raise {timeout}; a cold model reads its prompt first, so load it beforehand; a smaller model is faster"
)


def connect_cure(identity: Identity, reason: str) -> str:
    """Say what to do about a server that does not answer; `reason` is the look's."""
    url = identity.url
    setting = _url_setting(identity.kind)
    match reason:
        case "DNS_FAILED":
            return (
                f"its name in {url} is not known here: check {setting}; host.docker.internal exists inside containers only, "
                "and on Linux needs `extra_hosts: host.docker.internal:host-gateway`"
            )
        case "CONNECT_TIMED_OUT" | "UNREACHABLE" | "LOOK_TIMED_OUT":
            return (
                f"check host and port in {setting}, and that no firewall is between; a server on another machine must "
                "listen beyond its own"
                + (" (enable `Serve on local network`)" if identity.kind is Kind.LMSTUDIO else "")
            )
        case "TLS_FAILED":
            return f"use http:// in {setting} unless the server has a certificate that this machine trusts"
    steps = [_START.get(identity.kind, "start the server")]
    if url:
        steps.append(
            f"check that {url}/v1/models opens in a browser, that {setting} names it, and that its port is not blocked"
        )
    if _is_local(url):
        steps.append("inside a container use host.docker.internal instead of localhost")
    return "; ".join(steps)


def identify_cure(identity: Identity, reason: str) -> str:
    """Say what to do about a server that answers, but not as it should."""
    if reason == "AUTHENTICATION_FAILED":
        where = " (LM Studio makes them in its server settings)" if identity.kind is Kind.LMSTUDIO else ""
        cure = f"set KALA_INFERENCE_{identity.kind.name}_API_KEY to a key that the server accepts{where}"
        # What was only found is sent no key.
        return f"{cure}, and {_url_setting(identity.kind)} to its address" if identity.is_discovered else cure
    if reason.startswith(("NOT_", "MALFORMED")):
        return (
            f"another program holds this address, or the URL has a wrong path: check {_url_setting(identity.kind)}; then "
            + _START.get(identity.kind, "start the server")
        )
    return connect_cure(identity, reason)


def model_check(identity: Identity, status: Status, wanted: str) -> tuple[Check, ModelInfo | None]:
    """Say whether the model to test is there; `wanted` empty takes the configured one, else the one in memory."""
    name = identity.default_model if wanted in {"", AUTO_MODEL, LOCAL_MODEL} else wanted
    if name:
        found = next((model for model in status.models if name in {model.id, *model.aliases}), None)
        if found is not None:
            return _found(found), found
        return _missing(identity, status, name, is_configured=name == identity.default_model), None
    in_memory = (LoadState.LOADED, LoadState.UNKNOWN)
    usable = [model for model in status.models if model.can_chat and model.state in in_memory]
    if usable:
        return _found(usable[0]), usable[0]
    if status.state is State.LOADING:
        return Check(
            "models", passed=False, detail=status.detail, cure="wait until it is loaded, and test again"
        ), None
    known = [model.id for model in status.models if model.can_chat]
    there = f"; there are: {_listed(known)}" if known else ""
    detail = f"no model is loaded{there}"
    return Check(
        "models", passed=False, detail=detail, cure=load_cure(identity.kind, known[0] if known else "")
    ), None


def load_cure(kind: Kind, model: str) -> str:
    """Say how a model gets loaded there."""
    return _LOAD.get(kind, "load {model} in the server").format(model=model or "<model>")


def files_cure(model: str, reason: str) -> str:
    """Say how the files of a model in process get here, or get whole again."""
    pull = f"`kala models pull EleutherAI/{model}`"
    is_published = model.startswith("pythia-")
    if reason == "MODEL_NOT_AVAILABLE":
        return (
            pull
            if is_published
            else "put config.json, tokenizer.json and *.safetensors of a GPT-NeoX model there"
        )
    return (
        f"remove the folder and get it again with {pull}"
        if is_published
        else "get the files again from their source"
    )


def context_check(identity: Identity, model: ModelInfo) -> Check | None:
    """Compare the context with which a model is loaded to the one configured for it; None where nothing is known."""
    context, longest = model.context_tokens, model.max_context_tokens
    wanted = identity.preferences.contexts.of(model.id)
    if context is None:
        return None
    of = f" of at most {longest}" if longest and longest > context else ""
    detail = f"{model.id} is loaded with {context}{of} tokens of context; longer prompts are refused"
    if wanted is None or context >= wanted:
        return Check("context", passed=True, detail=detail)
    return Check(
        "context",
        passed=False,
        detail=f"{model.id} is loaded with {context} tokens of context, and {wanted} are configured",
        cure=context_cure(identity.kind, model.id, wanted),
    )


def context_cure(kind: Kind, model: str, wanted: int) -> str:
    """Say how a model gets a longer context; it is set when it is loaded."""
    if kind is Kind.LMSTUDIO:
        return (
            f"load it again with more: `kala models load {model} --context {wanted}`, `lms load {model} --context-length "
            f"{wanted}`, or the Context tab of LM Studio; scoring whole articles needs 16384 to 32768"
        )
    if kind is Kind.LLAMACPP:
        return f"start llama-server with --ctx-size {wanted} for each of its parallel slots"
    return f"load it again with a context of {wanted} tokens"


def answer_cure(identity: Identity, model: ModelInfo, failure: BackendFailure) -> str:
    """Say what to do about a model that did not answer one short question."""
    kind = identity.kind
    if isinstance(failure, ContextOverflow):
        return context_cure(kind, model.id, failure.context_tokens or LEAST_CONTEXT)
    if failure.reason in {"AUTHENTICATION_FAILED", "NOT_AN_API"}:
        return identify_cure(identity, failure.reason)
    load = load_cure(kind, model.id)
    busy = "send fewer requests at once, or give the server more slots"
    cures = {
        **dict.fromkeys(_TOOK_TOO_LONG, _TOO_LONG.format(timeout=_TIMEOUTS.get(kind, _TIMEOUT))),
        **dict.fromkeys(_ENDED, f"the server ended while it answered; {_MEMORY}; its own log says more"),
        **dict.fromkeys(("MODEL_NOT_FOUND", "NO_MODEL_LOADED"), f"{load}; {_MEMORY}"),
        "BACKEND_BUSY": _BUSY.get(kind, busy),
        "WRONG_MODEL": (
            "ask for the model that is loaded, by its exact name: see `kala models list` and "
            + _model_setting(kind)
        ),
    }
    return cures.get(failure.reason, f"look into the server's own log; {_MEMORY}; or {load}")


def speed_check(identity: Identity, model: ModelInfo, seconds: float) -> Check:
    """Judge the time that one token took."""
    detail = f"one token of {model.id} took {seconds:.1f} s"
    if seconds <= SLOW_SECONDS:
        return Check("speed", passed=True, detail=detail)
    faster = _FASTER.get(identity.kind, "use a smaller model or fewer max_tokens")
    return Check("speed", passed=False, detail=f"{detail}, more than {SLOW_SECONDS:g} s", cure=faster)


def _found(model: ModelInfo) -> Check:
    return Check("models", passed=True, detail=f"{model.id} is {model.state.value}")


def _missing(identity: Identity, status: Status, name: str, *, is_configured: bool) -> Check:
    known = [candidate for model in status.models for candidate in (model.id, *model.aliases)]
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    if not known:
        cure = load_cure(identity.kind, name)
    else:
        hint = f"did you mean {close[0]!r}? " if close else ""
        # "Ensure model name matches exactly": the seeds' most frequent mistake.
        cure = f"{hint}the name must match exactly one of: {_listed(dict.fromkeys(known))}"
        cure += f"; set {_model_setting(identity.kind)} to it" if is_configured else ""
        cure += f"; or get it: {load_cure(identity.kind, name)}"
    which = "its configured model" if is_configured else "model"
    return Check("models", passed=False, detail=f"{which} {name!r} is not there", cure=cure)


def _listed(names: Iterable[str]) -> str:
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - MAX_LISTED} more" if len(unique) > MAX_LISTED else ""
    return ", ".join(unique[:MAX_LISTED]) + more


def _url_setting(kind: Kind) -> str:
    return _URL_SETTINGS.get(kind, f"KALA_INFERENCE_{kind.name}_URL")


def _model_setting(kind: Kind) -> str:
    return _MODEL_SETTINGS.get(kind, f"KALA_INFERENCE_{kind.name}_MODEL")


def _is_local(url: str) -> bool:
    return bool(url) and parse_base_url(url).host in LOCAL_HOSTS
