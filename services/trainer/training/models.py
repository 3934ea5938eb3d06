"""The base in memory as it is trained, and the LoRA matrices beside it."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kala.common.v1.adapter_pb2 import LoraTarget
from kala.errors import FailedPreconditionError, InvalidArgumentError, VerificationError
from services.trainer.planning.targets import EMBEDDING_MODULES, FIELD, RENAMED
from services.trainer.training.recipe import Lora, Work

if TYPE_CHECKING:
    import torch

SCORE: Final = "score"
"""A classifier's head, saved in full beside the LoRA matrices."""

NF4_BLOCK: Final = 64
"""Weights that share one scale in 4 bits; the kernel for CPUs wants rows of whole blocks."""

# Unknown to every stub: transformers, peft and torch are used through a handful of calls.
Untyped = Any


@dataclass(slots=True)
class Loaded:
    """A base ready to be trained."""

    tokenizer: Untyped
    model: Untyped
    targets: tuple[LoraTarget, ...]
    """Empty when every weight is trained."""
    precision: str
    """`fp32` or `bf16`: what the arithmetic is done in."""
    context_tokens: int


def load(work: Work, device: torch.device) -> Loaded:
    """Bring the base into memory and put what is trained beside it; raises KalaError for what cannot be trained so."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoTokenizer, GPTNeoXConfig
    from transformers.utils import logging as transformers_logging

    _quiet()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers annotates parts only
    # Local files only, no code from the directory, no pickles: safetensors alone.
    safe: Untyped = {"local_files_only": True, "trust_remote_code": False}
    require_base(work.base)
    try:
        config: Untyped = GPTNeoXConfig.from_pretrained(str(work.base), **safe)
        tokenizer: Untyped = AutoTokenizer.from_pretrained(str(work.base), **safe)
        precision = choose_precision(work.precision, device)
        torch.manual_seed(work.seed)
        model: Untyped = _load_model(work, config, precision, device, safe)
    except (SafetensorError, OSError, ValueError) as error:
        raise VerificationError(f"the files of the base {work.base_name} cannot be read: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    targets: tuple[LoraTarget, ...] = ()
    if work.lora is not None:
        targets = find_targets(model, work.lora.targets)
        # Drawn from the seed alone, whatever was drawn while loading.
        torch.manual_seed(work.seed)
        model = _with_lora(model, work.lora, targets, work)
    model.config.use_cache = False
    if work.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return Loaded(tokenizer, model, targets, precision, int(config.max_position_embeddings))


def _quiet() -> None:
    """Keep a job's log for what its owner can act on."""
    # It tells of a library that it can do without, and of every matrix that it computes in half precision.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def require_base(directory: Path) -> None:
    """Raises FailedPreconditionError unless a GPT-NeoX model's files are there."""
    try:
        architecture = json.loads((directory / "config.json").read_bytes())["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FailedPreconditionError(
            f"{directory.name}: is no base model; its files are config.json, tokenizer.json and *.safetensors",
            reason="BASE_UNREADABLE",
        ) from error
    if architecture != "gpt_neox":
        raise FailedPreconditionError(
            f"{directory.name}: is a {architecture} model; only gpt_neox is trained", reason="BASE_UNKNOWN"
        )


