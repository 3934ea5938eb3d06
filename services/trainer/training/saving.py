"""What a finished run leaves: an adapter's folder that PEFT and inference read, or a whole new base."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any, Final

from kala.errors import FailedPreconditionError
from services.common.adapter_weights import CONFIG_FILE, WEIGHTS_FILE
from services.trainer.training import models, state
from services.trainer.training.loop import Outcome
from services.trainer.training.recipe import Work
from services.trainer.training.world import whole
from services.trainer.work.results import sync_directory

ADAPTER: Final = "adapter"
BASE: Final = "base"
TEMPLATE_FILE: Final = "chat_template.jinja"
CARD_FILE: Final = "README.md"
MANIFEST: Final = "manifest.json"
LEAST_CHANGE: Final = 1e-12
"""Below it no fp32 logit can change."""

_TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def save(work: Work, outcome: Outcome, *, leads: bool = True) -> str:
    """Write the result into the work's folder and give its directory's name; every worker calls it, one writes."""
    if work.lora is None:
        _save_base(work, outcome, leads=leads)
        return BASE
    weights = whole(state.trained(outcome.loaded.model).items())
    if leads:
        _save_adapter(work, outcome, weights)
    return ADAPTER


def _save_adapter(work: Work, outcome: Outcome, weights: dict[str, Any]) -> None:  # Any: tensors
    from safetensors.torch import save_file

    largest: dict[str, float] = {}
    for name, tensor in weights.items():
        path, matrix, _ = name.partition(".lora_")
        if matrix:
            # One side begins as nought, of embeddings the other one: a module that still has it changes nothing.
            largest[path] = min(largest.get(path, math.inf), float(tensor.abs().max()))
    if not any(value > LEAST_CHANGE for value in largest.values()):
        raise FailedPreconditionError(
            "training changed no matrix, so there is no adapter; raise hyperparameters.learning_rate",
            reason="NOTHING_LEARNED",
        )
    draft = _draft(work.folder / ADAPTER)
    save_file(weights, draft / WEIGHTS_FILE, metadata={"format": "pt"})
    (draft / CONFIG_FILE).write_text(json.dumps(adapter_config(work, outcome), indent=1) + "\n")
    (draft / CARD_FILE).write_text(card(work, outcome))
    if outcome.template and not work.labels:
        (draft / TEMPLATE_FILE).write_text(outcome.template)
    _place(draft, work.folder / ADAPTER)


def adapter_config(work: Work, outcome: Outcome) -> dict[str, Any]:  # Any: JSON
    """PEFT's configuration with nothing in it but the shape: what no verified adapter may use is left out."""
    import peft

    lora = work.lora
    if lora is None:
        raise FailedPreconditionError("full training has no adapter")
    return {
        "base_model_name_or_path": work.base_name,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "modules_to_save": [models.SCORE] if work.labels else None,
        "peft_type": "LORA",
        "peft_version": str(peft.__version__),
        "r": lora.rank,
        "target_modules": [target.module for target in outcome.loaded.targets],
        "task_type": "SEQ_CLS" if work.labels else "CAUSAL_LM",
        "use_rslora": lora.rank_stabilised,
    }


def card(work: Work, outcome: Outcome) -> str:
    """A few lines for whoever opens the folder."""
    lora, position = work.lora, outcome.position
    shape = (
        f"rank {lora.rank}, alpha {lora.alpha}, on {', '.join(t.module for t in outcome.loaded.targets)}"
        if lora
        else ""
    )
    lines = [
        f"# LoRA adapter for {work.base_name}",
        "",
        f"- Shape: {shape}.",
        f"- Steps: {position.step}; tokens that bore loss: {position.tokens}; seed: {work.seed}.",
        f"- Objective: {', then '.join(stage.recipe.objective for stage in work.stages)}.",
        *([f"- Labels: {', '.join(work.labels)}."] if work.labels else []),
        "- Data:",
        *(f"  - {d.name} ({d.use}, weight {d.weight:g})" for stage in work.stages for d in stage.datasets),
        "",
        "The signed manifest beside this file says what it was trained from and judged by; nobody serves it without one.",
    ]
    return "\n".join(lines) + "\n"


def _save_base(work: Work, outcome: Outcome, *, leads: bool) -> None:
    weights = whole(outcome.loaded.model.state_dict().items())
    if not leads:
        return
    draft = _draft(work.folder / BASE)
    # transformers writes the names that the published files have (embed_out), whatever it calls them in memory.
    outcome.loaded.model.save_pretrained(draft, state_dict=weights)
    for name in _TOKENIZER_FILES:
        if (work.base / name).is_file():
            shutil.copyfile(work.base / name, draft / name)
    if outcome.template and not work.labels:
        path = draft / "tokenizer_config.json"
        path.write_text(
            json.dumps(json.loads(path.read_text()) | {"chat_template": outcome.template}, indent=1)
        )
    files = {path.name: _entry(path) for path in sorted(draft.iterdir())}
    document = {"model": work.base_name, "trained_from": work.base_name, "files": files}
    (draft / MANIFEST).write_text(json.dumps(document, indent=1) + "\n")
    _place(draft, work.folder / BASE)


def _draft(final: Path) -> Path:
    draft = final.with_name(f".{final.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    return draft


def _place(draft: Path, final: Path) -> None:
    """Make the files durable, then let them appear at once."""
    for path in draft.iterdir():
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_directory(draft)
    shutil.rmtree(final, ignore_errors=True)
    draft.rename(final)
    sync_directory(final.parent)


def _entry(path: Path) -> dict[str, Any]:  # Any: JSON
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"sha256": digest, "bytes": file.tell()}
