"""Random-weight Llama of some 90,000 parameters as a GGUF file, and a LoRA for it; written without llama.cpp's tools.

The format is GGUF version 3 (ggml's docs/gguf.md).  Only letters and the space have output weights, so whatever the
model says is printable.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

WIDTH: Final = 64
HEADS: Final = 2
INNER: Final = 128
RANK: Final = 4
ALIGNMENT: Final = 32

LETTERS: Final = ("▁", *"abcdefghijklmnopqrstuvwxyz")
TEMPLATE: Final = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

_UINT32, _INT32, _FLOAT32, _STRING, _ARRAY = 4, 5, 6, 8, 9
_F32: Final = 0
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6

Weights = NDArray[np.float32]


def make_tiny_llama(path: Path, *, context_tokens: int = 256, seed: int = 1) -> Path:
    """Write the model; the same weights every time for a seed."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS]
    kinds = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256, *[_NORMAL] * len(LETTERS)]
    draw = np.random.default_rng(seed)

    def weights(*shape: int) -> Weights:
        return draw.normal(0, 0.3, shape).astype(np.float32)

    output = weights(len(tokens), WIDTH)
    output[: -len(LETTERS)] = 0
    tensors = {
        "token_embd.weight": weights(len(tokens), WIDTH),
        "output_norm.weight": np.ones(WIDTH, np.float32),
        "output.weight": output,
        "blk.0.attn_norm.weight": np.ones(WIDTH, np.float32),
        "blk.0.ffn_norm.weight": np.ones(WIDTH, np.float32),
        **{f"blk.0.attn_{name}.weight": weights(WIDTH, WIDTH) for name in ("q", "k", "v", "output")},
        "blk.0.ffn_gate.weight": weights(INNER, WIDTH),
        "blk.0.ffn_up.weight": weights(INNER, WIDTH),
        "blk.0.ffn_down.weight": weights(WIDTH, INNER),
    }
    facts = {
        "general.architecture": "llama",
        "general.name": path.stem,
        "llama.context_length": context_tokens,
        "llama.embedding_length": WIDTH,
        "llama.block_count": 1,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": WIDTH // HEADS,
        "llama.vocab_size": len(tokens),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }
    return _write(path, facts, tensors)


def make_tiny_lora(path: Path, *, seed: int = 7) -> Path:
    """Write an adapter of the model that changes what it says beyond doubt."""
    draw = np.random.default_rng(seed)
    tensors = {
        "blk.0.ffn_down.weight.lora_a": draw.normal(0, 2, (RANK, INNER)).astype(np.float32),
        "blk.0.ffn_down.weight.lora_b": draw.normal(0, 2, (WIDTH, RANK)).astype(np.float32),
    }
    facts = {
        "general.type": "adapter",
        "general.architecture": "llama",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(RANK),
    }
    return _write(path, facts, tensors)


def _write(path: Path, facts: Mapping[str, Any], tensors: Mapping[str, Weights]) -> Path:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts))
    head += b"".join(_text(name) + _fact(value) for name, value in facts.items())
    body, offset = [], 0
    for name, tensor in tensors.items():
        # The fastest dimension comes first there.
        shape = tuple(reversed(tensor.shape))
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, _F32, offset)
        data = _padded(tensor.tobytes())
        body.append(data)
        offset += len(data)
    path.write_bytes(_padded(head) + b"".join(body))
    return path


def _fact(value: object) -> bytes:
    match value:
        case str():
            return struct.pack("<I", _STRING) + _text(value)
        case int():
            return struct.pack("<II", _UINT32, value)
        case float():
            return struct.pack("<If", _FLOAT32, value)
        case [str(), *_]:
            return _array(_STRING, [_text(item) for item in value])
        case [float(), *_]:
            return _array(_FLOAT32, [struct.pack("<f", item) for item in value])
        case [int(), *_]:
            return _array(_INT32, [struct.pack("<i", item) for item in value])
        case _:
            raise TypeError(f"{value!r} has no place in a GGUF file")


def _array(kind: int, items: list[bytes]) -> bytes:
    return struct.pack("<IIQ", _ARRAY, kind, len(items)) + b"".join(items)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)
