"""Turn examples into token ids, exactly as the ethics service will, and into batches of few widths."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from scripts.classifier.examples import Example
from scripts.classifier.network import base_directory
from services.ethics.classifier.encoding import Encoded, arrange


def load_tokenizer() -> Tokenizer:
    """The base model's tokenizer without padding or truncation, which are done here."""
    tokenizer = Tokenizer.from_file(str(base_directory() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def encode(examples: Sequence[Example], tokenizer: Tokenizer) -> list[Encoded]:
    """Token ids of every example; long texts keep their two ends."""
    texts = tokenizer.encode_batch([example.text for example in examples], add_special_tokens=False)
    contexts = tokenizer.encode_batch([example.context for example in examples], add_special_tokens=False)
    return [
        arrange(text.ids, context.ids, example.stage)
        for example, text, context in zip(examples, texts, contexts, strict=True)
    ]


def width_of(length: int) -> int:
    """The width that a text of this many tokens is padded to in training."""
    step = 8 if length <= 64 else 32
    return -(-length // step) * step
