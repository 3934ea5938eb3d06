"""Quantities: a number with a unit, compared by dimension and size. Pure.

Units are products of SI and common units with powers: "m/s^2", "kg m^2 s^-2", "kN", "km/h".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

Dimension = tuple[int, int, int, int, int, int]
"""Powers of metre, kilogram, second, ampere, kelvin and mole."""

NONE: Final[Dimension] = (0, 0, 0, 0, 0, 0)
_UNITS: Final[Mapping[str, tuple[float, Dimension]]] = {
    "m": (1, (1, 0, 0, 0, 0, 0)), "g": (1e-3, (0, 1, 0, 0, 0, 0)), "s": (1, (0, 0, 1, 0, 0, 0)),
    "A": (1, (0, 0, 0, 1, 0, 0)), "K": (1, (0, 0, 0, 0, 1, 0)), "mol": (1, (0, 0, 0, 0, 0, 1)),
    "N": (1, (1, 1, -2, 0, 0, 0)), "J": (1, (2, 1, -2, 0, 0, 0)), "W": (1, (2, 1, -3, 0, 0, 0)),
    "Pa": (1, (-1, 1, -2, 0, 0, 0)), "Hz": (1, (0, 0, -1, 0, 0, 0)), "C": (1, (0, 0, 1, 1, 0, 0)),
    "V": (1, (2, 1, -3, -1, 0, 0)), "ohm": (1, (2, 1, -3, -2, 0, 0)), "F": (1, (-2, -1, 4, 2, 0, 0)),
    "T": (1, (0, 1, -2, -1, 0, 0)), "H": (1, (2, 1, -2, -2, 0, 0)), "Wb": (1, (2, 1, -2, -1, 0, 0)),
    "L": (1e-3, (3, 0, 0, 0, 0, 0)), "l": (1e-3, (3, 0, 0, 0, 0, 0)), "min": (60, (0, 0, 1, 0, 0, 0)),
    "h": (3600, (0, 0, 1, 0, 0, 0)), "hour": (3600, (0, 0, 1, 0, 0, 0)), "day": (86_400, (0, 0, 1, 0, 0, 0)),
    "t": (1e3, (0, 1, 0, 0, 0, 0)), "bar": (1e5, (-1, 1, -2, 0, 0, 0)), "atm": (101_325, (-1, 1, -2, 0, 0, 0)),
    "Nm": (1, (2, 1, -2, 0, 0, 0)), "eV": (1.602_176_634e-19, (2, 1, -2, 0, 0, 0)), "Wh": (3600, (2, 1, -2, 0, 0, 0)), "rad": (1, NONE),
    "deg": (math.pi / 180, NONE), "%": (0.01, NONE),
}  # fmt: skip
_PREFIXES: Final = {
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "m": 1e-3,
    "c": 1e-2,
    "d": 1e-1,
    "u": 1e-6,
    "n": 1e-9,
    "p": 1e-12,
}
_WORDS: Final = {
    "meters": "m", "metres": "m", "meter": "m", "metre": "m", "seconds": "s", "second": "s", "newtons": "N", "newton": "N",
    "joules": "J", "joule": "J", "watts": "W", "watt": "W", "pascals": "Pa", "pascal": "Pa", "volts": "V", "volt": "V",
    "amperes": "A", "amps": "A", "ampere": "A", "amp": "A", "ohms": "ohm", "kelvin": "K", "kelvins": "K", "grams": "g",
    "kilograms": "kg", "kilogram": "kg", "hertz": "Hz", "coulombs": "C", "coulomb": "C", "farads": "F", "farad": "F",
    "tesla": "T", "teslas": "T", "hours": "h", "minutes": "min", "liters": "L", "litres": "L", "moles": "mol",
    "degrees": "deg", "degree": "deg", "radians": "rad", "radian": "rad", "kilometers": "km", "kilometres": "km",
    "days": "day", "percent": "%",
}  # fmt: skip
_FACTOR: Final = re.compile(r"([A-Za-z%]+)(?:\^?\(?([-+]?\d)\)?)?")
_QUANTITY: Final = re.compile(
    r"([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)(?:\s*(?:[eE]|x\s*10\^?|\*\s*10\^?)\s*\(?([-+]?\d+)\)?)?"
    r"\s*([A-Za-z%][A-Za-z%0-9^*·()/ +-]{0,40})?"
)
_PLAIN: Final = str.maketrans({
    "µ": "u", "μ": "u", "×": "x", "·": " ", "⋅": " ", "−": "-", "Ω": "ohm", "²": "^2", "³": "^3", "⁻": "^-",
    "¹": "1", "°": "deg", "$": " ", "\\": " ", "{": "", "}": "", "*": " ",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number in SI units with its dimension."""

    value: float
    dimension: Dimension


