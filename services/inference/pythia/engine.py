"""Generation with torch and transformers, both imported only here and only when a model is loaded.

Blocking: everything in this module runs in the backend's one worker thread.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kala.errors import InvalidArgumentError
from services.inference.chat import FinishReason, Sampling

if TYPE_CHECKING:
    import torch

    from services.inference.pythia.weights import Weights

PREFILL_TOKENS: Final = 256
"""Prompt tokens read between two looks at the cancel flag, so that a long prompt can be given up within a second."""

BIG_MODEL_PARAMETERS: Final = 1_000_000_000
"""From here on a CPU holds the weights in half the bytes, because memory and not arithmetic is the limit."""

PLAIN_TEMPLATE: Final = (
    "{%- for message in messages -%}{{- message['role'] | capitalize -}}: {{ message['content'] }}\n{% endfor -%}"
    "{%- if add_generation_prompt -%}Assistant:{%- endif -%}"
)
"""For base models, which come without a chat template."""

# Unknown to every stub: transformers and torch are used through a handful of calls.
Untyped = Any


@dataclass(frozen=True, slots=True)
class Prompt:
    """An encoded conversation."""

    ids: list[int]


@dataclass(frozen=True, slots=True)
class Drawn:
    """How one generation ends."""

    reason: FinishReason
    output_tokens: int


class Engine:
    """One loaded model."""

    def __init__(self, weights: Weights, *, threads: int) -> None:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoTokenizer, GPTNeoXForCausalLM
        from transformers.utils import logging

        # A service's stderr holds log lines, not bars.
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers annotates parts only
        torch.set_num_threads(threads)
        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        # Local files only, no code from the directory, no pickles: safetensors alone.
        safe: Untyped = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._tokenizer: Untyped = AutoTokenizer.from_pretrained(str(weights.directory), **safe)
            model: Untyped = GPTNeoXForCausalLM.from_pretrained(
                str(weights.directory), use_safetensors=True, **safe
            )
        except SafetensorError as error:
            raise ValueError("the weights are not safetensors") from error
        self._model = model.to(device=self._device, dtype=self._dtype(model.num_parameters())).eval()
        self.context_tokens = weights.context_tokens
        with torch.inference_mode():
            # The first pass sets kernels up, which takes longer than a short answer.
            self._model(torch.tensor([[0]], device=self._device))
        # Role markers and padding end an answer as surely as the end of text does.
        self._end_ids = frozenset(self._tokenizer.all_special_ids)
        defaults = self._model.generation_config
        self._default_temperature = float(defaults.temperature or 1.0) if defaults.do_sample else 0.0

    def encode(self, messages: Sequence[dict[str, str]]) -> Prompt:
        """Write a conversation as the model's template has it; raises InvalidArgumentError for control tokens in texts."""
        ids = self._template(messages)
        specials = [token for token in self._tokenizer.all_special_tokens if token]
        if any(token in message["content"] for message in messages for token in specials):
            # The template may have broken them up. If not, the text would pose as the conversation's own structure.
            clean = [message | {"content": _without(message["content"], specials)} for message in messages]
            if _count(ids, self._end_ids) != _count(self._template(clean), self._end_ids):
                raise InvalidArgumentError(
                    "messages", f"a text holds a control token of the model ({', '.join(specials)})"
                )
        return Prompt(ids)

    def decode(self, ids: list[int]) -> str:
        """Give the text of tokens."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def draw(
        self, prompt: Prompt, sampling: Sampling, *, limit: int, is_cancelled: Callable[[], bool]
    ) -> Iterator[int]:
        """Give up to `limit` tokens after the prompt, ending before the end token; stops at once when cancelled."""
        torch = self._torch
        draw = _Sampler(torch, sampling, default_temperature=self._default_temperature)
        with torch.inference_mode():
            cache, logits = self._read_prompt(prompt.ids, is_cancelled)
            for _ in range(limit):
                if logits is None or is_cancelled():
                    return
                token = draw(logits)
                if token in self._end_ids:
                    return
                yield token
                output = self._model(
                    torch.tensor([[token]], device=self._device), past_key_values=cache, use_cache=True
                )
                logits = output.logits[0, -1]

    def _read_prompt(
        self, ids: list[int], is_cancelled: Callable[[], bool]
    ) -> tuple[Untyped, torch.Tensor | None]:
        cache: Untyped = None
        logits: torch.Tensor | None = None
        for start in range(0, len(ids), PREFILL_TOKENS):
            if is_cancelled():
                return cache, None
            piece = self._torch.tensor([ids[start : start + PREFILL_TOKENS]], device=self._device)
            output = self._model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, logits = output.past_key_values, output.logits[0, -1]
        return cache, logits

    def _template(self, messages: Sequence[dict[str, str]]) -> list[int]:
        template = None if self._tokenizer.chat_template else PLAIN_TEMPLATE
        ids: list[int] = self._tokenizer.apply_chat_template(
            list(messages),
            chat_template=template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        return ids

    def _dtype(self, parameters: int) -> torch.dtype:
        if self._device != "cpu":
            return self._torch.float16
        return self._torch.float32 if parameters < BIG_MODEL_PARAMETERS else self._torch.bfloat16


class _Sampler:
    """Draws the next token; the same seed draws the same tokens from the same logits."""

    def __init__(self, torch: Untyped, sampling: Sampling, *, default_temperature: float) -> None:
        self._torch = torch
        self._sampling = sampling
        self._temperature = default_temperature if sampling.temperature is None else sampling.temperature
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed & (2**63 - 1)
        self._generator = torch.Generator().manual_seed(seed)
        self._counts: dict[int, int] = {}

    def __call__(self, logits: torch.Tensor) -> int:
        logits = self._penalised(logits.float().cpu())
        token = int(logits.argmax()) if self._temperature == 0 else self._drawn(logits)
        self._counts[token] = self._counts.get(token, 0) + 1
        return token

    def _penalised(self, logits: torch.Tensor) -> torch.Tensor:
        presence, frequency = self._sampling.presence_penalty or 0.0, self._sampling.frequency_penalty or 0.0
        if presence == 0 and frequency == 0:
            return logits
        logits = logits.clone()
        for token, count in self._counts.items():
            logits[token] -= presence + frequency * count
        return logits

    def _drawn(self, logits: torch.Tensor) -> int:
        logits = logits / self._temperature
        if self._sampling.top_k:
            weakest = logits.topk(min(self._sampling.top_k, logits.numel())).values[-1]
            logits = logits.masked_fill(logits < weakest, float("-inf"))
        top_p = self._sampling.top_p
        if top_p is not None and top_p < 1:
            ordered, order = logits.softmax(-1).sort(descending=True)
            # Keep the likeliest until their sum reaches top_p; the one that crosses it stays.
            beyond = order[ordered.cumsum(-1) - ordered >= top_p]
            logits = logits.index_fill(0, beyond, float("-inf"))
        return int(self._torch.multinomial(logits.softmax(-1), 1, generator=self._generator))


def _without(text: str, specials: Sequence[str]) -> str:
    for token in specials:
        text = text.replace(token, "")
    return text


def _count(ids: Sequence[int], wanted: frozenset[int]) -> int:
    return sum(token in wanted for token in ids)
