"""Names that say "secret", and what a text under such a name is: random, a password, or a placeholder."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Final

_PARTS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_PASSWORD: Final = re.compile(r"(?:^|_)(?:password|passwd|passwort|pwd|passphrase|pass)$")
_SECRET: Final = re.compile(
    r"(?:^|_)(?:(?:api|app|access|secret|auth|private|encryption|encrypt|signing|sign|client|master|session|account|aes|hmac|jwt|bot|service|shared|storage|cookie|crypto|webhook)_(?:key|token|secret)|token|secret|apikey|secretkey|authtoken|accesstoken|access_key_secret|bearer)$"
)
# Names that say what a secret is called, where it lies, or that it is none.
_NOT_SECRET: Final = re.compile(
    r"(?:^|_)(?:public|example|sample|dummy|fake|mock|hash|hashed|digest|checksum|placeholder|csrf|xsrf|page|next|continuation|design|syntax|label|invalid|wrong|bad)(?:_|$)"
)
_PLACEHOLDER: Final = re.compile(
    r"your|example|sample|dummy|placeholder|change.?me|changeit|replace|insert|redacted|xxx|\*\*\*|\.\.\.|todo|fixme|<|>|\$\{|\{\{|\$\(|%\(|%s|process\.env|os\.environ|test|fake|mock|here|lorem|foobar|not.?a.?secret|\bnone\b|\bnull\b|undefined",
    re.IGNORECASE,
)
_ORDINARY: Final = frozenset(
    {
        *(
            "password",
            "passwd",
            "passphrase",
            "secret",
            "token",
            "key",
            "apikey",
            "user",
            "username",
            "admin",
        ),
        *(
            "root",
            "guest",
            "default",
            "string",
            "text",
            "value",
            "bearer",
            "basic",
            "localhost",
            "postgres",
            "mysql",
        ),
        *("pass", "pwd", "login", "hidden", "current", "new", "old", "confirm", "true", "false", "required"),
    }
)
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_RUNS: Final = ("0123456789", "abcdefghijklmnopqrstuvwxyz", "qwertyuiop", "9876543210")
_RUN: Final = 6
_MIN_RANDOM: Final = 16
_MIN_PASSWORD: Final = 6
_MIN_BITS: Final = 3.0
_MIN_BITS_HEX: Final = 2.7


def is_password_name(name: str) -> bool:
    """Tell whether what has this name is a password."""
    plain = _plain(name)
    return bool(_PASSWORD.search(plain)) and not _NOT_SECRET.search(plain)


def is_secret_name(name: str) -> bool:
    """Tell whether what has this name is a key or token that nobody else may know."""
    plain = _plain(name)
    return bool(_SECRET.search(plain)) and not _NOT_SECRET.search(plain)


def is_placeholder(text: str) -> bool:
    """Tell whether a text stands where a secret will be put, or is no secret by its form."""
    low = text.lower()
    return (
        bool(_PLACEHOLDER.search(text))
        or low.strip("_-") in _ORDINARY
        or len(set(low)) <= 3
        or bool(_UUID.fullmatch(text))
        or (
            any(word in low for word in ("secret", "password", "token", "apikey", "api_key", "api-key"))
            and not re.search(r"\d{2}|[^\w-]", text)
        )
    )


def looks_random(text: str) -> bool:
    """Tell whether a text is long and mixed enough to be made by a random source."""
    if len(text) < _MIN_RANDOM or not re.fullmatch(r"[\w+/=.:@!#$%^&*~-]+", text, re.ASCII):
        return False
    if not (re.search(r"\d", text) and re.search(r"[A-Za-z]", text)) or _counts_up(text):
        return False
    hexadecimal = re.fullmatch(r"[0-9a-fA-F]+", text) is not None
    # Words joined by dashes, dots or underscores are a name, a version or an address.
    words = re.split(r"[-_.:/]", text)
    if len(words) > 2 and all(len(word) < _RUN for word in words):
        return False
    return _bits(text) >= (_MIN_BITS_HEX if hexadecimal else _MIN_BITS)


def looks_like_password(text: str) -> bool:
    """Tell whether a text is one that somebody chose as a password: one word with more than letters."""
    if len(text) < _MIN_PASSWORD or re.search(r"\s|^[./~#$]|://|^\W+$|\.(?:\w{1,5})$|^[A-Z]+_[A-Z_]+$", text):
        return False
    return bool(re.search(r"[A-Za-z]", text) and re.search(r"\d|[^\w\s-]", text))


def _counts_up(text: str) -> bool:
    low = text.lower()
    return any(run[start : start + _RUN] in low for run in _RUNS for start in range(len(run) - _RUN + 1))


def _bits(text: str) -> float:
    """Shannon's entropy per character."""
    total = len(text)
    return -sum(count / total * math.log2(count / total) for count in Counter(text).values())


def _plain(name: str) -> str:
    return "_".join(_PARTS.findall(name)).lower()
