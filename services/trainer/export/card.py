"""The card of an export: what it is, what it was compared with, and that nobody guards it any more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kala.common.v1.adapter_pb2 import AdapterDescription
from kala.trainer.v1.registry_pb2 import ExportCheck, ExportFormat

CARD_FILE: Final = "README.md"

_USES: Final = {
    "MERGED": "A model directory for transformers, and a base for the next stage of training.",
    "GGUF_LORA": "`llama-server -m <the base as GGUF> --lora adapter.gguf`",
    "GGUF_MERGED": "`llama-server -m model.gguf`, LM Studio, or `ollama create <name> -f Modelfile`.",
    "MLX": "`mlx_lm.generate --model <this directory>`, or LM Studio on a Mac.",
}


def write_card(
    description: AdapterDescription,
    adapter_digest: bytes,
    export_format: ExportFormat.ValueType,
    checks: Sequence[ExportCheck],
) -> str:
    """Markdown."""
    name = ExportFormat.Name(export_format).removeprefix("EXPORT_FORMAT_")
    base = description.base
    lines = [
        f"# {description.name.removeprefix('adapters/')} as {name}",
        "",
        description.summary or "No summary was given.",
        "",
        "**This copy has left KALA's guard.** Whatever serves it elsewhere verifies no signature, no gate and no revocation,",
        "and judges no request and no answer.",
        "",
        _USES.get(name, ""),
        "",
        "| | |",
        "| --- | --- |",
        f"| adapter | `{description.name}`, digest `{adapter_digest.hex()}` |",
        f"| base | `{base.name}`, digest `{base.digest.hex()}`{f', licence {base.licence}' if base.licence else ''} |",
        *(f"| ancestor | `{item.name}` |" for item in description.ancestors),
        *(
            f"| dataset | `{item.name}`, licences {', '.join(item.licences) or 'unknown'} |"
            for item in description.datasets
        ),
        "",
        "## Compared with PEFT's own answers",
        "",
        "| check | value | bound | prompts |",
        "| --- | --- | --- | --- |",
        *(f"| {item.name} | {item.value:.6g} | {item.bound:.6g} | {item.prompts} |" for item in checks),
    ]
    return "\n".join(lines) + "\n"
