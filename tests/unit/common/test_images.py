"""Images inside requests: what is taken, and what is refused before anything unpacks it."""

from __future__ import annotations

import base64
import io
import struct

import pytest
from PIL import Image

from kala.errors import InvalidArgumentError
from services.common.images import MAX_IMAGE_BYTES, check_image
from tests.fakes.images import PIXEL, data_uri, png

FIELD = "messages[0].content[1].image_url.url"


def encoded(kind: str, width: int, height: int, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param("png", {}, id="png"),
        pytest.param("gif", {}, id="gif"),
        pytest.param("jpeg", {}, id="jpeg"),
        pytest.param("jpeg", {"progressive": True}, id="progressive jpeg"),
        pytest.param("jpeg", {"exif": b"Exif\x00\x00" + b"x" * 60_000}, id="jpeg with a thumbnail"),
        pytest.param("webp", {}, id="lossy webp"),
        pytest.param("webp", {"lossless": True}, id="lossless webp"),
        pytest.param("webp", {"exif": b"Exif\x00\x00x"}, id="extended webp"),
    ],
)
def test_every_format_tells_its_size(kind: str, options: dict[str, object]) -> None:
    image = encoded(kind, 61, 17, **options)
    facts = check_image(data_uri(image, f"image/{kind}"), FIELD)
    assert (facts.format, facts.width, facts.height, facts.bytes) == (kind, 61, 17, len(image))


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        pytest.param("https://example.com/a.png", "not its address", id="a URL"),
        pytest.param("http://169.254.169.254/latest/meta-data", "not its address", id="a metadata address"),
        pytest.param("file:///etc/passwd", "not its address", id="a file"),
        pytest.param("data:text/html;base64,AAAA", "of png, jpeg, webp, gif", id="no image"),
        pytest.param("data:image/svg+xml;base64,AAAA", "of png, jpeg, webp, gif", id="svg, which may hold links"),
        pytest.param("data:image/png;charset=x;base64,AAAA", "of png, jpeg, webp, gif", id="parameters"),
        pytest.param("data:image/png;base64,", "not base64", id="empty"),
        pytest.param("data:image/png;base64,AA A=", "not base64", id="a blank"),
        pytest.param("data:image/png;base64,AAAAA", "not base64", id="a cut"),
        pytest.param("data:image/png;base64,A===", "not base64", id="too much padding"),
        pytest.param("data:image/png;base64,éé==", "not base64", id="beyond ASCII"),
        pytest.param("data:image/png;base64,AAAA", "is not a png", id="four characters"),
        pytest.param(data_uri(png(), "image/jpeg"), "is not a jpeg", id="another format than it says"),
        pytest.param(data_uri(b"\xff\xd8" + b"\xff" * 4000, "image/jpeg"), "is not a jpeg", id="an endless jpeg"),
        pytest.param(data_uri(png(40_000, 1)), "40000 x 1 pixels", id="a long side"),
        pytest.param(data_uri(png(10_000, 10_000)), "10000 x 10000 pixels", id="a bomb"),
        pytest.param(data_uri(png(0, 5)), "0 x 5 pixels", id="no pixels"),
        pytest.param(data_uri(png(padding=MAX_IMAGE_BYTES)), "at most 20971520 bytes", id="too large"),
    ],
)  # fmt: skip
def test_what_is_no_acceptable_image_is_refused_with_its_reason(uri: str, problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem) as refused:
        check_image(uri, FIELD)
    assert refused.value.field == FIELD


def test_an_error_never_quotes_the_image() -> None:
    secret = base64.b64encode(b"secret" * 10).decode()
    with pytest.raises(InvalidArgumentError) as refused:
        check_image(f"data:image/png;base64,{secret}", FIELD)
    assert secret[:12] not in refused.value.message


def test_a_pixel_is_fine() -> None:
    assert check_image(PIXEL, FIELD).width == 1


@pytest.mark.parametrize("cut", range(0, 40, 3))
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif"])
def test_a_cut_head_is_refused_and_breaks_nothing(kind: str, cut: int) -> None:
    whole = encoded(kind, 61, 17)
    try:
        facts = check_image(data_uri(whole[: max(1, cut)], f"image/{kind}"), FIELD)
    except InvalidArgumentError:
        return
    assert (facts.width, facts.height) == (61, 17)


def test_a_jpeg_whose_segment_points_past_its_end_is_refused() -> None:
    image = b"\xff\xd8\xff\xe0" + struct.pack(">H", 65_535) + b"x" * 20
    with pytest.raises(InvalidArgumentError, match="not a jpeg"):
        check_image(data_uri(image, "image/jpeg"), FIELD)
