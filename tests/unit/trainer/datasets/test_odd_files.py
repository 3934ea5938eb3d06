"""Files that are right in an odd way, or wrong on purpose: nothing is lost silently, nothing takes for ever, nothing crashes."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from time import process_time
from typing import Any

import pytest

from kala.common.v1.reference_pb2 import ContentReference
from kala.trainer.v1 import dataset_pb2 as pb
from services.trainer.datasets.files import read_through
from services.trainer.datasets.formats import names_test_part
from services.trainer.datasets.problems import FileError, Found, RowError
from services.trainer.datasets.readers import READERS
from services.trainer.datasets.readers.html_text import text_of_html
from services.trainer.datasets.readers.json_rows import MAX_ROW_BYTES, json_rows

DOC = '"""Says what is what in the world of things."""'
ROW = {"question": "Why?", "answer": "Because."}


def read(form: str, data: bytes, name: str = "rows.jsonl") -> list[Found]:
    return list(READERS[pb.SourceFormat.Value(f"SOURCE_FORMAT_{form}")](io.BytesIO(data), name))


def values(data: bytes) -> list[Any]:
    return [value for _, value in json_rows(io.BytesIO(data))]


def archive(*members: tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form, encoding="latin-1") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def code(number: int) -> bytes:
    return f"def f{number}(x):\n    {DOC}\n    return x + {number}\n".encode()


@pytest.mark.parametrize("indent", [None, 1], ids=["one line", "many lines"])
def test_an_array_longer_than_a_row_may_be_is_read_to_its_end(indent: int | None) -> None:
    rows = [{"text": "é" * 500, "number": number, "share": number / 7} for number in range(3_000)]
    data = json.dumps(rows, ensure_ascii=False, indent=indent).encode()

    assert len(data) > 2 * MAX_ROW_BYTES
    assert values(b"\xef\xbb\xbf  " + data + b"\n ") == rows


@pytest.mark.parametrize(
    ("data", "kind", "before"),
    [
        (b"[1, 2", "NOT_JSON", 2),
        (b"[1, 2,]", "NOT_JSON", 2),
        (b"[1 2]", "NOT_JSON", 1),
        (b"[1, 2] {}", "NOT_JSON", 2),
        (b"[1]\n[2]\n", "NOT_JSON", 1),
        (b"[" * 100_000, "NOT_JSON", 0),
        (b"[" + b"1" * 5_000 + b"]", "NOT_JSON", 0),
        (b"[ ]", "FILE_EMPTY", 0),
        (b'["a", "\xff"]', "NOT_UTF8", 0),
        (b'["a", "\xc3', "NOT_UTF8", 1),
        (b'[1, "' + b"a" * 3 * MAX_ROW_BYTES + b'"]', "TOO_LONG", 1),
    ],
    ids=[
        "cut",
        "comma",
        "no comma",
        "more",
        "two",
        "deep",
        "long number",
        "empty",
        "latin",
        "cut letter",
        "gigantic",
    ],
)
def test_an_array_that_is_none_is_a_damaged_file_after_its_rows(data: bytes, kind: str, before: int) -> None:
    rows = json_rows(io.BytesIO(data))
    found: list[object] = []

    with pytest.raises(FileError) as caught:
        found.extend(row for row in rows)

    assert (caught.value.kind, len(found)) == (kind, before)


def test_the_first_three_bytes_are_lines_like_all_others() -> None:
    (first, row), (second, other) = json_rows(io.BytesIO(b'5\n{"a":1}\n'))
    (third, blank), (fourth, last) = json_rows(io.BytesIO(b'\n{"a":1}\n'))

    assert (first, row, second, other) == (1, 5, 2, {"a": 1})
    assert isinstance(blank, RowError)
    assert (third, fourth, last) == (1, 2, {"a": 1})


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("SECURE_CODING", {**ROW, "cwe": "\ud800"}),
        ("SECURE_CODING", {**ROW, "cwe": "a\0"}),
        ("BUG_FIX", {"before": "a", "after": "b", "language": "\udc00"}),
        ("MATH", {"problem": "x", "solution": "\\boxed{1}", "level": "\ud800"}),
        ("TEXTBOOK", {"problem": "x", "steps": "y", "answer": "1", "unit": "\ud800"}),
    ],
    ids=["cwe", "NUL", "language", "level", "unit"],
)
def test_a_lone_surrogate_beside_the_text_is_a_wrong_row_and_no_crash(form: str, row: dict[str, str]) -> None:
    (found,) = read(form, json.dumps(row).encode())

    assert found.problem is not None
    assert found.problem.kind == "WRONG_VALUE"


@pytest.mark.parametrize("end", ["\f", "\x1c", "\u2028", "\x85", "\v"], ids=["FF", "FS", "LS", "NEL", "VT"])
def test_a_function_is_the_one_that_its_description_belongs_to(end: str) -> None:
    source = f"# a{end}b\n\n".encode() + code(1) + b"\n" + code(2)
    (one, two) = read("CODE_WITH_DOCS", source, "a.py")

    for number, found in ((1, one), (2, two)):
        assert found.row is not None
        assert found.row.messages[1].content == f"```python\ndef f{number}(x):\n    return x + {number}\n```"


def test_a_file_of_many_functions_takes_no_square_of_the_time() -> None:
    source = b"\n".join(code(number) for number in range(3_000))
    start = process_time()

    assert len(read("CODE_WITH_DOCS", source, "a.py")) == 3_000
    assert process_time() - start < 10


@pytest.mark.parametrize(
    "html",
    ["<a ", "<a/", "<a b='", "<!--", "<?", "</", "<", " ", "&#", "a \t", "<pre>\n", "\n", "<pre>a"],
)
def test_no_post_takes_the_square_of_its_length(html: str) -> None:
    start = process_time()

    text_of_html("<pre>x" + html * (1_000_000 // len(html)) + "y</pre>")

    assert process_time() - start < 10


def test_a_post_with_a_reference_of_thousands_of_digits_is_read() -> None:
    assert text_of_html("<p>a &#" + "1" * 5_000 + "; b</p>").startswith("a &#111")


def test_a_comment_of_a_post_is_no_text() -> None:
    assert text_of_html("<!-- language: lang-py --><p>a < b <!-- c <i> --> &amp;<br/>d</p>") == "a < b  &\nd"


def test_a_posts_author_is_one_line_and_no_part_of_the_answer() -> None:
    data = (
        '<posts><row Id="1" PostTypeId="1" AcceptedAnswerId="2" Title="T" Body="Q"/>'
        '<row Id="2" PostTypeId="2" OwnerDisplayName="Ann&#10;Say this" Body="A"/></posts>'
    )
    (found,) = read("STACK_OVERFLOW", data.encode(), "Posts.xml")

    assert found.row is not None
    assert found.row.messages[1].content == "A"
    assert found.row.facts["attribution"].startswith("Ann Say this, ")


def test_a_name_that_is_no_text_is_told_in_characters_that_are() -> None:
    (found,) = read("CODE_WITH_DOCS", archive(("caf\xe9\x07.py", code(1)), form=tarfile.GNU_FORMAT), "a.tar")

    assert found.row is not None
    assert found.row.facts["path"] == "caf\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}.py"
    assert found.row.line("source").encode()


def test_a_very_long_name_is_not_told_whole() -> None:
    (found,) = read("CODE_WITH_DOCS", archive(("d/" * 50_000 + "a.py", code(1))), "a.tar")

    assert len(found.file) <= 1_024


@pytest.mark.parametrize("damage", ["cut", "cut in a header", "overwritten"])
def test_an_archive_that_is_cut_or_damaged_loses_no_member_silently(damage: str) -> None:
    data = bytearray(archive(("a.py", code(1)), ("b.py", code(2)), form=tarfile.USTAR_FORMAT))
    if damage == "overwritten":
        data[1024:1030] = b"xxxxxx"
    cut = {"cut": 1024, "cut in a header": 1100}.get(damage, len(data))

    with pytest.raises(FileError, match="cut or damaged"):
        read("CODE_WITH_DOCS", bytes(data[:cut]), "a.tar")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_gigantic_description_of_a_member_is_never_read_into_memory(kind: bytes) -> None:
    member = tarfile.TarInfo("a.py")
    member.type, member.size = kind, 8 * 1024**3

    with pytest.raises(FileError, match="describes an entry in 8,589,934,592 bytes"):
        read("CODE_WITH_DOCS", member.tobuf(tarfile.GNU_FORMAT) + bytes(4096), "a.tar")


def test_halves_of_pairs_wait_on_disk_and_are_found_again() -> None:
    befores = [(f"buggy/{number}.py", code(number)) for number in range(50)]
    afters = [(f"fixed/{number}.py", code(number + 1)) for number in range(50)]
    found = read("BUG_FIX", archive(*befores, *afters), "a.tar")

    assert [each.number for each in found] == list(range(1, 51))
    assert found[49].row is not None
    assert "return x + 49" in found[49].row.messages[0].content
    assert "return x + 50" in found[49].row.messages[1].content


@pytest.mark.parametrize(
    "name", ["MATH/test/algebra/1.json", "gsm8k_test.jsonl", "Test/train.jsonl", "a/evaluation/x.json"]
)
def test_a_test_part_is_known_by_its_folders_too(name: str) -> None:
    assert names_test_part(name)


@pytest.mark.parametrize("name", ["MATH/train/algebra/1.json", "my-test-data/train.jsonl", "contest/1.jsonl"])
def test_a_training_part_is_none(name: str) -> None:
    assert not names_test_part(name)


def test_damage_of_a_packed_array_is_told_of_the_file() -> None:
    data = gzip.compress(json.dumps([ROW] * 10).encode())[:-9]

    stream, _ = read_through(ContentReference(name="a"), io.BytesIO(data), lambda _: None)

    with pytest.raises(FileError) as caught:
        list(json_rows(stream))
    assert caught.value.kind == "FILE_DAMAGED"
