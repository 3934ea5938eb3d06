"""The model that is trained, answering: batches of conversations, drawn so that the same seed gives the same answers."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kala.errors import FailedPreconditionError
from services.trainer.training.constitutional.prompts import Turn
from services.trainer.training.encoding import PLAIN_TEMPLATE
from services.trainer.training.models import load, require_base
from services.trainer.training.recipe import Work

if TYPE_CHECKING:
    import torch

BATCH: Final = 32
"""Conversations answered together; part of what makes a draft repeatable, so it is no setting."""

_SENTENCES: Final = re.compile(r".*[.!?](?=\s|$)", re.DOTALL)

# Unknown to every stub: transformers' models are used through a handful of calls.
Untyped = Any


@dataclass(frozen=True, slots=True)
class Writer:
    """Answers conversations with a model in memory; a temperature of 0 takes the likeliest token."""

    model: Untyped
    tokenizer: Untyped
    context_tokens: int
    max_new_tokens: int
    temperature: float

    def write(self, conversations: Sequence[Sequence[Turn]], seed: int) -> list[str]:
        """Returns one answer each; a conversation that is too long loses its beginning.

        An answer that is not at its end when it may grow no longer keeps its whole sentences, and is empty without one.
        """
        answers: list[str] = []
        for first in range(0, len(conversations), BATCH):
            part = [self._ids(turns) for turns in conversations[first : first + BATCH]]
            answers += self._batch(part, seed + first)
        return answers

    def _ids(self, turns: Sequence[Turn]) -> list[int]:
        text: str = self.tokenizer.apply_chat_template(
            list(turns),
            tokenize=False,
            add_generation_prompt=True,
            chat_template=None if self.tokenizer.chat_template else PLAIN_TEMPLATE,
        )
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids[-(self.context_tokens - self.max_new_tokens) :]

    def _batch(self, rows: Sequence[Sequence[int]], seed: int) -> list[str]:
        import torch

        width = max(map(len, rows))
        end = self.tokenizer.eos_token_id
        ids = torch.full((len(rows), width), end)
        sees = torch.zeros((len(rows), width), dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, width - len(row) :] = torch.tensor(row)
            sees[number, width - len(row) :] = 1
        device = next(self.model.parameters()).device
        how: dict[str, Untyped] = (
            {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
            if self.temperature > 0
            else {"do_sample": False}
        )
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(seed)
            written = self.model.generate(
                input_ids=ids.to(device),
                attention_mask=sees.to(device),
                max_new_tokens=self.max_new_tokens,
                pad_token_id=end,
                eos_token_id=end,
                use_cache=True,
                **how,
            )
        texts: list[str] = self.tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)
        ended: list[bool] = (written[:, width:] == end).any(dim=1).tolist()
        # Half a sentence would be learned as a whole answer.
        return [text.strip() if done else _whole(text) for text, done in zip(texts, ended, strict=True)]


def _whole(text: str) -> str:
    found = _SENTENCES.match(text.strip())
    return found[0] if found else ""


def measure(base: Path, max_new_tokens: int) -> Callable[[str], bool]:
    """Returns what tells whether a text is no longer than the longest answer; reads the base's tokenizer alone.

    Raises FailedPreconditionError for a base without one.
    """
    from transformers import AutoTokenizer

    require_base(base)
    safe: Untyped = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer: Untyped = AutoTokenizer.from_pretrained(str(base), **safe)
    except (OSError, ValueError) as error:
        raise FailedPreconditionError(
            f"{base.name}: its tokenizer cannot be read", reason="BASE_UNREADABLE"
        ) from error
    # One token is the end.
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]) < max_new_tokens


@contextmanager
def open_writer(
    work: Work, device: torch.device, *, max_new_tokens: int, temperature: float
) -> Iterator[Writer]:
    """Holds the job's base in memory as long as drafts are written; matrices beside it are still nought and change nothing.

    Raises FailedPreconditionError where the context has no room for an answer.
    """
    loaded = load(work, device)
    loaded.model.eval()
    if max_new_tokens * 2 > loaded.context_tokens:
        raise FailedPreconditionError(
            f"constitutional.max_new_tokens: {max_new_tokens} leave no room for a prompt in a context of "
            f"{loaded.context_tokens} tokens; set at most {loaded.context_tokens // 2}",
            reason="CONTEXT_TOO_SMALL",
        )
    try:
        yield Writer(loaded.model, loaded.tokenizer, loaded.context_tokens, max_new_tokens, temperature)
    finally:
        del loaded
        gc.collect()
        if device.type == "cuda":
            import torch

            torch.cuda.empty_cache()
