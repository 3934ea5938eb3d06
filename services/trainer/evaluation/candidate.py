"""The candidate and its base in memory, answering without any guard: a gate must see what the model itself would say.

Runs in a process of its own. Answers are the likeliest tokens, so that the same adapter always gives the same ones.
"""

from __future__ import annotations

import gc
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kala.common.v1.adapter_pb2 import (
    ADAPTER_TASK_CLASSIFICATION,
    QUANTIZATION_INT8,
    QUANTIZATION_NF4,
    AdapterDescription,
)
from kala.errors import ResourceExhaustedError, VerificationError
from services.common.adapter_weights import WEIGHTS_FILE
from services.trainer.evaluation.suites import Item, Turn
from services.trainer.training.encoding import PLAIN_TEMPLATE

if TYPE_CHECKING:
    import torch

BATCH: Final = 32
"""Answers made together at most."""

BATCH_TOKENS: Final = 16_384
"""Prompt and answer tokens of a batch at most: what a 12b's cache holds beside its weights."""

# Unknown to every stub: transformers and peft are used through a handful of calls.
Untyped = Any


@dataclass(frozen=True, slots=True)
class Loss:
    """How surprising a text is: the sum of its tokens' negative log likelihoods, and how many they are."""

    nats: float
    tokens: int


@dataclass(slots=True)
class Candidate:
    """A base with an adapter that can be left out."""

    model: Untyped
    tokenizer: Untyped
    context_tokens: int
    template: str
    base_template: str
    labels: Sequence[str] = ()

    def answers(
        self, items: Sequence[Item], max_tokens: int, *, bare: bool, told: Callable[[int], None]
    ) -> list[str]:
        """One answer per item; `bare` leaves the adapter out. `told` hears how many more are done."""
        if self.labels:
            return self._labelled(items, bare=bare, told=told)
        prompts = [self._ids(item.turns, max_tokens, bare=bare) for item in items]
        # Alike lengths go together: padding is work for nothing.
        order = sorted(range(len(prompts)), key=lambda number: (len(prompts[number]), number))
        found: dict[int, str] = {}
        with self._side(bare=bare):
            for part in _batches(order, prompts, max_tokens):
                texts = self._generated([prompts[number] for number in part], max_tokens)
                found.update(zip(part, texts, strict=True))
                told(len(part))
        return [found[number] for number in range(len(prompts))]

    def losses(self, items: Sequence[Item], *, bare: bool, told: Callable[[int], None]) -> list[Loss]:
        """How surprising each item's last answer is or, without one, its whole text."""
        import torch

        found = []
        with self._side(bare=bare), torch.inference_mode():
            for item in items:
                ids, first = self._scored(item, bare=bare)
                batch = torch.tensor([ids], device=self.model.device)
                logits = self.model(input_ids=batch).logits[0, :-1].float()
                surprise = torch.nn.functional.cross_entropy(logits, batch[0, 1:], reduction="none")
                taken = surprise[first - 1 :] if first else surprise
                found.append(Loss(float(taken.sum()), int(taken.numel())))
                told(1)
        return found

    def logits(self, turns: Sequence[Turn], *, bare: bool) -> torch.Tensor:
        """The scores of the next token."""
        import torch

        with self._side(bare=bare), torch.inference_mode():
            ids = torch.tensor([self._ids(turns, 1, bare=True)], device=self.model.device)
            output: torch.Tensor = self.model(input_ids=ids).logits
        return output.reshape(-1, output.shape[-1])[-1].float()

    def _labelled(self, items: Sequence[Item], *, bare: bool, told: Callable[[int], None]) -> list[str]:
        """A classifier's answer is a label; its base has none to give."""
        import torch

        if bare:
            return [""] * len(items)
        found = []
        with torch.inference_mode():
            for item in items:
                ids = self.tokenizer(item.asked.replace("<|", "< |"), add_special_tokens=False)["input_ids"]
                batch = torch.tensor([ids[: self.context_tokens]], device=self.model.device)
                found.append(self.labels[int(self.model(input_ids=batch).logits[0].argmax())])
                told(1)
        return found

    @contextmanager
    def _side(self, *, bare: bool) -> Iterator[None]:
        with self.model.disable_adapter() if bare else nullcontext():
            yield

    def _text(self, turns: Sequence[Turn], *, bare: bool, opened: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(
            [{"role": turn.role, "content": turn.content} for turn in turns],
            tokenize=False,
            add_generation_prompt=opened,
            chat_template=self.base_template if bare else self.template,
        )
        return text

    def _ids(self, turns: Sequence[Turn], max_tokens: int, *, bare: bool) -> list[int]:
        ids: list[int] = self.tokenizer(self._text(turns, bare=bare, opened=True), add_special_tokens=False)[
            "input_ids"
        ]
        return ids[-max(1, self.context_tokens - max_tokens) :]

    def _scored(self, item: Item, *, bare: bool) -> tuple[list[int], int]:
        """The tokens of an item, and which is the first that counts."""
        if item.turns[-1].role != "assistant":
            ids: list[int] = self.tokenizer(item.turns[-1].content, add_special_tokens=False)["input_ids"]
            return ids[: self.context_tokens], 0
        before = self._text(item.turns[:-1], bare=bare, opened=True)
        after = self._text(item.turns, bare=bare, opened=False)
        head: list[int] = self.tokenizer(before, add_special_tokens=False)["input_ids"]
        tail: list[int] = self.tokenizer(after[len(before) :], add_special_tokens=False)["input_ids"]
        ids = (head + tail)[-self.context_tokens :]
        return ids, max(1, len(ids) - len(tail))

    def _generated(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[str]:
        import torch

        longest = max(len(ids) for ids in prompts)
        pad, device = self.tokenizer.pad_token_id, self.model.device
        ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=device)
        try:
            with torch.inference_mode():
                out = self.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=min(max_tokens, self.context_tokens - longest),
                    do_sample=False,
                    num_beams=1,
                    pad_token_id=pad,
                )
        except torch.cuda.OutOfMemoryError as error:
            if len(prompts) == 1:
                raise ResourceExhaustedError(
                    "the device's memory is too small for one question of this length; evaluate on a larger one",
                    reason="OUT_OF_MEMORY",
                ) from error
            torch.cuda.empty_cache()
            half = len(prompts) // 2
            return self._generated(prompts[:half], max_tokens) + self._generated(prompts[half:], max_tokens)
        texts: list[str] = self.tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
        return texts


