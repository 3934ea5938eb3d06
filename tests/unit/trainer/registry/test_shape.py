"""What is read of an adapter's own files, and what is refused."""

from __future__ import annotations

import json

import pytest

from kala.common.v1 import adapter_pb2 as pb
from kala.errors import VerificationError
from services.trainer.registry.shape import read_shape
from tests.fakes.adapters import INPUTS, OUTPUTS, RANK, peft_config, safetensors, tensors

HEAD = "base_model.model.lm_head"


def test_the_shape_is_that_of_the_files() -> None:
    lora = read_shape(peft_config(), safetensors(tensors()), requested=["query_key_value", "embed_in"])
    assert (lora.rank, lora.alpha, lora.dropout_micros) == (RANK, 4, 50_000)
    assert lora.tensor_type == pb.TENSOR_TYPE_F32
    found = [
        (item.module, item.requested, item.matched, item.in_features, item.out_features)
        for item in lora.targets
    ]
    assert found == [("embed_in", "", 1, INPUTS, OUTPUTS), ("query_key_value", "", 1, INPUTS, OUTPUTS)]


def test_a_target_that_was_asked_for_by_another_name_keeps_it() -> None:
    matrices = {f"{HEAD}.lora_A.weight": [RANK, 4], f"{HEAD}.lora_B.weight": [8, RANK]}
    config = peft_config(target_modules=["lm_head"])
    lora = read_shape(config, safetensors(matrices), requested=["embed_out"])
    assert [(item.module, item.requested) for item in lora.targets] == [("lm_head", "embed_out")]


@pytest.mark.parametrize(
    ("config", "weights", "match"),
    [
        (b"\x80\x04pickle", safetensors(tensors()), "adapter_config.json: is not JSON"),
        (b"[]", safetensors(tensors()), "not a JSON object"),
        (peft_config(), b"\x80\x02}q\x00.", "not a safetensors file"),
        (peft_config(), safetensors({}), "its tensors are none"),
        (peft_config(), safetensors(tensors(), tail=b"hidden"), "holds"),
        (peft_config(r=3), safetensors(tensors()), "shape"),
        (peft_config(r=True), safetensors(tensors()), "r is True"),
        (peft_config(target_modules=["embed_in"]), safetensors(tensors()), "target_modules"),
        (peft_config(use_dora=True), safetensors(tensors()), "use_dora is set"),
        (peft_config(auto_mapping={"x": 1}), safetensors(tensors()), "auto_mapping is set"),
        (
            peft_config(),
            safetensors({**tensors(), "base_model.model.gpt_neox.embed_in.base_layer.weight": [4, 4]}),
            "belongs to no target",
        ),
    ],
    ids=["pickled config", "list", "pickle", "empty", "tail", "rank", "bool", "targets", "dora", "code", "embedding"],
)  # fmt: skip
def test_files_that_are_no_adapter_are_refused(config: bytes, weights: bytes, match: str) -> None:
    with pytest.raises(VerificationError, match=match):
        read_shape(config, weights, requested=json.loads(b'["embed_in", "query_key_value"]'))
