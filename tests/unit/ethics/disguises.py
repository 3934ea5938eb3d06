"""Ways to hide a text that the hard blocks must see through, and how much of the list each may cost."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Callable

LOOK_ALIKES = str.maketrans("aeopcxyi", "аеорсхуі")
LEET = str.maketrans("aeiost", "4310$7")


def base64_of(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


Disguise = Callable[[str], str]

DISGUISES: dict[str, tuple[Disguise, float]] = {
    "capitals": (str.upper, 1.0),
    "leetspeak": (lambda text: text.translate(LEET), 0.98),
    "zero width": ("\u200b".join, 1.0),
    "look-alikes": (lambda text: text.translate(LOOK_ALIKES), 1.0),
    "fullwidth": (lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text), 1.0),
    "accents": (lambda text: "".join(c + "\u0301" if c.isalpha() else c for c in text), 1.0),
    "spaced": (lambda text: "  ".join(" ".join(word) for word in text.split()), 0.97),
    "dotted": (lambda text: " ".join(".".join(word) for word in text.split()), 0.98),
    "evenly spaced": (lambda text: " ".join(text.replace(" ", "")), 0.92),
    "run together": (lambda text: text.replace(" ", ""), 0.85),
    "base64": (base64_of, 1.0),
    "base64 twice": (lambda text: base64_of(base64_of(text)), 1.0),
    "hex": (lambda text: text.encode().hex(), 1.0),
    "rot13": (lambda text: codecs.encode(text, "rot13"), 1.0),
    "reversed": (lambda text: text[::-1], 1.0),
    "percent": (lambda text: "".join(f"%{ord(c):02x}" for c in text), 1.0),
    "unicode tags": (lambda text: "Hi!" + "".join(chr(0xE0000 + ord(c)) for c in text), 1.0),
}
