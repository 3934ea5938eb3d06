"""Brings a model's files into memory with transformers, in the numbers and on the device that are asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from services.inference.pythia.holding import AUTO, CannotLoadError, Holding, Quantization

if TYPE_CHECKING:
    import torch

    from services.inference.pythia.weights import Weights

BIG_MODEL_PARAMETERS: Final = 1_000_000_000
"""From here on a CPU holds the weights in half the bytes, because memory and not arithmetic is the limit."""

NF4_BLOCK: Final = 64
"""Weights that share one scale in 4 bits; bitsandbytes' kernel for CPUs wants rows of whole blocks."""

QUANTIZATION_LIBRARIES: Final = ("bitsandbytes", "accelerate")

# Unknown to every stub: transformers and torch are used through a handful of calls.
Untyped = Any


def load_model(weights: Weights, holding: Holding) -> tuple[Untyped, Untyped]:
    """Give tokenizer and model; raises CannotLoadError for what this machine cannot do, ValueError for broken files."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM
    from transformers.utils import logging as transformers_logging

    # A service's stderr holds log lines, not bars.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers annotates parts only
    torch.set_num_threads(holding.threads)
    device = _device(holding.device)
    # Local files only, no code from the directory, no pickles: safetensors alone.
    directory = str(weights.directory)
    safe: Untyped = {"local_files_only": True, "trust_remote_code": False}
    config: Untyped = GPTNeoXConfig.from_pretrained(directory, **safe)
    dtype = _dtype(holding.dtype, device, config)
    _require_fitting(holding.quantization, device, config)
    how: Untyped = _quantized(holding.quantization, device, dtype)
    try:
        tokenizer: Untyped = AutoTokenizer.from_pretrained(directory, **safe)
        model: Untyped = GPTNeoXForCausalLM.from_pretrained(
            directory,
            use_safetensors=True,
            dtype=dtype,
            # The one that takes masks of yes and no, as the engine makes them.
            attn_implementation="sdpa",
            **how,
            **safe,
        )
    except SafetensorError as error:
        raise ValueError("the weights are not safetensors") from error
    if not how:
        # A quantised model was put in its place while loading and cannot be moved.
        model = model.to(device=device)
    return tokenizer, model.eval()


def _device(wanted: str) -> torch.device:
    import torch

    if wanted == AUTO:
        has_mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    device = torch.device(wanted)
    is_there: dict[str, Callable[[], bool]] = {
        "cpu": lambda: True,
        "cuda": lambda: (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available,
    }
    if not is_there[device.type]():
        raise CannotLoadError(
            "DEVICE_MISSING", f"this machine has no {wanted}; set pythia_device to auto or cpu"
        )
    return device


def _dtype(wanted: str, device: torch.device, config: Untyped) -> torch.dtype:
    import torch
    from transformers import GPTNeoXForCausalLM

    if wanted != AUTO:
        named: torch.dtype = getattr(torch, wanted)
        return named
    if device.type != "cpu":
        return torch.float16
    with torch.device("meta"):
        # Shapes alone, to know how many numbers there will be.
        parameters = GPTNeoXForCausalLM(config).num_parameters()
    return torch.float32 if parameters < BIG_MODEL_PARAMETERS else torch.bfloat16


def _require_fitting(wanted: Quantization, device: torch.device, config: Untyped) -> None:
    widths = (config.hidden_size, config.intermediate_size)
    if wanted is Quantization.NF4 and device.type == "cpu" and any(width % NF4_BLOCK for width in widths):
        raise CannotLoadError(
            "MODEL_NOT_QUANTIZABLE",
            f"a CPU holds only models of widths that {NF4_BLOCK} divides in 4 bits, and this one's are "
            f"{widths[0]} and {widths[1]}; set pythia_quantization to 8bit or none",
        )


def _quantized(wanted: Quantization, device: torch.device, dtype: torch.dtype) -> dict[str, object]:
    if wanted is Quantization.NONE:
        return {}
    missing = [name for name in QUANTIZATION_LIBRARIES if find_spec(name) is None]
    if missing:
        raise CannotLoadError(
            "LIBRARIES_MISSING",
            f"{wanted.value} weights need {' and '.join(missing)}; install `kala-suite[inference-quantized]` "
            "or set pythia_quantization to none",
        )
    from transformers import BitsAndBytesConfig

    # It logs at every single matrix that it computes in half precision, which is what is asked of it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    options: Untyped = (
        {"load_in_8bit": True}
        if wanted is Quantization.INT8
        else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    )
    config: Untyped = BitsAndBytesConfig(**options)  # type: ignore[no-untyped-call]  # as above
    return {"quantization_config": config, "device_map": {"": str(device)}}
