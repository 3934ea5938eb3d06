"""Draw how far the scores can be read as probabilities. Needs the `evaluation` extra; the report is whole without it."""

from __future__ import annotations

import io
from typing import Final

from kala.errors import FailedPreconditionError
from services.ethics.evaluation.figures import Reliability

MISSING: Final = "reliability.png was not drawn, which needs matplotlib: pip install '.[evaluation]'"
_INCHES: Final = (6.0, 5.0)
_DOTS_PER_INCH: Final = 120


def reliability_png(reliability: Reliability) -> bytes:
    """The diagram as PNG; FailedPreconditionError names the extra when it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise FailedPreconditionError(MISSING) from error
    # A figure of its own, not pyplot's: no display is looked for and nothing is kept.
    figure = Figure(figsize=_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    axes.plot((0, 1), (0, 1), linestyle="--", color="grey", label="perfect")
    axes.bar(
        [one.low for one in reliability.bins],
        [one.share_harmful for one in reliability.bins],
        width=[one.high - one.low for one in reliability.bins],
        align="edge",
        color="#4878a8",
        edgecolor="white",
        label="share harmful",
    )
    axes.scatter(
        [one.mean_score for one in reliability.bins],
        [one.share_harmful for one in reliability.bins],
        color="#b04a2f",
        zorder=3,
        label="mean score",
    )
    for one in reliability.bins:
        place = (one.low + one.high) / 2
        axes.annotate(str(one.count), (place, one.share_harmful), ha="center", va="bottom", fontsize=8)
    axes.set(xlabel="score", ylabel="share of harmful texts", xlim=(0, 1), ylim=(0, 1.08))
    axes.set_title(f"Expected calibration error {reliability.error:.3f}; numbers are texts")
    axes.legend(loc="upper left")
    image = io.BytesIO()
    # Without the library's version in it, the same figures give the same bytes.
    figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()
