"""Formulas derived step by step, with units, and a result that is computed."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Final

from services.trainer.datasets.draw import Draw, templates
from services.trainer.datasets.rows import Row, conversation

CATEGORY: Final = "derivation"
Worked = tuple[str, list[str], str]
"""A problem, its steps, and its result with units."""

# Standard gravity rounded as textbooks do.
_GRAVITY: Final = Fraction(981, 100)


def derivation_row(draw: Draw) -> Row:
    """Draws one problem with its steps and result."""
    topic = draw.choice(tuple(TOPICS))
    problem, steps, result = TOPICS[topic](draw)
    asked = draw.text(draw.choice(templates("research")[CATEGORY]["asks"]), {"problem": problem})
    numbered = [f"{number}. {step}" for number, step in enumerate(steps, start=1)]
    answer = "\n".join([*numbered, f"Result: {result}"])
    return conversation(CATEGORY, asked, answer, facts={"topic": topic, "result": result})


def _number(value: Fraction) -> str:
    """Writes a number with at most four significant decimals, without trailing zeros."""
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.4f}".rstrip("0").rstrip(".")


def _thing(draw: Draw) -> str:
    return str(draw.choice(templates("research")[CATEGORY]["things"]))


def _braking(draw: Draw) -> Worked:
    speed, rate = Fraction(draw.between(4, 60)), Fraction(draw.between(2, 12), 2)
    way = speed**2 / (2 * rate)
    v, a = _number(speed), _number(rate)
    return (
        f"How far does {_thing(draw)} go that moves at {v} m/s and slows down by {a} m/s each second until it stands?",
        [
            "Speed falls evenly: v(t) = v0 - a t, so it stands at t = v0 / a.",
            "The way is the mean speed times the time: s = (v0 / 2) (v0 / a) = v0^2 / (2 a).",
            f"Insert: s = ({v} m/s)^2 / (2 x {a} m/s^2) = {_number(way)} m.",
            "Units: (m^2/s^2) / (m/s^2) = m, a length as it must be.",
        ],
        f"s = {_number(way)} m",
    )


def _falling(draw: Draw) -> Worked:
    time = Fraction(draw.between(2, 24), 4)
    height = _GRAVITY * time**2 / 2
    t = _number(time)
    return (
        f"{_thing(draw).capitalize()} falls freely for {t} s from rest. How deep does it fall? Take g = 9.81 m/s^2.",
        [
            "The acceleration is constant: dv/dt = g, so v = g t from rest.",
            "The depth is the integral of the speed: s = g t^2 / 2.",
            f"Insert: s = 9.81 m/s^2 x ({t} s)^2 / 2 = {_number(height)} m.",
            "Units: (m/s^2) s^2 = m. Air resistance is left out, so the true depth is a little less.",
        ],
        f"s = {_number(height)} m",
    )


def _kinetic(draw: Draw) -> Worked:
    mass, speed = Fraction(draw.between(1, 200)), Fraction(draw.between(1, 40))
    energy = mass * speed**2 / 2
    m, v = _number(mass), _number(speed)
    return (
        f"{_thing(draw).capitalize()} of {m} kg reaches {v} m/s from rest. Which work was done on it?",
        [
            "Work is force along the way: W = F s with F = m a.",
            "From rest s = v^2 / (2 a), so W = m a v^2 / (2 a) = m v^2 / 2; the acceleration cancels.",
            f"Insert: W = {m} kg x ({v} m/s)^2 / 2 = {_number(energy)} J.",
            "Units: kg m^2/s^2 = J.",
        ],
        f"W = {_number(energy)} J",
    )


def _parallel(draw: Draw) -> Worked:
    first, second, volts = (Fraction(draw.between(2, 60)) for _ in range(3))
    together = first * second / (first + second)
    current = volts / together
    a, b, u = _number(first), _number(second), _number(volts)
    return (
        f"Resistors of {a} ohm and {b} ohm lie in parallel at {u} V. Which current flows in all?",
        [
            "Both see the same voltage: I1 = U / R1 and I2 = U / R2.",
            "The currents add: I = U (1/R1 + 1/R2), so 1/R = 1/R1 + 1/R2 and R = R1 R2 / (R1 + R2).",
            f"Insert: R = {a} x {b} / ({a} + {b}) ohm = {_number(together)} ohm.",
            f"I = {u} V / R = {_number(current)} A. Units: V / ohm = A.",
        ],
        f"I = {_number(current)} A",
    )


def _heating(draw: Draw) -> Worked:
    mass, rise = Fraction(draw.between(1, 40), 4), Fraction(draw.between(5, 80))
    heat = mass * Fraction(4186, 1000) * rise
    m, t = _number(mass), _number(rise)
    return (
        f"Which heat warms {m} kg of water by {t} K? Take c = 4.186 kJ/(kg K).",
        [
            "The heat is proportional to mass and to the rise: Q = m c dT.",
            f"Insert: Q = {m} kg x 4.186 kJ/(kg K) x {t} K = {_number(heat)} kJ.",
            "Units: kg and K cancel, kJ stays. Losses to the vessel are left out.",
        ],
        f"Q = {_number(heat)} kJ",
    )


def _narrowing(draw: Draw) -> Worked:
    wide, narrow, speed = draw.between(20, 90), draw.between(5, 19), Fraction(draw.between(1, 12), 2)
    fast = speed * wide / narrow
    v = _number(speed)
    return (
        f"Water flows at {v} m/s through a pipe of {wide} cm^2 that narrows to {narrow} cm^2. How fast is it there?",
        [
            "Water does not pile up: what enters in a second leaves in a second, A1 v1 = A2 v2.",
            "So v2 = v1 A1 / A2; the unit of the areas cancels.",
            f"Insert: v2 = {v} m/s x {wide} / {narrow} = {_number(fast)} m/s.",
            "Check: the pipe is narrower, so the water must be faster, and it is.",
        ],
        f"v2 = {_number(fast)} m/s",
    )


def _series(draw: Draw) -> Worked:
    first, step, count = draw.between(1, 30), draw.between(1, 12), draw.between(5, 60)
    last = first + (count - 1) * step
    total = count * (first + last) // 2
    return (
        f"Sum the first {count} numbers of the row {first}, {first + step}, {first + 2 * step}, ...",
        [
            f"The last one is a + (n - 1) d = {first} + {count - 1} x {step} = {last}.",
            "Written forwards and backwards, each pair adds up to a + z, and there are n pairs for twice the sum.",
            f"So S = n (a + z) / 2 = {count} x ({first} + {last}) / 2 = {total}.",
            f"Check with two terms: {first} + {first + step} = {2 * first + step} = 2 x ({first} + {first + step}) / 2.",
        ],
        f"S = {total}",
    )


def _quadratic(draw: Draw) -> Worked:
    low, high = sorted((draw.between(-12, 12), draw.between(-12, 12)))
    total, product = low + high, low * high
    middle, half = _number(Fraction(total, 2)), _number(Fraction(high - low, 2))
    return (
        f"Solve x^2 {-total:+d} x {product:+d} = 0.",
        [
            f"Complete the square: x^2 - p x = (x - p/2)^2 - p^2/4 with p = {total}.",
            f"So (x - {middle})^2 = {_number(Fraction(total, 2) ** 2 - product)}.",
            f"The root of that is {half}, so x = {middle} +- {half}.",
            f"Check: the sum of the solutions is {total} and their product {product}, as the equation says.",
        ],
        f"x = {low} or x = {high}" if low != high else f"x = {low}",
    )


TOPICS: Final[dict[str, Callable[[Draw], Worked]]] = {
    "kinematics": _braking,
    "free_fall": _falling,
    "energy": _kinetic,
    "circuits": _parallel,
    "thermodynamics": _heating,
    "fluids": _narrowing,
    "series": _series,
    "quadratic": _quadratic,
}
"""By topic, how a problem is drawn and worked."""
