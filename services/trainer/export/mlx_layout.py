"""MLX's and LM Studio's layout of a merged model: the keys that mlx_lm reads, and the chat template where they look."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from kala.errors import FailedPreconditionError
from services.trainer.export.merging import Wrote, change_config, write_merged
from services.trainer.export.source import TEMPLATE_FILE, AdapterSource, BaseSource

WIDTH_RATIO: Final = 4
"""mlx_lm takes for granted that the inner layer is four times as wide."""

DEFAULT_ROTARY_SHARE: Final = 0.25
DEFAULT_ROPE_BASE: Final = 10_000


def write_mlx(
    base: BaseSource, adapter: AdapterSource, target: Path, weight_format: str, wrote: Wrote
) -> None:
    """Writes the directory; raises FailedPreconditionError for a shape that mlx_lm does not serve."""
    config = base.config
    if config["intermediate_size"] != WIDTH_RATIO * config["hidden_size"]:
        raise FailedPreconditionError(
            "MLX serves only models whose inner layer is four times as wide; export it as GGUF_MERGED",
            reason="SHAPE_NOT_EXPORTED",
        )
    write_merged(base, adapter, target, weight_format, wrote)
    share, base_frequency = rope_of(config)
    # transformers 5 keeps these in `rope_parameters` alone.
    change_config(target, {"rotary_pct": share, "rotary_emb_base": int(base_frequency)})
    template = adapter.chat_template or base.chat_template()
    if template:
        (target / TEMPLATE_FILE).write_text(template)


def rope_of(config: Any) -> tuple[float, float]:  # parsed JSON
    """The share of each head that is rotated, and the base of its frequencies; under either of their names."""
    parameters = config.get("rope_parameters") or {}
    if parameters.get("rope_type", "default") != "default":
        raise FailedPreconditionError(
            f"the base stretches its context ({json.dumps(parameters)}), which no export can say yet",
            reason="SHAPE_NOT_EXPORTED",
        )
    share = parameters.get("partial_rotary_factor", config.get("rotary_pct", DEFAULT_ROTARY_SHARE))
    frequency = parameters.get("rope_theta", config.get("rotary_emb_base", DEFAULT_ROPE_BASE))
    return float(share), float(frequency)
