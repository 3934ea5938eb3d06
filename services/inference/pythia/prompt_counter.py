"""Counts what the model in process would read, with its tokenizer alone: the weights stay where they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from kala.errors import InvalidArgumentError
from services.inference.backend import BackendFailure
from services.inference.pythia.engine import PLAIN_TEMPLATE
from services.inference.pythia.requests import ABSENT_LIBRARIES, failure_of, rendered
from services.inference.pythia.worker import FAULTS

if TYPE_CHECKING:
    from services.inference.pythia.weights import Weights

# Unknown to every stub: transformers is used through two calls.
Untyped = Any


class PromptCounter:
    """The tokenizer of checked files, a second one beside the model's own, so that no count waits for a generation."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self._tokenizer: Untyped = None
        # One at a time, for a fast tokenizer refuses to be used by two threads at once; and a thread of its own, so that
        # many counts do not hold all those that look names up and check schemas.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kala-count")

    async def prompt(self, messages: Sequence[dict[str, str]]) -> int:
        """Count a conversation as the model's template has it, head of the answer included; raises BackendFailure."""
        return await self._count(
            lambda tokenizer: rendered(
                lambda: tokenizer.apply_chat_template(
                    list(messages),
                    chat_template=None if tokenizer.chat_template else PLAIN_TEMPLATE,
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=False,
                )
            )
        )

    async def text(self, text: str) -> int:
        """Count a text by itself; raises BackendFailure."""
        return await self._count(lambda tokenizer: tokenizer(text, add_special_tokens=False)["input_ids"])

    async def _count(self, encode: Callable[[Untyped], Sequence[int]]) -> int:
        return len(await asyncio.get_running_loop().run_in_executor(self._thread, self._encoded, encode))

    def _encoded(self, encode: Callable[[Untyped], Sequence[int]]) -> Sequence[int]:
        try:
            if self._tokenizer is None:
                from transformers import AutoTokenizer

                self._tokenizer = AutoTokenizer.from_pretrained(
                    str(self.weights.directory), local_files_only=True, trust_remote_code=False
                )
            return encode(self._tokenizer)
        except ImportError as error:
            raise BackendFailure("LIBRARIES_MISSING", ABSENT_LIBRARIES) from error
        except InvalidArgumentError as error:
            raise failure_of(error) from error
        except FAULTS as error:
            raise BackendFailure("NO_TOKENIZER", f"its tokenizer failed: {type(error).__name__}") from error