def choose_precision(wanted: str, device: torch.device) -> str:
    """bf16 on GPUs that have it, fp32 elsewhere: on a CPU bf16 is slower."""
    import torch

    if wanted != "auto":
        return wanted
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def find_targets(model: Untyped, requested: Sequence[str]) -> tuple[LoraTarget, ...]:
    """Find what each name means in the model; raises InvalidArgumentError for one that would train nothing or wrongly."""
    import torch

    found: dict[str, LoraTarget] = {}
    modules = list(model.named_modules())
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    for name in requested:
        module = RENAMED.get(name, name)
        matched = [part for path, part in modules if path.rpartition(".")[2] == module]
        kinds = (torch.nn.Linear, torch.nn.Embedding)
        if not matched or not all(isinstance(part, kinds) for part in matched):
            known = sorted({path.rpartition(".")[2] for path, part in modules if isinstance(part, kinds)})
            raise InvalidArgumentError(
                FIELD,
                f"{name!r} matches no matrix of the base; it has {', '.join(known)}",
                reason="NO_TARGET",
            )
        if module in found:
            raise InvalidArgumentError(FIELD, f"{name!r} names {module} a second time; keep one of them")
        if tied and module in EMBEDDING_MODULES:
            raise InvalidArgumentError(
                FIELD,
                f"{name!r} cannot be trained: the base's embedding and head are one matrix; leave both out",
                reason="TIED_EMBEDDINGS",
            )
        inputs, outputs = features(matched[0])
        found[module] = LoraTarget(
            module=module,
            requested="" if module == name else name,
            matched=len(matched),
            in_features=inputs,
            out_features=outputs,
        )
    return tuple(found[module] for module in sorted(found))


def features(module: Untyped) -> tuple[int, int]:
    """Inputs and outputs of a matrix; an embedding's inputs are its tokens."""
    if hasattr(module, "num_embeddings"):
        return module.num_embeddings, module.embedding_dim
    return module.in_features, module.out_features


def _load_model(work: Work, config: Untyped, precision: str, device: torch.device, safe: Untyped) -> Untyped:
    import torch
    from transformers import GPTNeoXForCausalLM, GPTNeoXForSequenceClassification

    # Whole weights are kept in fp32 and computed in bf16; beside LoRA the base itself can be bf16.
    # FSDP shares tensors of one number format alone, and the matrices beside it are fp32.
    is_half = precision == "bf16" and work.lora is not None and work.parallelism != "fsdp"
    dtype = torch.bfloat16 if is_half else torch.float32
    options: Untyped = {"use_safetensors": True, "dtype": dtype, "attn_implementation": "sdpa", **safe}
    options |= _quantized(work.quantization, config, dtype, device)
    kind: Untyped = GPTNeoXForCausalLM
    if work.labels:
        kind = GPTNeoXForSequenceClassification
        options |= {
            "num_labels": len(work.labels),
            "id2label": dict(enumerate(work.labels)),
            "label2id": {label: number for number, label in enumerate(work.labels)},
            "pad_token_id": config.eos_token_id,
        }
        # It says that a head is new, which is the point of training one.
        logging.getLogger("transformers.modeling_utils").setLevel(logging.ERROR)
    model = kind.from_pretrained(str(work.base), **options)
    # A quantised model was put in its place while loading and cannot be moved.
    return model if work.quantization != "none" else model.to(device=device)


def _quantized(wanted: str, config: Untyped, dtype: torch.dtype, device: torch.device) -> dict[str, Untyped]:
    if wanted == "none":
        return {}
    widths = (config.hidden_size, config.intermediate_size)
    if wanted == "nf4" and device.type == "cpu" and any(width % NF4_BLOCK for width in widths):
        raise FailedPreconditionError(
            f"a CPU holds only bases of widths that {NF4_BLOCK} divides in 4 bits, and this one's are "
            f"{widths[0]} and {widths[1]}; set quantization to INT8 or NONE",
            reason="BASE_NOT_QUANTIZABLE",
        )
    from transformers import BitsAndBytesConfig

    options: Untyped = (
        {"load_in_8bit": True}
        if wanted == "int8"
        else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    )
    how: Untyped = BitsAndBytesConfig(**options)  # type: ignore[no-untyped-call]  # as above
    return {"quantization_config": how, "device_map": {"": str(device)}}


def _with_lora(model: Untyped, lora: Lora, targets: Sequence[LoraTarget], work: Work) -> Untyped:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rank_stabilised,
        target_modules=[target.module for target in targets],
        modules_to_save=[SCORE] if work.labels else None,
        bias="none",
    )
    wrapped: Untyped = get_peft_model(model, config)
    return wrapped