def load_candidate(base: Path, adapter: Path, description: AdapterDescription) -> Candidate:
    """Bring both into memory from verified files; raises VerificationError where they do not fit each other."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers annotates parts only
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Local files only, no code from the directory, no pickles: safetensors alone.
    safe: Untyped = {"local_files_only": True, "trust_remote_code": False}
    labels = tuple(description.labels) if description.task == ADAPTER_TASK_CLASSIFICATION else ()
    try:
        tokenizer: Untyped = AutoTokenizer.from_pretrained(str(base), **safe)
        model = _base_model(base, description, labels, device, safe)
        model = _with_adapter(model, adapter)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise VerificationError(f"the candidate cannot be loaded on its base: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    base_template = tokenizer.chat_template or PLAIN_TEMPLATE
    own = description.chat_template and (adapter / description.chat_template).read_text(encoding="utf-8")
    gc.collect()
    return Candidate(
        model.eval(),
        tokenizer,
        int(model.config.max_position_embeddings),
        own or base_template,
        base_template,
        labels,
    )


def adapter_tensors(adapter: Path) -> dict[str, torch.Tensor]:
    """The adapter's matrices by name."""
    from safetensors.torch import load_file

    return load_file(adapter / WEIGHTS_FILE)


def _with_adapter(model: Untyped, adapter: Path) -> Untyped:
    """The model with the adapter's matrices, all of them its own."""
    from peft import PeftModel

    with warnings.catch_warnings(record=True) as said:
        # PEFT only warns where the file lacks matrices, and puts new ones in their place.
        warnings.simplefilter("always")
        found = PeftModel.from_pretrained(
            model, str(adapter), is_trainable=False, autocast_adapter_dtype=False
        )
    lacking = [text for text in (str(each.message) for each in said) if "missing adapter keys" in text]
    if lacking:
        name = re.search(r"'base_model\.model\.([^']+?)\.lora_", lacking[0])
        raise VerificationError(
            f"the adapter lacks the matrices of {name.group(1) if name else 'a target'}; train it again"
        )
    return found


def _base_model(
    base: Path, description: AdapterDescription, labels: Sequence[str], device: torch.device, safe: Untyped
) -> Untyped:
    import torch
    from transformers import BitsAndBytesConfig, GPTNeoXForCausalLM, GPTNeoXForSequenceClassification

    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    options: Untyped = {
        "use_safetensors": True,
        "dtype": torch.bfloat16 if half else torch.float32,
        "attn_implementation": "sdpa",
        **safe,
    }
    widths: dict[int, dict[str, Untyped]] = {
        QUANTIZATION_INT8: {"load_in_8bit": True},
        QUANTIZATION_NF4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    }
    width = widths.get(description.base.quantization)
    if width is not None:
        how: Untyped = BitsAndBytesConfig(**width)  # type: ignore[no-untyped-call]  # as above
        options |= {"quantization_config": how, "device_map": {"": str(device)}}
    kind: Untyped = GPTNeoXForCausalLM
    if labels:
        kind, options["num_labels"] = GPTNeoXForSequenceClassification, len(labels)
        options["pad_token_id"] = 0
    model = kind.from_pretrained(str(base), **options)
    # A quantised model was put in its place while loading and cannot be moved.
    return model if width is not None else model.to(device=device)


def _batches(order: Sequence[int], prompts: Sequence[Sequence[int]], max_tokens: int) -> Iterator[list[int]]:
    part: list[int] = []
    for number in order:
        longest = len(prompts[number]) + max_tokens
        if part and (len(part) == BATCH or longest * (len(part) + 1) > BATCH_TOKENS):
            yield part
            part = []
        part.append(number)
    if part:
        yield part
