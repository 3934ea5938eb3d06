from __future__ import annotations

import pytest

from kala.errors import ConstitutionError
from kala.ethics.amendment_diff import MAX_TEXT_BYTES, FileChange, file_changes, file_lines, law_changes

LAWS = b"""laws:
  - {number: 0, name: Humanity, text: "Do no harm.", categories: [a, b]}
  - {number: 1, name: People, text: "Keep safe.", categories: [c]}
"""
BLOCKS = b"""law: 1
unless: [x]
blocks:
  - {id: one, pattern: p}
  - {id: two, pattern: p}
"""
FILES = {"laws.yaml": LAWS, "hard_blocks/law1.yaml": BLOCKS, "other.bin": b"\0"}


def lines_of(number: int, changed: dict[str, bytes]) -> list[str]:
    return {law.number: list(law.lines) for law in law_changes(FILES, FILES | changed)}[number]


def test_laws_that_stay_have_no_lines() -> None:
    assert [(law.number, law.name, law.lines) for law in law_changes(FILES, FILES)] == [
        (0, "Humanity", ()),
        (1, "People", ()),
    ]


def test_another_wording_is_shown_from_and_to() -> None:
    assert lines_of(0, {"laws.yaml": LAWS.replace(b"Do no harm", b"Do good")}) == [
        "- text: Do no harm.",
        "+ text: Do good.",
    ]


def test_categories_that_come_and_go_are_listed() -> None:
    assert lines_of(0, {"laws.yaml": LAWS.replace(b"[a, b]", b"[b, z]")}) == [
        "- categories: a",
        "+ categories: z",
    ]
    assert lines_of(0, {"laws.yaml": LAWS.replace(b"[a, b]", b"[b, a]")}) == [
        "~ categories: in another order"
    ]


def test_hard_blocks_are_told_by_id() -> None:
    changed = BLOCKS.replace(b"id: one", b"id: three").replace(b"two, pattern: p", b"two, pattern: q")
    assert lines_of(1, {"hard_blocks/law1.yaml": changed}) == [
        "+ hard blocks added: three",
        "- hard blocks removed: one",
        "~ hard blocks changed: two",
    ]


def test_what_all_blocks_of_a_law_share_is_told() -> None:
    assert lines_of(1, {"hard_blocks/law1.yaml": BLOCKS.replace(b"[x]", b"[y]")}) == [
        "~ what all its hard blocks share"
    ]


def test_a_law_that_is_gone_and_one_that_is_new_are_both_told() -> None:
    changed = LAWS.replace(b"number: 1", b"number: 2")
    assert lines_of(1, {"laws.yaml": changed})[0].startswith("- categories")
    assert any(line.startswith("+ text: Keep safe") for line in lines_of(2, {"laws.yaml": changed}))


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("laws.yaml", b"laws: ["),
        ("laws.yaml", b"laws: 5"),
        ("laws.yaml", b"\xff\xfe\xfd"),
        ("laws.yaml", b"laws: [{name: x}]"),
        ("hard_blocks/law1.yaml", b"- x"),
        ("hard_blocks/law1.yaml", b"law: 1"),
        ("hard_blocks/law1.yaml", b""),
    ],
)
def test_a_file_that_is_no_law_is_named(path: str, content: bytes) -> None:
    with pytest.raises(ConstitutionError, match=path):
        law_changes(FILES, FILES | {path: content})


def test_every_kind_of_change_is_found() -> None:
    before, after = {"a": b"1", "b": b"1", "c": b"1"}, {"b": b"2", "c": b"1", "d": b"1"}
    assert [(change.path, change.kind) for change in file_changes(before, after)] == [
        ("a", "removed"),
        ("b", "changed"),
        ("d", "added"),
    ]


def test_a_text_is_shown_as_a_unified_diff() -> None:
    assert file_lines(FileChange("a.txt", b"one\ntwo\n", b"one\n2\n")) == [
        "changed a.txt",
        "  @@ -1,3 +1,3 @@",
        "   one",
        "  -two",
        "  +2",
        "   ",
    ]


@pytest.mark.parametrize(
    ("after", "line"),
    [
        ("safe\u202eelif\n", "  +safe\\u202eelif"),
        ("safe\u200b\n", "  +safe\\u200b"),
        ("safe\x1b[8m\n", "  +safe\\x1b[8m"),
        ("safe\r\n", "  +safe\\r"),
        ("sa\u2028fe\n", "  +sa\\u2028fe"),
        ("safe", "  -"),
    ],
    ids=["direction", "zero width", "terminal", "carriage return", "line separator", "no last line feed"],
)
def test_what_a_terminal_would_hide_is_spelled_out(after: str, line: str) -> None:
    assert line in file_lines(FileChange("a.txt", b"safe\n", after.encode()))


@pytest.mark.parametrize(
    "content", [b"\0", b"\xff", b"x" * (MAX_TEXT_BYTES + 1)], ids=["zero byte", "not UTF-8", "long"]
)
def test_what_nobody_reads_is_told_by_size_and_digest(content: bytes) -> None:
    lines = file_lines(FileChange("model.onnx", b"old", content))
    assert lines[0] == "changed model.onnx"
    assert lines[1].startswith("  - 3 bytes, SHA-256 ")
    assert lines[2].startswith(f"  + {len(content):,} bytes, SHA-256 ")
    assert len(file_lines(FileChange("model.onnx", None, content))) == 2
