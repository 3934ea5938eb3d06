"""Keys of services that tell by their shape what they are."""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_CHECKSUM_CHARS: Final = 6
_LONGEST_HEADER: Final = 4096


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of key; `holds` tells whether a match can be real beyond its form."""

    owner: str
    # Text that every such key holds; where a file has none of it, the pattern is not tried.
    mark: str
    pattern: re.Pattern[str]
    holds: Callable[[str], bool]


def _varied(text: str) -> bool:
    """A real key's random part has many different characters."""
    return len(set(text[-20:])) >= 8


def _has_checksum(text: str) -> bool:
    """A prefix, "_", random text, and its CRC-32 in six digits of base 62, as GitHub and npm make them."""
    body = text.partition("_")[2]
    number = zlib.crc32(body[:-_CHECKSUM_CHARS].encode())
    digits = ""
    while number:
        number, digit = divmod(number, 62)
        digits = _BASE62[digit] + digits
    return digits.rjust(_CHECKSUM_CHARS, "0") == body[-_CHECKSUM_CHARS:]


def is_signed_token(text: str) -> bool:
    """Tell whether a text is a JSON Web Token with a signature."""
    header, _, rest = text.partition(".")
    payload, _, signature = rest.partition(".")
    if not signature or len(header) > _LONGEST_HEADER:
        return False
    try:
        said = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
        base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
    except (ValueError, binascii.Error, RecursionError):
        return False
    return isinstance(said, dict) and str(said.get("alg", "none")).lower() != "none"


def _shape(owner: str, mark: str, pattern: str, holds: Callable[[str], bool] = _varied) -> Shape:
    return Shape(owner, mark, re.compile(rf"(?<![A-Za-z0-9_])(?:{pattern})(?![A-Za-z0-9_])"), holds)


SHAPES: Final = (
    _shape("Amazon Web Services", "AKIA", r"AKIA[A-Z2-7]{16}"),
    _shape("Amazon Web Services", "ASIA", r"ASIA[A-Z2-7]{16}"),
    *(_shape("GitHub", f"gh{c}_", rf"gh{c}_[A-Za-z0-9]{{36}}", _has_checksum) for c in "pousr"),
    _shape("GitHub", "github_pat_", r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}"),
    _shape("GitLab", "glpat-", r"glpat-[\w-]{20,64}"),
    _shape("npm", "npm_", r"npm_[A-Za-z0-9]{36}", _has_checksum),
    _shape("PyPI", "pypi-AgE", r"pypi-AgEIcHlwaS5vcmc[\w-]{50,200}"),
    _shape("Slack", "xox", r"xox[abeoprs]-[0-9]{8,13}-[A-Za-z0-9-]{16,80}"),
    _shape("Slack", "hooks.slack.com", r"hooks\.slack\.com/services/T\w{6,12}/B\w{6,12}/\w{24}"),
    _shape("Stripe", "_live_", r"[sr]k_live_[A-Za-z0-9]{24,99}"),
    _shape("Google", "AIza", r"AIza[\w-]{35}"),
    _shape("Google", "GOCSPX-", r"GOCSPX-[\w-]{28}"),
    _shape("OpenAI", "T3BlbkFJ", r"sk-(?:[a-z]{3,10}-)?[\w-]{20,90}T3BlbkFJ[\w-]{20,90}"),
    _shape("Anthropic", "sk-ant-", r"sk-ant-[a-z0-9]{3,10}-[\w-]{80,110}"),
    _shape("Hugging Face", "hf_", r"hf_[A-Za-z]{34}"),
    _shape("SendGrid", "SG.", r"SG\.[\w-]{22}\.[\w-]{43}"),
    _shape("Mailgun", "key-", r"key-[0-9a-f]{32}"),
    _shape("Telegram", ":AA", r"[0-9]{8,10}:AA[\w-]{33}"),
    _shape("Discord", ".", r"[MNO][A-Za-z0-9_-]{23,25}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,38}"),
    _shape("DigitalOcean", "do", r"do[opr]_v1_[0-9a-f]{64}"),
    _shape("Shopify", "shp", r"shp(?:at|ss|ca|pa)_[0-9a-fA-F]{32}"),
    _shape("Azure Storage", "AccountKey=", r"AccountKey=[A-Za-z0-9+/]{86}=="),
)
SIGNED_TOKEN: Final = re.compile(
    r"(?<![\w.-])eyJ[\w-]{10,2000}\.eyJ[\w-]{2,4000}\.[\w-]{20,1000}(?![\w-])", re.ASCII
)
PRIVATE_KEY: Final = re.compile(
    r"-----BEGIN (?:RSA |EC |DSA |OPENSSH |PGP )?PRIVATE KEY(?: BLOCK)?-----([^-]{0,8192})"
)
