"""A plan as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Final

from kala.common.v1.adapter_pb2 import QUANTIZATION_INT8, QUANTIZATION_NF4
from kala.trainer.v1 import job_pb2 as pb
from services.trainer.planning.defaults import PRESET
from services.trainer.planning.shapes import Shape

A100_FLOPS: Final = 312e12
"""Peak of one NVIDIA A100 in bf16, per second."""

UTILISATION: Final = 0.4
"""Share of the peak that training usually reaches; an assumption, not a measurement."""

FLOPS_PER_PARAMETER: Final = 6
"""Per token: two forward, four backward."""

WIDTH: Final = 22
LINE_CHARS: Final = 110


def plan_text(plan: pb.TrainingPlan, shape: Shape | None) -> str:
    """Lines of at most some 120 columns; problems stand last, where they are seen."""
    return "\n".join(_plain(line) for line in _lines(plan, shape)) + "\n"


def _plain(line: str) -> str:
    """A line that moves no cursor and colours nothing, whatever names stand in it."""
    return "".join(character if character.isprintable() else "?" for character in line)


def _lines(plan: pb.TrainingPlan, shape: Shape | None) -> Iterator[str]:
    spec = plan.spec
    yield f"{spec.adapter or 'a job without a name'}"
    yield from _what(plan, shape)
    if plan.targets:
        yield ""
        yield "targets"
        for target in plan.targets:
            name = f"{target.requested} -> {target.module}" if target.requested else target.module
            yield f"  {name:<{WIDTH + 4}}{target.matched:>4} x {target.in_features} -> {target.out_features}"
    if shape is not None:
        yield ""
        yield from _memory(plan.memory)
        yield _line("disk", size(plan.disk_bytes))
    if plan.steps:
        yield ""
        yield from _time(plan, shape)
    if plan.choices:
        yield ""
        yield "chosen for you"
        yield from _choices(plan.choices)
    for title, lines in (("warnings", plan.warnings), ("problems: it cannot be started so", plan.problems)):
        if lines:
            yield ""
            yield title
            yield from (f"  {line}" for line in lines)


def _choices(choices: Iterable[pb.PlanChoice]) -> Iterator[str]:
    """One line for each that has a story, and the presets together."""
    presets: dict[str, list[str]] = {}
    for choice in choices:
        section, _, name = choice.field.rpartition(".")
        if choice.reason == PRESET and section:
            presets.setdefault(section, []).append(f"{name} {choice.taken}")
            continue
        asked = f"{choice.asked!r} -> " if choice.asked else ""
        yield f"  {choice.field} = {asked}{choice.taken} ({choice.reason})"
    for section, values in presets.items():
        told = f"  {section}: {', '.join(values)}"
        yield from textwrap.wrap(told, LINE_CHARS, subsequent_indent="    ", break_on_hyphens=False)


def _what(plan: pb.TrainingPlan, shape: Shape | None) -> Iterator[str]:
    spec = plan.spec
    held = {QUANTIZATION_INT8: ", 8-bit", QUANTIZATION_NF4: ", NF4"}.get(spec.quantization, "")
    here = "here" if plan.weights_present else "weights not here"
    count = f", {_count(shape.parameters)} parameters" if shape else ""
    yield _line("base", f"{spec.base.name or '-'}{held}{count} ({here})")
    known = pb.TrainingObjective.DESCRIPTOR.values_by_number.get(spec.objective)
    objective = known.name.removeprefix("TRAINING_OBJECTIVE_").lower() if known else "-"
    if spec.method == pb.TRAINING_METHOD_LORA:
        method = f"LoRA rank {spec.lora.rank}, alpha {spec.lora.alpha}, dropout {spec.lora.dropout:g}"
    else:
        method = "every weight"
    yield _line("method", f"{method}; {objective}")
    if shape is not None:
        part = plan.trained_parameters / shape.parameters
        yield _line("trained", f"{_count(plan.trained_parameters)} parameters ({part:.2%} of the base)")
        if plan.adapter_bytes:
            yield _line("adapter", size(plan.adapter_bytes))
    for share in spec.datasets:
        use = {1: "train", 2: "replay", 3: "validation"}.get(share.use, "-")
        yield _line("dataset", f"{share.dataset.name} ({use}, weight {share.weight:g})")
    placement = spec.placement
    executor = {pb.EXECUTOR_LOCAL: "local", pb.EXECUTOR_RAY: "Ray"}.get(placement.executor, "-")
    gpus = f", {placement.gpus_per_worker:g} GPU each" if placement.gpus_per_worker else ""
    yield _line("runs", f"{executor}, {placement.workers} worker(s){gpus}")


def _memory(memory: pb.MemoryEstimate) -> Iterator[str]:
    yield "memory on each worker"
    for name, value in (
        ("weights", memory.weights_bytes),
        ("training", memory.training_bytes),
        ("activations", memory.activation_bytes),
        ("overhead", memory.overhead_bytes),
        ("total", memory.total_bytes),
    ):
        yield f"  {name:<{WIDTH - 2}}{size(value):>12}"
    if memory.HasField("available_bytes"):
        yield f"  {'available':<{WIDTH - 2}}{size(memory.available_bytes):>12}"
    for cure in memory.cures:
        yield f"  too little: {cure}"


def _time(plan: pb.TrainingPlan, shape: Shape | None) -> Iterator[str]:
    yield _line("steps", f"about {plan.steps:,}, {_count(plan.tokens)} tokens with loss")
    if plan.HasField("expected_time"):
        yield _line("time", f"about {span(plan.expected_time.seconds)}, as earlier jobs of this base went")
    elif shape is not None and plan.spec.placement.gpus_per_worker:
        values = plan.spec.hyperparameters
        passed = plan.steps * values.batch_size * values.max_sequence_tokens
        seconds = FLOPS_PER_PARAMETER * shape.parameters * passed / (A100_FLOPS * UTILISATION)
        yield _line(
            "time",
            f"about {span(seconds)} for the steps alone on one A100, by arithmetic at 40 % of its peak",
        )


def _line(name: str, text: str) -> str:
    return f"{name:<{WIDTH}}{text}"


def size(count: int) -> str:
    """Bytes in a unit that a person reads."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def span(seconds: float) -> str:
    """A time in a unit that a person reads."""
    for unit, factor in (("h", 3_600), ("min", 60)):
        if seconds >= 2 * factor:
            return f"{seconds / factor:.1f} {unit}"
    return f"{max(seconds, 1):.0f} s"


def _count(number: int) -> str:
    for unit, factor in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= factor:
            return f"{number / factor:.2f} {unit}"
    return str(number)