def unit_of(text: str) -> tuple[float, Dimension] | None:
    """The factor and dimension of a unit; None when it is none."""
    factor, powers, sign, seen = 1.0, list(NONE), 1, False
    for token in re.findall(r"/|per\b|[A-Za-z%]+(?:\^?\(?[-+]?\d\)?)?|\S", _plain(text)):
        if token in {"/", "per"}:
            sign = -1
            continue
        if token in {"(", ")", ".", ","}:
            continue
        match = _FACTOR.fullmatch(token)
        found = None if match is None else _unit(match.group(1))
        if match is None or found is None:
            return None
        power = sign * int(match.group(2) or 1)
        factor *= found[0] ** power
        powers = [have + power * each for have, each in zip(powers, found[1], strict=True)]
        seen = True
    a, b, c, d, e, f = powers
    return (factor, (a, b, c, d, e, f)) if seen else None


def quantities_in(text: str) -> list[Quantity]:
    """Every number with a unit that a text names, in order; longest readable unit first."""
    found = []
    for match in _QUANTITY.finditer(_plain(text)):
        value = float(match.group(1).replace(",", "")) * 10.0 ** int(match.group(2) or 0)
        unit = _longest_unit(match.group(3) or "")
        if unit is not None:
            found.append(Quantity(value * unit[0], unit[1]))
    return found


def has_dimension(answer: str, unit: str) -> bool:
    """Whether the last quantity of an answer has the dimension of this unit."""
    wanted, found = unit_of(unit), quantities_in(answer)
    return wanted is not None and bool(found) and found[-1].dimension == wanted[1]


def is_quantity(answer: str, value: float, unit: str, tolerance: float) -> bool:
    """Whether the last quantity of an answer is this one, within a relative tolerance."""
    wanted, found = unit_of(unit), quantities_in(answer)
    return (
        wanted is not None
        and bool(found)
        and found[-1].dimension == wanted[1]
        and math.isclose(found[-1].value, value * wanted[0], rel_tol=tolerance, abs_tol=1e-12)
    )


def _plain(text: str) -> str:
    """LaTeX and typographic signs as plain letters."""
    named = re.sub(r"\\(?:text|mathrm|rm)\s*\{([^{}]*)\}", r" \1", text)
    return re.sub(r"\\(?:cdot|times|,|;| )", " ", named).translate(_PLAIN)


def _unit(name: str) -> tuple[float, Dimension] | None:
    name = _WORDS.get(name.casefold(), name) if name not in _UNITS else name
    if name in _UNITS:
        return _UNITS[name]
    prefix, base = name[:1], name[1:]
    if prefix in _PREFIXES and base in _UNITS:
        factor, dimension = _UNITS[base]
        return _PREFIXES[prefix] * factor, dimension
    return None


def _longest_unit(text: str) -> tuple[float, Dimension] | None:
    """Words that follow a number are a unit as far as they can be read as one."""
    words = text.replace("/", " / ").split()
    for end in range(len(words), 0, -1):
        unit = unit_of(" ".join(words[:end]))
        if unit is not None and words[end - 1] != "/":
            return unit
    return None
