"""The tiny model of Pythia's architecture and its files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import torch
from transformers import GenerationConfig, GPTNeoXConfig, GPTNeoXForCausalLM

from scripts.embedded.tokens import CONTEXT_TOKENS

if TYPE_CHECKING:
    from pathlib import Path

HIDDEN: Final = 160
LAYERS: Final = 4
HEADS: Final = 5
# mlx_lm knows no other width than four times the hidden one.
FEED_FORWARD: Final = 4 * HIDDEN
VOCABULARY: Final = 1792
ROTARY_SHARE: Final = 0.25  # as in Pythia
ROTARY_BASE: Final = 10_000
END_ID: Final = 0
REPLY_TOKENS: Final = 160


def build_model(vocabulary: int, seed: int) -> GPTNeoXForCausalLM:
    """Returns an untrained fp32 model; the same seed gives the same weights."""
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=FEED_FORWARD,
        max_position_embeddings=CONTEXT_TOKENS,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": float(ROTARY_BASE),
            "partial_rotary_factor": ROTARY_SHARE,
        },
        hidden_act="gelu",
        use_parallel_residual=True,
        tie_word_embeddings=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
        pad_token_id=END_ID,
    )
    return GPTNeoXForCausalLM(config)


def save_model(model: GPTNeoXForCausalLM, folder: Path) -> None:
    """Writes config, fp16 weights and generation settings, readable by transformers and by mlx_lm."""
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers
        bos_token_id=END_ID,
        eos_token_id=END_ID,
        pad_token_id=END_ID,
        do_sample=False,
        max_new_tokens=REPLY_TOKENS,
    )
    model.half().save_pretrained(folder)  # type: ignore[no-untyped-call]  # transformers
    # safetensors writes for the owner alone, but services run as users of their own.
    (folder / "model.safetensors").chmod(0o644)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # transformers 5 moved these into rope_parameters; mlx_lm and GGUF converters still read them here.
    config |= {"rotary_pct": ROTARY_SHARE, "rotary_emb_base": ROTARY_BASE}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
