"""Images inside requests: data URIs of four formats, within bounds that no model server should have to test.  Pure.

A URL would make the model server fetch it from inside its network, and a small file may unpack into gigabytes, so
both are refused before anything else reads the image.  Only the head is read here; whether the rest is a sound image
is for the model server to say.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kala.errors import InvalidArgumentError

MAX_IMAGE_BYTES: Final = 20 * 1024 * 1024
"""OpenAI's bound for an image; a page at 300 dpi as PNG has 1 to 10 MiB."""

MAX_SIDE_PIXELS: Final = 16_384
MAX_PIXELS: Final = 50_000_000
"""A telephone's largest photograph; unpacked it takes 200 MB."""

HEAD_CHARS: Final = 512 * 1024
"""Base64 characters in which a JPEG's dimensions must come; before them are at most a thumbnail and a colour profile."""

_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

_PREFIX: Final = "data:image/"
_MARK: Final = ";base64,"

_MARKER: Final = 0xFF
_BARE: Final = frozenset({0x01, *range(0xD0, 0xD8)})
"""JPEG markers without a length."""
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""JPEG frame headers; the three others of their range are tables."""

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What an image says of itself."""

    format: str
    """`png`, `jpeg`, `webp` or `gif`."""
    bytes: int
    width: int
    height: int


def check_image(data_uri: str, field: str) -> ImageFacts:
    """Give the facts of an acceptable image; raises InvalidArgumentError naming the field, the limit and the cure."""
    name, mark, data = data_uri.removeprefix(_PREFIX).partition(_MARK)
    if not data_uri.startswith(_PREFIX) or not mark or name not in _READERS:
        kinds = ", ".join(_READERS)
        raise InvalidArgumentError(
            field, f"must be a data:image/…;base64,… URI of {kinds}; send the image itself, not its address"
        )
    size = _decoded_bytes(data, field)
    if size > MAX_IMAGE_BYTES:
        raise InvalidArgumentError(field, f"must be at most {MAX_IMAGE_BYTES} bytes; scale the image down")
    dimensions = _READERS[name](_head(data))
    if dimensions is None:
        raise InvalidArgumentError(field, f"is not a {name} image; check the file and its media type")
    width, height = dimensions
    if not (0 < width <= MAX_SIDE_PIXELS and 0 < height <= MAX_SIDE_PIXELS and width * height <= MAX_PIXELS):
        raise InvalidArgumentError(
            field,
            f"has {width} x {height} pixels; at most {MAX_SIDE_PIXELS} a side and {MAX_PIXELS} in all are taken, so "
            "scale the image down",
        )
    return ImageFacts(name, size, width, height)


def _decoded_bytes(data: str, field: str) -> int:
    """Give the length that base64 stands for, after looking at every character."""
    try:
        raw = data.encode("ascii")
    except UnicodeEncodeError:
        raw = b"!"
    bare = raw.rstrip(b"=")
    if not bare or len(raw) % 4 or len(raw) - len(bare) > 2 or bare.translate(None, _ALPHABET):  # noqa: PLR2004
        raise InvalidArgumentError(field, "is not base64; encode the image without line breaks")
    return len(raw) // 4 * 3 - (len(raw) - len(bare))


def _head(data: str) -> bytes:
    try:
        return base64.b64decode(data[:HEAD_CHARS])
    except binascii.Error:
        return b""


def _png(head: bytes) -> Size | None:
    # RFC 2083 section 3: the signature, then IHDR, which begins with width and height.
    if not head.startswith(b"\x89PNG\r\n\x1a\n") or head[12:16] != b"IHDR" or len(head) < 24:  # noqa: PLR2004
        return None
    width, height = struct.unpack_from(">II", head, 16)
    return width, height


def _gif(head: bytes) -> Size | None:
    # GIF89a section 18: the logical screen follows the six bytes of the signature.
    if head[:6] not in {b"GIF87a", b"GIF89a"} or len(head) < 10:  # noqa: PLR2004
        return None
    width, height = struct.unpack_from("<HH", head, 6)
    return width, height


def _jpeg(head: bytes) -> Size | None:
    """Walk the segments (ISO 10918-1 annex B) to the frame header, which has height and width."""
    if not head.startswith(b"\xff\xd8"):
        return None
    place = 2
    while place + 9 <= len(head) and head[place] == _MARKER:
        marker = head[place + 1]
        if marker == _MARKER:  # a fill byte
            place += 1
        elif marker in _BARE:
            place += 2
        elif marker in _FRAMES:
            height, width = struct.unpack_from(">HH", head, place + 5)
            return width, height
        else:
            place += 2 + int.from_bytes(head[place + 2 : place + 4])
    return None


def _webp(head: bytes) -> Size | None:
    # RFC 9649 section 2: RIFF, then one chunk of the lossy, the lossless or the extended format.
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < 30:  # noqa: PLR2004
        return None
    kind = head[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        packed = int.from_bytes(head[21:25], "little")
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    return None


_READERS: Final[dict[str, Callable[[bytes], Size | None]]] = {
    "png": _png,
    "jpeg": _jpeg,
    "webp": _webp,
    "gif": _gif,
}
