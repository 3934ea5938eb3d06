"""One loaded GPT-NeoX model: texts to tokens and back, and passes over a batch of rows.

Blocking: everything here runs in the worker's one thread, inside `computing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final

from kala.errors import InvalidArgumentError
from services.inference.chat import Sampling
from services.inference.pythia.loading import load_model
from services.inference.pythia.lora import AdapterRows, LoraAdapter
from services.inference.pythia.memory import RowMemory
from services.inference.pythia.sampler import Sampler

if TYPE_CHECKING:
    import torch

    from services.inference.pythia.holding import Holding
    from services.inference.pythia.weights import Weights

PLAIN_TEMPLATE: Final = (
    "{%- for message in messages -%}{{- message['role'] | capitalize -}}: {{ message['content'] }}\n{% endfor -%}"
    "{%- if add_generation_prompt -%}Assistant:{%- endif -%}"
)
"""For base models, which come without a chat template."""

# Unknown to every stub: transformers and torch are used through a handful of calls.
Untyped = Any


class Engine:
    """One loaded model."""

    def __init__(self, weights: Weights, holding: Holding) -> None:
        import torch

        self._torch = torch
        tokenizer, model = load_model(weights, holding)
        self._tokenizer: Untyped = tokenizer
        self.model: Untyped = model
        self._device: torch.device = model.device
        self._adapters = AdapterRows(model)
        self._used: list[tuple[LoraAdapter, ...]] = []
        self.context_tokens = weights.context_tokens
        with self.computing():
            # The first pass sets kernels up, which takes longer than a short answer.
            self.read(self.memory(), [0], ())
        # Role markers and padding end an answer as surely as the end of text does.
        self.end_ids = frozenset(self._tokenizer.all_special_ids)
        defaults = model.generation_config
        self._default_temperature = float(defaults.temperature or 1.0) if defaults.do_sample else 0.0

    def computing(self) -> AbstractContextManager[None]:
        """Give the context in which passes are made and memories are changed."""
        mode: AbstractContextManager[None] = self._torch.inference_mode()
        return mode

    def encode(self, messages: Sequence[dict[str, str]], template: str = "") -> list[int]:
        """Write a conversation as the model's template, or the given one, has it.

        A last message of the assistant's stays open, so that the model goes on with it.  Raises InvalidArgumentError for
        control tokens in texts.
        """
        *before, last = messages
        if before and last["role"] == "assistant" and last["content"]:
            return self.encode(before, template) + self.encode_text(last["content"])
        ids = self._templated(messages, template)
        specials = [token for token in self._tokenizer.all_special_tokens if token]
        if any(token in message["content"] for message in messages for token in specials):
            # The template may have broken them up. If not, the text would pose as the conversation's own structure.
            clean = [message | {"content": _without(message["content"], specials)} for message in messages]
            if _count(ids, self.end_ids) != _count(self._templated(clean, template), self.end_ids):
                raise InvalidArgumentError(
                    "messages", f"a text holds a control token of the model ({', '.join(specials)})"
                )
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Give the tokens of a text as it stands; raises InvalidArgumentError for control tokens in it."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if _count(ids, self.end_ids):
            raise InvalidArgumentError("prompt", "the text holds a control token of the model")
        # A text of no token still needs something to go on from.
        return ids or [self._tokenizer.eos_token_id]

    def decode(self, ids: list[int]) -> str:
        """Give the text of tokens."""
        text: str = self._tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def sampler(self, sampling: Sampling) -> Sampler:
        """Make what draws one row's tokens."""
        return Sampler(sampling, default_temperature=self._default_temperature)

    def memory(self) -> RowMemory:
        """Make an empty memory."""
        return RowMemory()

    def read(self, memory: RowMemory, ids: Sequence[int], adapters: tuple[LoraAdapter, ...]) -> torch.Tensor:
        """Read more of one text into a memory of its own; give the logits after it, [1, vocabulary]."""
        if not memory.lengths:
            memory.lengths.append(0)
        count, room = len(ids), memory.lengths[0] + len(ids)
        memory.begin_reading(count)
        torch = self._torch
        sees = torch.ones(count, room, dtype=torch.bool, device=self._device).tril(room - count)
        positions = torch.arange(room - count, room, device=self._device)[None]
        logits = self._passed([list(ids)], memory, sees[None, None], positions, [adapters])
        memory.ended(count)
        return logits

    def step(
        self, memory: RowMemory, tokens: Sequence[int], adapters: Sequence[tuple[LoraAdapter, ...]]
    ) -> torch.Tensor:
        """Read one more token into every row; give the logits after it, [rows, vocabulary]."""
        torch, device = self._torch, self._device
        lengths = torch.tensor(memory.lengths, device=device)
        room = max(memory.lengths) + 1
        if len(tokens) == 1:
            memory.begin_step(None)
            sees = torch.ones(1, room, dtype=torch.bool, device=device)
        else:
            memory.begin_step((torch.arange(len(tokens), device=device), lengths))
            sees = torch.arange(room, device=device)[None] <= lengths[:, None]
        logits = self._passed(
            [[token] for token in tokens], memory, sees[:, None, None], lengths[:, None], adapters
        )
        memory.ended(1)
        return logits

    def embed(self, ids: Sequence[int]) -> list[float]:
        """Give the mean of a text's last hidden states, of length 1."""
        torch = self._torch
        self._use([()])
        output = self.model.gpt_neox(torch.tensor([list(ids)], device=self._device), use_cache=False)
        mean = output.last_hidden_state[0].float().mean(0)
        vector: list[float] = torch.nn.functional.normalize(mean, dim=0).tolist()
        return vector

    def hook(self, adapter: LoraAdapter) -> None:
        """Let the model look for an adapter in passes to come."""
        self._adapters.hook(adapter)

    def _passed(
        self,
        ids: list[list[int]],
        memory: RowMemory,
        sees: torch.Tensor,
        positions: torch.Tensor,
        adapters: Sequence[tuple[LoraAdapter, ...]],
    ) -> torch.Tensor:
        self._use(adapters)
        output = self.model(
            self._torch.tensor(ids, device=self._device),
            attention_mask=sees,
            position_ids=positions,
            past_key_values=memory,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _use(self, adapters: Sequence[tuple[LoraAdapter, ...]]) -> None:
        used = list(adapters)
        if used != self._used:
            self._used = used
            self._adapters.use(used, self._device)

    def _templated(self, messages: Sequence[dict[str, str]], template: str) -> list[int]:
        ids: list[int] = self._tokenizer.apply_chat_template(
            list(messages),
            chat_template=template or (None if self._tokenizer.chat_template else PLAIN_TEMPLATE),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        return ids


def _without(text: str, specials: Sequence[str]) -> str:
    for token in specials:
        text = text.replace(token, "")
    return text


def _count(ids: Sequence[int], wanted: frozenset[int]) -> int:
    return sum(token in wanted for token in ids)
