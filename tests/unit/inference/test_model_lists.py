"""What servers say of their models: whatever its shape, reading it is no crash."""

from __future__ import annotations

import httpx
import orjson
from hypothesis import given
from hypothesis import strategies as st

from services.inference.backends import llamacpp, lmstudio, mlx, ollama
from services.inference.backends.http import Reply
from services.inference.backends.model_server import json_list

NAMES = st.sampled_from(
    [
        *("data", "models", "id", "key", "name", "type", "owned_by", "permissions", "version", "lmstudio"),
        *("status", "value", "args", "state", "meta", "n_ctx", "n_ctx_train", "ftype", "aliases"),
        *("architecture", "input_modalities", "capabilities", "vision", "quantization", "details"),
        *("loaded_instances", "config", "context_length", "max_context_length", "loaded_context_length"),
    ]
)
LEAVES = st.sampled_from([None, True, 0, -1, 2**64 - 1, 1.5, "", "x", "ok", "loaded", "embedding", "me"])
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=30,
)
ITEMS = st.dictionaries(NAMES, VALUES, max_size=8)


@given(value=VALUES)
def test_a_stranger_of_any_shape_is_known_or_not(value: object) -> None:
    # A crash here would end the search for every other server.
    reply = Reply(200, httpx.Headers({"server": "BaseHTTP"}), orjson.dumps(value))
    for is_theirs in (
        llamacpp.is_llama_server,
        llamacpp.is_llama_cpp_python,
        lmstudio.is_greeting,
        ollama.is_ollama,
    ):
        assert is_theirs(reply) in {True, False}
    assert mlx.is_mlx(reply, reply) in {True, False}


@given(items=st.lists(ITEMS, max_size=3), instance=ITEMS)
def test_a_model_of_any_shape_is_a_model_or_none(items: list[dict[str, object]], instance: object) -> None:
    items.append({"key": "model", "loaded_instances": [instance]})
    reply = Reply(200, httpx.Headers(), orjson.dumps({"models": items}))
    for item in json_list(reply, "models") or []:
        llamacpp._model(item, sees=False)
        lmstudio._model_of_v0(item)
        lmstudio._model_of_v1(item)
