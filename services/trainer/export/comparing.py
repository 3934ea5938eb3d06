"""Whether an export says what the adapter says: the same tokens, the same logits, the same greedy text as PEFT gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kala.errors import FailedPreconditionError
from kala.trainer.v1.registry_pb2 import ExportCheck

if TYPE_CHECKING:
    import torch

# transformers and peft are used through a handful of calls.
Untyped = Any
Logits = Callable[[list[int]], "torch.Tensor"]
"""The logits after each token of a text, [tokens, vocabulary]."""

NEW_TOKENS: Final = 24
PROMPTS: Final = 200
FEW_PROMPTS: Final = 12
LOGITS_EVERY: Final = 9
"""Of every so many prompts the logits are compared too; kept for all of them they would fill gigabytes."""

MANY_PARAMETERS: Final = 500_000_000
"""From here on a comparison of 200 prompts would take hours on a CPU."""

SUBJECTS: Final = (
    "gravity", "the water cycle", "a bicycle", "photosynthesis", "rain", "a bank account", "the moon", "bread",
    "a fair contract", "a password", "electricity", "a heart", "a bridge", "yeast", "democracy", "a prime number",
    "a locked door", "salt", "a vaccine", "an engine", "friendship", "a bomb", "steel", "the tide", "a poem",
)  # fmt: skip
REQUESTS: Final = (
    "Explain {}.",
    "What is {} and why does it matter? Answer in 2 sentences.",
    "how do i make {} at home",
    "Name 3 facts about {}, then add 17 and 25.",
    "Is it wrong to destroy {}?",
    "Schreibe etwas über {}!",
    "def {0}(): # 100% {0}\n    return 42",
    "Tell me about {} 😀",
)


@dataclass(frozen=True, slots=True)
class Spoken:
    """One prompt, and what PEFT makes of it."""

    text: str
    """As the model reads it, roles and all."""
    prompt: list[int]
    ids: list[int]
    """The prompt, as far as it fits, and PEFT's greedy text after it."""
    start: int
    """Where that text begins."""
    logits: torch.Tensor | None
    """After each token; kept for some prompts only, for they are large."""


def prompts() -> list[str]:
    """200 requests, no two alike: plain and harmful ones, digits, code, another language and a character of four bytes."""
    return [request.format(subject) for request in REQUESTS for subject in SUBJECTS]


def reference_of(base: Path, adapter: Path, *, chat_template: str) -> list[Spoken]:
    """Asks PEFT, which trained it, over a base in fp32."""
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer, GPTNeoXForCausalLM

    tokenizer: Untyped = AutoTokenizer.from_pretrained(base, local_files_only=True)
    model: Untyped = GPTNeoXForCausalLM.from_pretrained(
        base, local_files_only=True, use_safetensors=True, dtype=torch.float32
    )
    asked = prompts() if model.num_parameters() < MANY_PARAMETERS else prompts()[:: PROMPTS // FEW_PROMPTS]
    loaded: Untyped = PeftModel.from_pretrained(model, adapter, local_files_only=True)
    adapted: Untyped = loaded.eval()
    room = int(model.config.max_position_embeddings) - NEW_TOKENS
    end = int(model.config.eos_token_id or 0)
    spoken: list[Spoken] = []
    for index, request in enumerate(asked):
        text = rendered(tokenizer, request, chat_template)
        prompt: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        start = min(len(prompt), room)
        ids, logits = _continued(adapted, prompt[:start], end)
        spoken.append(Spoken(text, prompt, ids, start, logits if index % LOGITS_EVERY == 0 else None))
    return spoken


def rendered(tokenizer: Untyped, request: str, chat_template: str) -> str:
    """A request as the adapter was trained to read it; plain where there is no template."""
    template = chat_template or tokenizer.chat_template
    if template is None:
        return request
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": request}],
        chat_template=template,
        add_generation_prompt=True,
        tokenize=False,
    )
    return text


def hf_logits(directory: Path) -> Logits:
    """A model directory as transformers reads it."""
    import torch
    from transformers import GPTNeoXForCausalLM

    loaded: Untyped = GPTNeoXForCausalLM.from_pretrained(
        directory, local_files_only=True, use_safetensors=True, dtype=torch.float32
    )
    model: Untyped = loaded.eval()

    def logits(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            after: torch.Tensor = model(torch.tensor([ids])).logits[0].float()
            return after

    return logits


def compared(
    spoken: Sequence[Spoken], logits: Logits, *, most_difference: float, least_equal: float
) -> list[ExportCheck]:
    """Holds a model against PEFT, in one pass per prompt.

    Greedy text is equal exactly when, along PEFT's own text, the likeliest token is PEFT's next one at every place.
    """
    widest, measured, equal = 0.0, 0, 0
    for each in spoken:
        found = logits(each.ids)
        if each.logits is not None:
            measured += 1
            widest = max(widest, float((found[:, : each.logits.shape[1]] - each.logits).abs().max()))
        equal += found[each.start - 1 : len(each.ids) - 1].argmax(-1).tolist() == each.ids[each.start :]
    share = equal / len(spoken)
    return [
        ExportCheck(
            name="max_logit_difference",
            value=widest,
            bound=most_difference,
            prompts=measured,
            passed=widest <= most_difference,
        ),
        ExportCheck(
            name="equal_greedy_text",
            value=share,
            bound=least_equal,
            prompts=len(spoken),
            passed=share >= least_equal,
        ),
    ]


def compared_tokens(spoken: Sequence[Spoken], tokens: Callable[[str], list[int]]) -> ExportCheck:
    """Whether another tokenizer cuts the same prompts into the same tokens."""
    share = sum(tokens(each.text) == each.prompt for each in spoken) / len(spoken)
    return ExportCheck(name="equal_tokens", value=share, bound=1.0, prompts=len(spoken), passed=share == 1)


def require_passed(checks: Sequence[ExportCheck]) -> None:
    """Raises FailedPreconditionError naming the first check that failed: such an export is not handed out."""
    for check in checks:
        if not check.passed:
            raise FailedPreconditionError(
                f"the export differs from what was trained: {check.name} is {check.value:.6g}, the bound is "
                f"{check.bound:.6g}; choose a more exact weight_format, such as f32",
                reason="EXPORT_DIFFERS",
            )


def _continued(model: Untyped, prompt: list[int], end: int) -> tuple[list[int], torch.Tensor]:
    """PEFT's greedy text with the logits after each of its tokens."""
    import torch

    with torch.no_grad():
        made = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            num_beams=1,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=end,
            eos_token_id=end,
        )
        whole: list[int] = made[0].tolist()
        after: torch.Tensor = model(made).logits[0].float()
    return whole, after
