"""An adapter's files, poisoned in every way that digests cannot show."""

from __future__ import annotations

import json
import pickle
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kala.common.v1.adapter_pb2 import TENSOR_TYPE_BF16
from kala.errors import VerificationError
from services.common.adapter_weights import require_config, require_weights
from tests.fakes.adapters import AdapterWorld, peft_config, safetensors, tensors

LORA = AdapterWorld().description().lora
PREFIX = "base_model.model.gpt_neox"
QUERY_A = f"{PREFIX}.layers.0.attention.query_key_value.lora_A.weight"


def weights(**changes) -> bytes:
    return safetensors({**tensors(), **changes})


def raw(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_matrices_of_the_stated_shape_pass():
    require_weights("w", safetensors(tensors()), LORA)


def test_matrices_of_the_stated_number_format_pass():
    lora = AdapterWorld().description().lora
    lora.tensor_type = TENSOR_TYPE_BF16
    require_weights("w", safetensors(tensors(), "BF16", 2), lora)
    with pytest.raises(VerificationError, match="is F32, not BF16"):
        require_weights("w", safetensors(tensors()), lora)


def _without(name: str) -> bytes:
    return safetensors({key: shape for key, shape in tensors().items() if key != name})


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "is not a safetensors file"),
        (pickle.dumps({"a": 1}), "is not a safetensors file"),
        (raw(b"[]"), "is not a JSON object"),
        (raw(b'{"a": 1, "a": 2}'), "repeated keys"),
        (raw(b"[" * 100_000), "is not JSON"),
        (raw({"x": 1}), "no dtype, shape and offsets"),
        (raw({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}), "broken shape"),
        (raw({"x": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}), "broken shape"),
        (raw({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}), "broken offsets"),
        (raw({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)), "does not fill"),
        (raw({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)), "does not fill"),
        (raw({"x": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)), "does not fill"),
        (safetensors(tensors(), tail=b"hidden"), "its tensors"),
        (safetensors(tensors(), "F16", 2), "is F16, not F32"),
        (weights(**{QUERY_A: [3, 4]}), r"has shape \[3, 4\], not \[2, 4\]"),
        (weights(**{f"{PREFIX}.embed_in.weight": [4, 6]}), "belongs to no target"),
        (weights(**{f"{PREFIX}.layers.0.mlp.dense_h_to_4h.lora_A.weight": [2, 4]}), "belongs to no target"),
        (
            weights(**{f"{PREFIX}.layers.1.attention.query_key_value.lora_A.weight": [2, 4]}),
            "has 2 A matrices, not 1",
        ),
        (_without(QUERY_A), "has 0 A matrices, not 1"),
        (raw({}), "has 0 A matrices"),
    ],
)
def test_a_poisoned_weights_file_is_refused(data: bytes, match: str):
    with pytest.raises(VerificationError, match=match):
        require_weights("w", data, LORA)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(data: bytes):
    with pytest.raises(VerificationError):
        require_weights("w", data, LORA)
    with pytest.raises(VerificationError):
        require_weights("w", raw(data), LORA)
    with pytest.raises(VerificationError):
        require_config("c", data, LORA)


def test_the_configuration_that_agrees_passes():
    require_config("c", peft_config(), LORA)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"r": 3}, "r is 3, not 2"),
        ({"lora_alpha": 64}, "lora_alpha is 64"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"bias": "all"}, "bias"),
        ({"use_rslora": True}, "use_rslora"),
        ({"target_modules": ["query_key_value"]}, "target_modules is not"),
        ({"target_modules": "all-linear"}, "target_modules is not"),
        ({"modules_to_save": ["embed_in"]}, "modules_to_save is not"),
        ({"use_dora": True}, "use_dora is set"),
        ({"rank_pattern": {"embed_in": 64}}, "rank_pattern is set"),
        ({"auto_mapping": {"parent_library": "os"}}, "auto_mapping is set"),
        ({"a_later_feature": 1}, "a_later_feature is set"),
    ],
)
def test_a_configuration_that_says_something_else_is_refused(changes: dict[str, object], match: str):
    with pytest.raises(VerificationError, match=match):
        require_config("c", peft_config(**changes), LORA)
