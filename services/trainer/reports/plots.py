"""Pictures of a run and of a gate, as PNG bytes. matplotlib is drawn without a screen and without its global state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kala.common.v1.gate_pb2 import GateMetric, GateResult
from services.trainer.reports.words import bound_of, measure_of, reading

WIDTH_INCHES: Final = 8.0
DPI: Final = 110
SMOOTHED: Final = 0.9
"""Of the running mean, what each step keeps."""

_LOSS: Final = "#1f5fa8"
_VALIDATION: Final = "#c25b12"
_GOOD: Final = "#2d7d46"
_BAD: Final = "#b3261e"
# Two points make a line.
_FEWEST: Final = 2

# Unknown to every stub: matplotlib's axes take their settings as keywords.
Untyped = Any


def loss_plot(rows: Sequence[Mapping[str, float]]) -> bytes:
    """Draws loss and learning rate by step; validation where there is some. Empty bytes when nothing was logged."""
    losses = _series(rows, "loss")
    if not losses:
        return b""
    figure, axes = _figure(3.6)
    steps = [step for step, _ in losses]
    axes.plot(steps, [value for _, value in losses], color=_LOSS, alpha=0.3, linewidth=1, label="loss")
    if len(losses) >= _FEWEST:
        axes.plot(steps, _smooth([value for _, value in losses]), color=_LOSS, label="loss, running mean")
    validation = _series(rows, "validation_loss")
    if validation:
        axes.plot(*zip(*validation, strict=True), color=_VALIDATION, marker="o", label="validation loss")
    axes.set_xlabel("step")
    axes.set_ylabel("nats per token")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.25)
    axes.legend(loc="upper right", frameon=False)
    rates = _series(rows, "learning_rate")
    if rates:
        beside = axes.twinx()
        beside.plot(*zip(*rates, strict=True), color="#888888", linewidth=1, linestyle=":")
        beside.set_ylabel("learning rate (dotted)")
        beside.set_ylim(bottom=0)
    return _png(figure)


def gate_plot(result: GateResult) -> bytes:
    """Draws each measure of a gate with its bound. Empty bytes when nothing was measured."""
    metrics = [metric for metric in result.metrics if metric.total or metric.value_micros]
    if not metrics:
        return b""
    figure, axes = _figure(0.9 + 0.42 * len(metrics))
    for row, metric in enumerate(metrics):
        _draw_metric(axes, row, metric)
    axes.set_yticks(range(len(metrics)), [measure_of(metric) for metric in metrics])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xlabel("share of items; a thick line is the bound")
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _draw_metric(axes: Untyped, row: int, metric: GateMetric) -> None:
    colour = _GOOD if metric.passed else _BAD
    value, bound = reading(metric), bound_of(metric)
    axes.barh(row, min(max(value, 0.0), 1.0), color=colour, alpha=0.75, height=0.55)
    if 0 <= bound <= 1:
        axes.plot([bound, bound], [row - 0.35, row + 0.35], color="black", linewidth=2.5)
    axes.text(1.03, row, f"{value:.3f}  {'passed' if metric.passed else 'FAILED'}", va="center", color=colour)


def _series(rows: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in rows if name in row]


def _smooth(values: Sequence[float]) -> list[float]:
    """A running mean that weighs the first values as much as those after them."""
    means, mean, weight = [], 0.0, 0.0
    for value in values:
        mean = SMOOTHED * mean + (1 - SMOOTHED) * value
        weight = SMOOTHED * weight + (1 - SMOOTHED)
        means.append(mean / weight)
    return means


def _figure(height: float) -> tuple[Untyped, Untyped]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Untyped = Figure(figsize=(WIDTH_INCHES, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _png(figure: Untyped) -> bytes:
    file = io.BytesIO()
    # Without the program's version the same numbers give the same bytes.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
