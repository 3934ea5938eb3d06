"""Whether exports say what PEFT says: 200 prompts of a trained adapter of the embedded model, in every layout.

`python -m bench.trainer_exports` prints Markdown. GGUF is read by our own reader, and by a real llama-server where
KALA_TEST_LLAMA_SERVER names one or one is on PATH.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from services.trainer.export.comparing import Logits, Spoken, compared, hf_logits, reference_of
from services.trainer.export.gguf_reading import read_gguf
from services.trainer.export.gguf_writing import write_lora_gguf, write_merged_gguf
from services.trainer.export.merging import write_merged
from services.trainer.export.source import AdapterSource, BaseSource, read_adapter, read_base
from services.trainer.training.recipe import Lora, Recipe
from services.trainer.training.run import run_work
from tests.fakes.gguf_server import PROGRAM, gguf_server, share_of_equal_texts
from tests.fakes.training_jobs import ALL_TARGETS, EMBEDDED, Told, work, write_dataset

STEPS: Final = 60
FORMATS: Final = ("f32", "f16", "q8_0")


@dataclass(frozen=True, slots=True)
class Line:
    """One layout."""

    layout: str
    difference: float
    """Of any logit from PEFT's, over every ninth prompt."""
    equal: float
    """Share of the prompts with PEFT's very text, by our reader."""
    served: float | None
    """The same by llama-server; None where there is none, or for other layouts."""
    cpu_seconds: float
    """To write it."""


def measure() -> list[Line]:
    """Every layout of one trained adapter."""
    folder = Path(tempfile.mkdtemp(prefix="kala-bench-exports-"))
    try:
        return asyncio.run(_measure(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _measure(folder: Path) -> list[Line]:
    adapter_folder = _trained(folder)
    spoken = reference_of(EMBEDDED, adapter_folder, chat_template="")
    base, adapter = read_base(EMBEDDED), read_adapter(adapter_folder)
    found = [_merged(folder, base, adapter, spoken, kind) for kind in ("f32", "f16")]
    found += [await _gguf(folder, base, adapter, spoken, kind) for kind in FORMATS]
    return [*found, await _lora(folder, base, adapter, spoken)]


def _trained(folder: Path) -> Path:
    write_dataset(folder / "data", rows=300)
    recipe = Recipe(
        max_steps=STEPS, batch_size=16, micro_batch_size=16, max_sequence_tokens=64, learning_rate=2e-3
    )
    made = replace(work(folder, recipe=recipe, checkpoint_steps=STEPS), lora=Lora(16, 32, 0.05, ALL_TARGETS))
    run_work(made, Told())
    return made.folder / "adapter"


def _merged(
    folder: Path, base: BaseSource, adapter: AdapterSource, spoken: Sequence[Spoken], kind: str
) -> Line:
    target = folder / f"merged-{kind}"
    seconds = _timed(target, lambda: write_merged(base, adapter, target, kind, _quiet))
    return _line(f"merged, {kind}", spoken, hf_logits(target), None, seconds)


async def _gguf(
    folder: Path, base: BaseSource, adapter: AdapterSource, spoken: Sequence[Spoken], kind: str
) -> Line:
    target = folder / f"gguf-{kind}"
    seconds = _timed(target, lambda: write_merged_gguf(base, adapter, target, kind, _quiet))
    served = await _served(spoken, "-m", str(target / "model.gguf"))
    return _line(f"GGUF, merged, {kind}", spoken, read_gguf(target / "model.gguf").logits, served, seconds)


async def _lora(folder: Path, base: BaseSource, adapter: AdapterSource, spoken: Sequence[Spoken]) -> Line:
    target = folder / "lora"
    seconds = _timed(target, lambda: write_lora_gguf(base, adapter, target, _quiet))
    write_merged_gguf(base, replace(adapter, pairs={}), target, "f32", _quiet)
    model, lora = target / "model.gguf", target / "adapter.gguf"
    served = await _served(spoken, "-m", str(model), "--lora", str(lora))
    return _line("GGUF, LoRA beside f32", spoken, read_gguf(model, lora=lora).logits, served, seconds)


def _line(
    layout: str, spoken: Sequence[Spoken], logits: Logits, served: float | None, seconds: float
) -> Line:
    difference, equal = compared(spoken, logits, most_difference=0, least_equal=0)
    return Line(layout, difference.value, equal.value, served, seconds)


async def _served(spoken: Sequence[Spoken], *arguments: str) -> float | None:
    if PROGRAM is None:
        return None
    async with gguf_server(*arguments) as client:
        return await share_of_equal_texts(client, spoken)


def _timed(target: Path, write: Callable[[], None]) -> float:
    target.mkdir()
    started = time.process_time()
    write()
    return time.process_time() - started


def _quiet(_: int) -> None:
    pass


def lines(found: Sequence[Line]) -> list[str]:
    """The report."""
    report = [
        "| export | furthest logit | texts equal to PEFT's, of 200 | by llama-server | CPU-seconds to write |",
        "| --- | --- | --- | --- | --- |",
    ]
    for line in found:
        served = "" if line.served is None else f"{round(line.served * 200)}"
        report.append(
            f"| {line.layout} | {line.difference:.4f} | {round(line.equal * 200)} | {served} | {line.cpu_seconds:.2f} |"
        )
    return report


def document(found: Sequence[Line]) -> list[dict[str, Any]]:  # Any: JSON
    """The same as JSON."""
    return [asdict(line) for line in found]


if __name__ == "__main__":
    print("\n".join(lines(measure())))
