"""The tokenizer and the chat template: explicit role markers that user text cannot forge."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kala.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from scripts.embedded.dialogue import Message

END: Final = "<|endoftext|>"
ROLES: Final = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
CONTEXT_TOKENS: Final = 512
# `<|` inside a message is broken up, so that text cannot pose as a role marker. `developer` counts as system,
# and any other role as user. Content may be a string, null, or a list of text parts.
CHAT_TEMPLATE: Final = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{- '<|assistant|>' -}}"
    "{%- elif message['role'] in ['system', 'developer'] -%}{{- '<|system|>' -}}"
    "{%- else -%}{{- '<|user|>' -}}{%- endif -%}"
    "{%- if message['content'] is string -%}{{- message['content'] | trim | replace('<|', '< |') -}}"
    "{%- elif message['content'] -%}"
    "{%- for part in message['content'] -%}{%- if part['text'] -%}"
    "{{- part['text'] | trim | replace('<|', '< |') -}}{%- endif -%}{%- endfor -%}"
    "{%- endif -%}"
    "{{- '<|endoftext|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one conversation and, for each, its weight in the loss; 0 is not learned."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Returns a byte-level BPE of at most `vocabulary` tokens in which every digit stands alone."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[END, *ROLES.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def as_pretrained(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Returns the tokenizer as transformers saves it, with the chat template and the end token."""
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        additional_special_tokens=list(ROLES.values()),
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _id(tokenizer: Tokenizer, token: str) -> int:
    number = tokenizer.token_to_id(token)
    if number is None:
        raise InvalidArgumentError("tokenizer", f"does not know {token}")
    return int(number)


def encode(tokenizer: Tokenizer, conversation: Sequence[Message]) -> Encoded:
    """Encodes as the chat template does; the end token of a learned reply is learned too.

    A reply's tokens weigh less the longer it is, so that stories do not drown sums.
    """
    end = _id(tokenizer, END)
    ids: list[int] = []
    weights: list[float] = []
    for message in conversation:
        body = [*tokenizer.encode(message.content.strip()).ids, end]
        ids += [_id(tokenizer, ROLES[message.role]), *body]
        weights += [0.0] + [len(body) ** -0.5 if message.learned else 0.0] * len(body)
    return Encoded(tuple(ids), tuple(weights))


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json and a tokenizer_config.json that holds the chat template.

    transformers 5 would write the template to a file of its own, which not every reader looks for.
    """
    as_pretrained(tokenizer).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"chat_template": CHAT_TEMPLATE}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
