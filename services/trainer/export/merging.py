"""The base with the adapter merged in: computed in fp32, written in the number format that was asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kala.errors import InvalidArgumentError, VerificationError
from services.trainer.export.source import AdapterSource, BaseSource, canonical

if TYPE_CHECKING:
    import torch

OWN: Final = ""
"""The base's own number format."""

SAFETENSORS_FORMATS: Final = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
"""Number formats of safetensors, with torch's names."""

COPIED_SUFFIXES: Final = frozenset({".json", ".txt", ".model"})
NOT_COPIED: Final = frozenset({"manifest.json", "model.safetensors.index.json"})
INDEX: Final = "model.safetensors.index.json"

Wrote = Callable[[int], None]
"""Hears how many bytes were written so far."""


def torch_format(weight_format: str) -> torch.dtype | None:
    """The torch type of a format's name; None for the base's own. Raises InvalidArgumentError for another name."""
    import torch

    if weight_format == OWN:
        return None
    name = SAFETENSORS_FORMATS.get(weight_format)
    if name is None:
        raise InvalidArgumentError(
            "weight_format", f"must be {', '.join(SAFETENSORS_FORMATS)} or empty for the base's own"
        )
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def merged_tensors(
    base: BaseSource, adapter: AdapterSource, shard: Path, *, seen: set[str]
) -> Iterator[tuple[str, torch.Tensor, torch.dtype]]:
    """Each tensor of a file by its name on disk, merged and in fp32 where it changed, with the base's own type.

    Names of changed tensors are added to `seen`.
    """
    for name, tensor in base.tensors(shard):
        name_on_disk = canonical(name)
        pair = adapter.pairs.get(name_on_disk)
        own = tensor.dtype
        if pair is None:
            yield name_on_disk, tensor, own
            continue
        delta = pair.delta
        if delta.shape != tensor.shape:
            raise VerificationError(
                f"{name_on_disk}: the adapter's change is {list(delta.shape)}, the base's weight {list(tensor.shape)}"
            )
        seen.add(name_on_disk)
        yield name_on_disk, tensor.float() + delta, own


def require_all_merged(adapter: AdapterSource, seen: set[str]) -> None:
    """Raises VerificationError when a part of the adapter met no weight: it would be lost without a word."""
    missing = sorted(set(adapter.pairs) - seen)
    if missing:
        raise VerificationError(f"the base has no {', '.join(missing[:8])}, which the adapter changes")


def write_merged(
    base: BaseSource, adapter: AdapterSource, target: Path, weight_format: str, wrote: Wrote
) -> None:
    """Writes a whole model directory: weights in the base's files' names, configuration, tokenizer, chat template."""
    from safetensors.torch import save_file

    asked = torch_format(weight_format)
    seen: set[str] = set()
    places: dict[str, str] = {}
    total = 0
    for shard in base.shards:
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor, own in merged_tensors(base, adapter, shard, seen=seen):
            tensors[name] = tensor.to(asked or own).contiguous()
            places[name] = shard.name
        save_file(tensors, target / shard.name, metadata={"format": "pt"})
        total += (target / shard.name).stat().st_size
        wrote(total)
    require_all_merged(adapter, seen)
    if len(base.shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (target / INDEX).write_text(json.dumps(index, indent=2))
    copy_companions(base, adapter, target)
    if asked is not None:
        change_config(target, {"dtype": SAFETENSORS_FORMATS[weight_format]})


def copy_companions(base: BaseSource, adapter: AdapterSource, target: Path) -> None:
    """Copies configuration and tokenizer; the chat template becomes the one that was trained with."""
    for path in sorted(base.directory.iterdir()):
        if path.is_file() and path.suffix in COPIED_SUFFIXES and path.name not in NOT_COPIED:
            shutil.copyfile(path, target / path.name)
    if adapter.chat_template:
        path = target / "tokenizer_config.json"
        config = json.loads(path.read_bytes()) if path.is_file() else {}
        path.write_text(json.dumps({**config, "chat_template": adapter.chat_template}, indent=2))


def change_config(target: Path, changes: dict[str, Any]) -> None:  # JSON values
    """Changes keys of config.json."""
    path = target / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}, indent=2))
