"""Forms: read the same however they are cut, and refused where two readers could differ."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.files.multipart import MAX_PARTS, MultipartReader, PartBegun, PartData
from kala.errors import InvalidArgumentError

TYPE = "multipart/form-data; boundary=XYZ"


def form(*parts: tuple[str, bytes], end: bytes = b"--XYZ--\r\n") -> bytes:
    body = b"".join(
        b'--XYZ\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), data)
        for name, data in parts
    )
    return body + end


def read(body: bytes, cuts: list[int] | None = None, content_type: str = TYPE) -> list[tuple[str, bytes]]:
    reader = MultipartReader(content_type)
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts or ()), len(body)]
    found: list[tuple[str, bytes]] = []
    for begin, end in itertools.pairwise(edges):
        for event in reader.feed(body[begin:end]):
            if isinstance(event, PartBegun):
                found.append((event.name, b""))
            elif isinstance(event, PartData):
                found[-1] = (found[-1][0], found[-1][1] + event.data)
    reader.close()
    return found


@settings(max_examples=200, deadline=None)
@given(
    datas=st.lists(
        st.one_of(st.binary(max_size=64), st.sampled_from([b"\r\n--XY", b"\r\n--", b"--XYZ", b"\r\n"])),
        max_size=4,
    ),
    cuts=st.lists(st.integers(min_value=0, max_value=10_000), max_size=8),
)
def test_a_form_is_read_the_same_however_it_is_cut(datas: list[bytes], cuts: list[int]) -> None:
    parts = [(f"f{number}", data) for number, data in enumerate(datas)]
    body = form(*parts)
    if any(b"\r\n--XYZ" in b"\r\n" + data for data in datas):
        return  # holds its own boundary
    assert read(body, cuts) == parts


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    for body in (data, b"--XYZ\r\n" + data, form(("a", data))):
        try:
            read(body)
        except InvalidArgumentError as error:
            assert error.field == "body"  # noqa: PT017 - both outcomes are right, and nothing else is


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param(form(("a", b"1"), end=b""), "closing boundary", id="cut off"),
        pytest.param(b"", "closing boundary", id="nothing"),
        pytest.param(form(*[("a", b"")] * (MAX_PARTS + 1)), "more than 16 parts", id="many parts"),
        pytest.param(b"--XYZ\r\nA: " + b"x" * 9000, "more than 8192 bytes", id="long head"),
        pytest.param(b"x" * 9000, "does not come", id="no boundary"),
        pytest.param(b"--XYZ\r\n\r\nx\r\n--XYZ--", "Content-Disposition", id="no disposition"),
        pytest.param(b"--XYZ\r\nContent-Disposition: form-data\r\n\r\n\r\n--XYZ--", "no name", id="no name"),
        pytest.param(
            b'--XYZ\r\nContent-Disposition: form-data; name="a"; name="b"\r\n\r\n\r\n--XYZ--', "twice", id="two names"
        ),
        pytest.param(
            b'--XYZ\r\nContent-Disposition: form-data; name="a"\r\nContent-Transfer-Encoding: base64\r\n\r\n\r\n--XYZ--',
            "content-transfer-encoding",
            id="encoded",
        ),
        pytest.param(b"--XYZ\xff\xff", "line's end", id="boundary goes on"),
    ],
)  # fmt: skip
def test_a_malformed_form_is_refused(body: bytes, says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        read(body)


@pytest.mark.parametrize(
    "content_type",
    ["", "application/json", "multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "x" * 71],
)  # fmt: skip
def test_a_form_needs_a_boundary(content_type: str) -> None:
    with pytest.raises(InvalidArgumentError, match="boundary"):
        MultipartReader(content_type)


@pytest.mark.parametrize(
    "content_type", ['multipart/form-data; boundary="XYZ"', "Multipart/Form-Data;boundary=XYZ; charset=utf-8"]
)
def test_a_boundary_is_found_however_it_is_spelled(content_type: str) -> None:
    assert read(form(("a", b"1")), content_type=content_type) == [("a", b"1")]


def test_names_are_read_with_their_escapes() -> None:
    reader = MultipartReader(TYPE)
    head = b'--XYZ\r\ncontent-disposition: form-data; name="file"; filename="\xc3\xbc %22\\"x.jsonl"\r\n\r\n'
    (begun,) = reader.feed(head)
    assert begun == PartBegun("file", 'ü ""x.jsonl')
