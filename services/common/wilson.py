"""The Wilson score interval in integers, so that every verifier of a gate comes to the same bounds.

E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927) 209-212.
"""

from __future__ import annotations

from math import isqrt
from typing import Final

# Rates, bounds and thresholds are integers in millionths.
MICROS: Final = 1_000_000
# The standard normal's two-sided 95 % quantile, 1.959964, in millionths.
Z_MICROS: Final = 1_959_964


def wilson_bounds_micros(hits: int, total: int) -> tuple[int, int]:
    """Returns the 95 % bounds of the rate hits/total in millionths: the lower rounded down, the upper rounded up.

    Raises ValueError unless 0 <= hits <= total and total > 0.
    """
    if not 0 <= hits <= total or total == 0:
        raise ValueError(f"{hits} of {total} is no rate")
    # bounds = (2h + z^2 -+ z * sqrt(z^2 + 4h(n - h)/n)) / (2(n + z^2)), all scaled by 10^12 for z's millionths,
    # the numerator again by 10^6 for the result's.
    z_squared = Z_MICROS**2
    centre = (2 * hits * MICROS**2 + z_squared) * MICROS
    radicand = z_squared * (z_squared * total + 4 * hits * (total - hits) * MICROS**2) * MICROS**2
    spread = _ceil_sqrt(-(-radicand // total))
    divisor = 2 * (total * MICROS**2 + z_squared)
    return max((centre - spread) // divisor, 0), min(-(-(centre + spread) // divisor), MICROS)


def _ceil_sqrt(value: int) -> int:
    """The smallest integer whose square is at least `value`, which is above 0."""
    return isqrt(value - 1) + 1
