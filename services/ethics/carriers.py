"""Find text that hides inside a text: base64 and 32, hexadecimal, character codes, Morse, escapes, invisible characters.

Finders look at the folded text with its case kept and return where each carrier stands and what it says.
A carrier that looks encoded but cannot be read is reported as opaque. All patterns are linear on Python's `re`:
no two parts of one can match the same characters.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

# 16 base64 characters carry 12 bytes, the length of the shortest phrase that any rule forbids.
MIN_BASE64_CHARS: Final = 16
MIN_PAIRS: Final = 8
MIN_READABLE_SHARE: Final = 0.9
# A shorter unreadable token is rather a name or an identifier than a message.
MIN_OPAQUE_CHARS: Final = 24
ASCII_END: Final = 128
# A ruler or a table's border is Morse for a few letters over and over.
MIN_MORSE_LETTERS: Final = 5
TAG_BASE: Final = 0xE0000
# Variation selectors 1 to 16 and 17 to 256 stand for the bytes 0 to 255.
FIRST_SELECTOR: Final = 0xFE00
FIRST_SUPPLEMENT: Final = 0xE0100

_BASE64: Final = re.compile(rf"[A-Za-z0-9+/_-]{{{MIN_BASE64_CHARS},}}(?:\r?\n[A-Za-z0-9+/_-]{{4,}})*={{0,2}}")
_HEX: Final = re.compile(rf"(?:(?:0x|\\x)?[0-9A-Fa-f]{{2}}[\s:,]{{0,2}}){{{MIN_PAIRS},}}")
_BINARY: Final = re.compile(rf"(?:[01]{{8}}[\s,]{{0,2}}){{{MIN_PAIRS},}}")
# Character codes as numbers: decimal, or octal with or without a backslash.
_CODES: Final = re.compile(rf"(?:\b[01]?[0-9]{{2}}\b[\s,;]{{1,2}}){{{MIN_PAIRS - 1},}}[01]?[0-9]{{2}}\b")
_OCTAL: Final = re.compile(rf"(?:\\[0-3]?[0-7]{{2}}){{{MIN_PAIRS},}}")
_BASE32: Final = re.compile(rf"\b(?:[A-Z2-7]{{{MIN_OPAQUE_CHARS},}}|[a-z2-7]{{{MIN_OPAQUE_CHARS},}})={{0,6}}")
# Letters of dots and dashes between blanks; a slash or bar parts words.
_MORSE: Final = re.compile(
    rf"(?<![^\s])(?:[.\u00b7\u2022_\u2013\u2014-]{{1,6}}[\s/|]{{1,4}}){{{MIN_PAIRS - 1},}}[.\u00b7\u2022_\u2013\u2014-]{{1,6}}(?![^\s])"
)
_ESCAPE: Final = re.compile(
    r"%[0-9A-Fa-f]{2}|\\x[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|\\U000[0-9A-Fa-f]{5}|\\u\{[0-9A-Fa-f]{1,5}\}"
    r"|&(?:#(?:[0-9]{1,7}|[xX][0-9A-Fa-f]{1,6})|nbsp|ensp|emsp|thinsp|shy|zwj|zwnj);"
)
_TAGS: Final = re.compile("[\U000e0020-\U000e007e]+")
_SELECTORS: Final = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]{4,}")
_LOOKS_ENCODED: Final = re.compile(r"[0-9][A-Za-z]|[a-z][A-Z]|[A-Z][a-z][A-Z]|[+=]")


@dataclass(frozen=True, slots=True)
class Carrier:
    """One place where text hides; `payload` is None when it looks encoded but cannot be read."""

    kind: str
    start: int
    end: int
    payload: str | None


def find_encoded(text: str) -> Iterator[Carrier]:
    """Every encoded carrier of a folded text whose case is kept."""
    read_until = 0
    found = sorted(_candidates(text), key=lambda carrier: (carrier.payload is None, carrier.start))
    readable = [carrier for carrier in found if carrier.payload is not None]
    yield from readable
    # Hexadecimal is also within base64's alphabet: what one decoder read is not opaque because another could not.
    covered = iter(readable)
    current = next(covered, None)
    for carrier in found[len(readable) :]:
        while current is not None and read_until < carrier.end and current.start < carrier.end:
            read_until = max(read_until, current.end)
            current = next(covered, None)
        if carrier.start >= read_until:
            yield carrier


def _candidates(text: str) -> Iterator[Carrier]:
    finders: tuple[tuple[str, re.Pattern[str], Callable[[str], str | None]], ...] = (
        ("base64", _BASE64, _read_base64),
        ("hex", _HEX, _read_hex),
        ("binary", _BINARY, _read_binary),
        ("base32", _BASE32, _read_base32),
        ("octal", _OCTAL, _read_octal),
        ("codes", _CODES, _read_codes),
        ("morse", _MORSE, _read_morse),
    )
    for kind, pattern, read in finders:
        for match in pattern.finditer(text):
            payload = read(match.group())
            if payload is not None or _looks_opaque(kind, match.group()):
                yield Carrier(kind, match.start(), match.end(), payload)


def find_hidden(text: str) -> Iterator[Carrier]:
    """Messages in characters that render as nothing: Unicode tags and runs of variation selectors."""
    if text.isascii():
        return
    for match in _TAGS.finditer(text):
        yield Carrier(
            "tags", match.start(), match.end(), "".join(chr(ord(c) - TAG_BASE) for c in match.group())
        )
    for match in _SELECTORS.finditer(text):
        payload = _as_text(bytes(_selector_byte(char) for char in match.group()))
        yield Carrier("selectors", match.start(), match.end(), payload)


def find_escapes(text: str) -> Iterator[Carrier]:
    """Percent, backslash and HTML character escapes, each as a carrier of the one character it stands for."""
    for match in _ESCAPE.finditer(text):
        yield Carrier("escapes", match.start(), match.end(), _unescape(match.group()))


def _read_base64(encoded: str) -> str | None:
    whole = _decode_base64(encoded)
    if whole is not None:
        return whole
    # Words glued on with - _ or / shift the alphabet's groups of four: read the pieces by themselves.
    pieces = [piece for piece in re.split(r"[-_/\s]", encoded) if len(piece) >= MIN_BASE64_CHARS]
    if len(pieces) == 1 and pieces[0] == encoded:
        return None
    read = [text for piece in pieces if (text := _decode_base64(piece)) is not None]
    return "\n".join(read) or None


def _decode_base64(encoded: str) -> str | None:
    compact = "".join(encoded.split()).rstrip("=").translate(_URL_SAFE)
    usable = len(compact) - (len(compact) % 4 == 1)
    padded = compact[:usable] + "=" * (-usable % 4)
    return _as_text(base64.b64decode(padded, validate=True))


def _read_hex(encoded: str) -> str | None:
    return _as_text(bytes.fromhex(re.sub(r"0x|\\x|[\s:,]", "", encoded)))


def _read_binary(encoded: str) -> str | None:
    return _as_text(bytes(int(octet, 2) for octet in re.findall("[01]{8}", encoded)))


def _read_base32(encoded: str) -> str | None:
    compact = encoded.rstrip("=").upper()
    try:
        return _as_text(base64.b32decode(compact + "=" * (-len(compact) % 8)))
    except ValueError:
        return None


def _read_octal(encoded: str) -> str | None:
    return _as_text(bytes(int(code, 8) for code in encoded.split("\\")[1:]))


def _read_codes(encoded: str) -> str | None:
    """Decimal codes, or octal ones where these make no words; numbers of a table spell none."""
    numbers = re.findall("[0-9]+", encoded)
    decimal = _as_words([int(number) for number in numbers])
    if decimal is not None or any("8" in number or "9" in number for number in numbers):
        return decimal
    return _as_words([int(number, 8) for number in numbers])


def _as_words(codes: list[int]) -> str | None:
    text = "".join(chr(code) for code in codes if code < ASCII_END)
    letters = sum(char.isalpha() or char == " " for char in text)
    return text if " " in text and letters >= MIN_READABLE_SHARE * len(codes) else None


def _read_morse(encoded: str) -> str | None:
    plain = encoded.translate(_MORSE_MARKS)
    words = (word.split() for word in re.split(r"[/|]|\s{3,}", plain))
    letters = [[_MORSE_LETTERS.get(letter, "") for letter in word] for word in words]
    read = sum(len("".join(word)) for word in letters)
    text = " ".join("".join(word) for word in letters)
    is_read = read >= MIN_READABLE_SHARE * sum(map(len, letters))
    return text if is_read and len(set(text)) >= MIN_MORSE_LETTERS else None


def _as_text(data: bytes) -> str | None:
    """The text in these bytes (UTF-8, or UTF-16 as PowerShell encodes it), or None if they are not text."""
    if len(data) >= MIN_PAIRS and not any(data[1::2]):
        data = data[::2]
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    readable = sum(char.isprintable() or char in "\r\n\t" for char in text)
    return text if text and readable >= MIN_READABLE_SHARE * len(text) else None


def _looks_opaque(kind: str, encoded: str) -> bool:
    """Whether this can only be encoded: base64 must not look like a word, the other alphabets spell hardly any.

    What looks like base32, codes or Morse and is not readable is rather a name, a row of numbers or a ruler.
    """
    if kind in _READ_OR_NOTHING:
        return False
    return len(encoded) >= MIN_OPAQUE_CHARS and (kind != "base64" or bool(_LOOKS_ENCODED.search(encoded)))


def _unescape(escape: str) -> str:
    if escape[0] == "&":
        return html.unescape(escape)
    return chr(int(escape.strip("%\\xuU{}"), 16))


def _selector_byte(char: str) -> int:
    code = ord(char)
    return code - FIRST_SELECTOR if code < FIRST_SELECTOR + 16 else code - FIRST_SUPPLEMENT + 16


_URL_SAFE: Final = str.maketrans("-_", "+/")
_READ_OR_NOTHING: Final = frozenset({"base32", "codes", "morse"})
# The carriers whose payload stands nowhere in the text that a reader sees.
PAYLOADS: Final = frozenset(
    {"base64", "base32", "hex", "binary", "octal", "codes", "morse", "tags", "selectors"}
)
_MORSE_MARKS: Final = str.maketrans("\u00b7\u2022_\u2013\u2014", "..---")
_MORSE_CODES: Final = (
    ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --.. "
    "----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----. .-.-.- --..-- ..--.. -.-.-- -....-"
)
_MORSE_LETTERS: Final[dict[str, str]] = dict(
    zip(_MORSE_CODES.split(), "abcdefghijklmnopqrstuvwxyz0123456789.,?!-", strict=True)
)
