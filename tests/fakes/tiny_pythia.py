"""A random-weight gpt_neox of a few thousand parameters, in the files that a real one has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

END: Final = "<|endoftext|>"
ROLES: Final = ("<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE: Final = (
    "{%- for message in messages -%}{{- '<|' + message['role'] + '|>' + message['content'] + '<|endoftext|>' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def make_tiny_pythia(
    directory: Path, *, context_tokens: int = 64, template: str | None = TEMPLATE, width: int = 32
) -> Path:
    """Write the model; the same weights every time."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([END, *ROLES, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        additional_special_tokens=list(ROLES),
        clean_up_tokenization_spaces=False,
    ).save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | ({"chat_template": template} if template else {}))
    )
    torch.manual_seed(7)
    config = GPTNeoXConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=4 * width,  # four times the width: mlx_lm takes that for granted
        max_position_embeddings=context_tokens,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPTNeoXForCausalLM(config)
    with torch.no_grad():
        # Greedy decoding never meets an end token, so an answer is as long as its limit.
        model.get_output_embeddings().weight[: 1 + len(ROLES)] = 0
    model.save_pretrained(directory)
    path = directory / "config.json"
    # mlx_lm reads these where transformers 5 no longer writes them.
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"rotary_pct": 0.25, "rotary_emb_base": 10_000})
    )
    return directory
