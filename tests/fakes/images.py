"""Small images as data URIs."""

from __future__ import annotations

import base64
import struct
import zlib


def png(width: int = 1, height: int = 1, *, padding: int = 0) -> bytes:
    """Write a grey PNG, sound where it is not padded; `padding` bytes follow its end."""
    rows = b"".join(b"\x00" + b"\x80" * width for _ in range(height)) if width * height < 1_000_000 else b""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks + b"\x00" * padding


def data_uri(image: bytes, media_type: str = "image/png") -> str:
    """Write an image as the API takes it."""
    return f"data:{media_type};base64,{base64.b64encode(image).decode()}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PIXEL = data_uri(png())
