"""Every format: what becomes of a right row, and what is said of a wrong one."""

from __future__ import annotations

import io
import json
import re
import tarfile
from typing import Any

import pytest

from kala.trainer.v1 import dataset_pb2 as pb
from services.trainer.datasets.formats import KINDS
from services.trainer.datasets.problems import FileError, Found
from services.trainer.datasets.readers import READERS
from services.trainer.datasets.readers.exercises import boxed
from services.trainer.datasets.readers.html_text import text_of_html
from services.trainer.datasets.readers.json_rows import MAX_ROW_BYTES


def read(form: str, data: bytes, name: str = "rows.jsonl") -> list[Found]:
    reader = READERS[pb.SourceFormat.Value(f"SOURCE_FORMAT_{form}")]
    return list(reader(io.BytesIO(data), name))


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def one(form: str, row: Any) -> dict[str, Any]:
    (found,) = read(form, lines(row))
    assert found.row is not None, found.problem
    return json.loads(found.row.line("source"))


def problem(form: str, row: Any) -> tuple[str, str]:
    (found,) = read(form, lines(row))
    assert found.problem is not None
    return found.problem.kind, found.problem.message


def test_every_format_that_may_be_trained_on_has_a_reader() -> None:
    assert set(READERS) == set(KINDS) == set(pb.SourceFormat.values()) - {0, pb.SOURCE_FORMAT_HUMANEVAL}


CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def test_messages_keep_category_and_person() -> None:
    row = one("MESSAGES", {"messages": CHAT, "category": "small_talk", "subject": "ab" * 32})

    assert row["messages"] == CHAT
    assert (row["category"], row["subject"]) == ("small_talk", "ab" * 32)


def test_a_subject_that_is_no_pseudonym_is_no_person() -> None:
    assert "subject" not in one("MESSAGES", {"messages": CHAT, "subject": "algebra"})


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ("hi", "messages is a text, not a list"),
        ([{"role": "tool", "content": "x"}], r"messages\[0\].role is 'tool', not one of"),
        (
            [*CHAT, {"role": "assistant", "content": "x"}],
            r"messages\[2\].role: assistant speaks twice in a row",
        ),
        ([*CHAT, {"role": "system", "content": "x"}], "a system message comes first or not at all"),
        (CHAT[:1], "messages must end with a message of the assistant"),
        ([{"role": "user", "content": "  "}, CHAT[1]], r"messages\[0\].content is empty"),
        ([{"role": "user", "content": 7}, CHAT[1]], r"messages\[0\].content is a number, not a text"),
        ([{"role": "user", "content": "a\0b"}, CHAT[1]], "holds a character that is no text"),
        ([{"role": "user", "content": "\ud800"}, CHAT[1]], "holds a character that is no text"),
        ([{"role": ["user"], "content": "x"}], "not one of"),
        (CHAT * 129, "at most 256 are read"),
    ],
)
def test_wrong_messages_are_named(messages: Any, message: str) -> None:
    assert re.search(message, problem("MESSAGES", {"messages": messages})[1])


def test_prompt_and_completion_become_messages() -> None:
    assert one("PROMPT_COMPLETION", {"prompt": "Hi", "completion": "Hello"})["messages"] == CHAT
    assert one("PROMPT_COMPLETION", {"prompt": CHAT[:1], "completion": CHAT[1:]})["messages"] == CHAT


def test_preferences_have_one_answer_each() -> None:
    row = one("PREFERENCE", {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"})

    assert row["prompt"] == CHAT[:1]
    assert row["chosen"] == CHAT[1:]
    assert (
        problem("PREFERENCE", {"prompt": "Hi", "chosen": "x", "rejected": "x"})[1]
        == "chosen and rejected are equal"
    )
    assert problem("PREFERENCE", {"prompt": "Hi", "chosen": [*CHAT], "rejected": "x"})[1].startswith("chosen")


def test_two_dialogues_of_hh_are_split_where_they_part() -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: A joke?\n\nAssistant: "
    row = one("PREFERENCE", {"chosen": start + "Knock knock.", "rejected": start + "No."})

    assert [message["content"] for message in row["prompt"]] == ["Hi", "Hello", "A joke?"]
    assert row["chosen"][0]["content"] == "Knock knock."


def test_labels_are_texts_and_claims_have_three() -> None:
    assert one("LABELLED", {"text": "good", "label": 1})["label"] == "1"
    row = one("CLAIMS", {"claim": "Rain is wet.", "sources": ["A book.", "A cloud."], "label": "Supported"})
    assert row["text"] == "Claim: Rain is wet.\nSources:\n[1] A book.\n[2] A cloud."
    assert row["label"] == "supported"
    assert (
        "not one of supported, refuted, unsure"
        in problem("CLAIMS", {"claim": "x", "sources": ["y"], "label": "no"})[1]
    )


def test_gsm8k_loses_its_calculator_marks_and_says_its_answer() -> None:
    row = one("GSM8K", {"question": "6 apples, half eaten?", "answer": "6/2=<<6/2=3>>3 left.\n#### 3"})

    assert row["messages"][1]["content"] == "6/2=3 left.\nThe answer is 3."
    assert problem("GSM8K", {"question": "x", "answer": "3"})[0] == "WRONG_VALUE"


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\boxed 7", "7"),
        (r"\boxed{broken", ""),
        ("none", ""),
    ],
)
def test_the_answer_of_math_stands_in_its_last_box(solution: str, answer: str) -> None:
    assert boxed(solution) == answer


def test_mbpps_test_part_is_refused_by_its_number() -> None:
    row = {
        "text": "Add two.",
        "code": "def add(a, b):\r\n    return a + b",
        "test_list": ["assert add(1, 2) == 3"],
    }

    assert "assert add(1, 2) == 3" in one("MBPP", {**row, "task_id": 601})["messages"][0]["content"]
    assert "\r" not in one("MBPP", {**row, "task_id": "601"})["messages"][1]["content"]
    for test in (11, "11", " 510 ", 11.0):
        assert "evaluation only" in problem("MBPP", {**row, "task_id": test})[1]


@pytest.mark.parametrize(
    "odd", [{}, {"task_id": None}, {"task_id": True}, {"task_id": "x"}, {"task_id": -600}]
)
def test_a_row_of_mbpp_that_hides_its_number_is_refused(odd: dict[str, Any]) -> None:
    kind, _ = problem("MBPP", {"text": "Add.", "code": "pass", "test_list": ["assert f()"], **odd})

    assert kind in {"MISSING_FIELD", "WRONG_VALUE"}


@pytest.mark.parametrize("form", ["PROMPT_COMPLETION", "MBPP", "SECURE_CODING"])
def test_humaneval_is_known_in_any_dress(form: str) -> None:
    row = {
        "task_id": "HumanEval/3",
        "prompt": "x",
        "completion": "y",
        "text": "x",
        "code": "y",
        "question": "x",
        "answer": "y",
    }

    assert problem(form, row)[0] == "CONTAMINATED"


def test_a_textbooks_number_needs_a_unit() -> None:
    row = {"problem": "How far?", "steps": ["s = v t", "s = 3 m/s x 2 s"], "answer": "6"}

    answer = one("TEXTBOOK", {**row, "unit": "m"})["messages"][1]["content"]
    assert answer == "1. s = v t\n2. s = 3 m/s x 2 s\nResult: 6 m"
    assert problem("TEXTBOOK", row) == ("MISSING_FIELD", "unit is missing; write 1 for a number without one")


def test_secure_coding_is_a_question_or_a_weakness_with_its_cure() -> None:
    row = one(
        "SECURE_CODING",
        {"vulnerable": "eval(x)", "fixed": "int(x)", "explanation": "eval runs all.", "cwe": "CWE-95"},
    )

    assert row["facts"] == {"cwe": "CWE-95"}
    assert row["messages"][1]["content"] == "eval runs all.\n```\nint(x)\n```"


# JSON files


def test_an_array_is_read_like_lines() -> None:
    assert len(read("MESSAGES", json.dumps([{"messages": CHAT}] * 3).encode(), "rows.json")) == 3


def test_a_byte_order_mark_is_no_part_of_the_first_row() -> None:
    assert read("MESSAGES", b"\xef\xbb\xbf" + lines({"messages": CHAT}))[0].row is not None


def test_a_gigantic_line_is_one_wrong_row_and_the_next_is_read() -> None:
    data = b'{"messages": "' + b"x" * (3 * MAX_ROW_BYTES) + b'"}\n' + lines({"messages": CHAT})

    first, second = read("MESSAGES", data)
    assert first.problem is not None
    assert (first.number, first.problem.kind) == (1, "TOO_LONG")
    assert second.number == 2
    assert second.row is not None


def test_json_nested_without_end_is_a_wrong_row() -> None:
    (found,) = read("MESSAGES", b'{"messages": ' + b"[" * 100_000 + b"\n")

    assert found.problem is not None
    assert found.problem.kind == "NOT_JSON"


def test_a_problem_never_quotes_a_whole_row() -> None:
    assert len(problem("MESSAGES", {"messages": [{"role": "secret" * 1000, "content": "x"}]})[1]) < 200


@pytest.mark.parametrize(
    ("data", "kind"), [(b"", "FILE_EMPTY"), (b"[]", "FILE_EMPTY"), (b"[\xff]", "NOT_UTF8")]
)
def test_a_file_without_rows_is_no_source(data: bytes, kind: str) -> None:
    with pytest.raises(FileError) as error:
        read("MESSAGES", data)

    assert error.value.kind == kind


# Stack Overflow


def posts(*rows: str) -> bytes:
    return ('<?xml version="1.0" encoding="utf-8"?>\n<posts>\n' + "\n".join(rows) + "\n</posts>\n").encode()


QUESTION = (
    '<row Id="1" PostTypeId="1" AcceptedAnswerId="3" Title="Sort a list?" '
    'Body="&lt;p&gt;How do I sort &lt;code&gt;x&lt;/code&gt;?&lt;/p&gt;" Tags="&lt;python&gt;&lt;list&gt;" />'
)
REJECTED = '<row Id="2" PostTypeId="2" ParentId="1" Score="9" Body="&lt;p&gt;Do not.&lt;/p&gt;" />'
ACCEPTED = (
    '<row Id="3" PostTypeId="2" ParentId="1" Score="4" OwnerUserId="77" '
    'Body="&lt;pre&gt;&lt;code&gt;x.sort()&#xA;&lt;/code&gt;&lt;/pre&gt;&lt;p&gt;Done &amp;amp; dusted.&lt;/p&gt;" />'
)


@pytest.mark.parametrize("order", [(QUESTION, REJECTED, ACCEPTED), (REJECTED, QUESTION, ACCEPTED)])
def test_a_question_gets_its_accepted_answer_with_whom_to_name(order: tuple[str, ...]) -> None:
    (found,) = read("STACK_OVERFLOW", posts(*order), "Posts.xml")

    assert found.row is not None
    assert found.row.messages[0].content == "Sort a list?\n\nHow do I sort `x`?"
    assert found.row.messages[1].content == "```\nx.sort()\n```\n\nDone & dusted."
    assert found.row.facts == {"attribution": "user 77, https://stackoverflow.com/a/3", "tags": "python,list"}


def test_an_accepted_answer_that_was_voted_down_is_left_out() -> None:
    (found,) = read(
        "STACK_OVERFLOW", posts(QUESTION, ACCEPTED.replace('Score="4"', 'Score="-2"')), "Posts.xml"
    )

    assert found.problem is not None
    assert "voted down" in found.problem.message


BOMB = b'<?xml version="1.0"?><!DOCTYPE posts [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><posts>&b;</posts>'
OUTSIDE = b'<?xml version="1.0"?><!DOCTYPE posts SYSTEM "file:///etc/passwd"><posts/>'


@pytest.mark.parametrize("data", [BOMB, OUTSIDE], ids=["entities", "outside"])
def test_xml_that_declares_anything_is_refused(data: bytes) -> None:
    with pytest.raises(FileError, match="declares a document type"):
        read("STACK_OVERFLOW", data, "Posts.xml")


@pytest.mark.parametrize("data", [posts(QUESTION)[:-40], b"no xml", b"<posts>" + b" " * 2_000_000])
def test_broken_or_endless_xml_is_a_damaged_file(data: bytes) -> None:
    with pytest.raises(FileError):
        read("STACK_OVERFLOW", data, "Posts.xml")


def test_html_keeps_text_and_code() -> None:
    assert text_of_html("<ul><li>a</li><li>b &lt; c</li></ul>") == "- a\n- b < c"


# Code


def archive(**files: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name.replace("__", "/") + ".py")
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
        link = tarfile.TarInfo("before/link.py")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return buffer.getvalue()


SOURCE = '''
class A:
    @staticmethod
    def add(left: int, right: int) -> int:
        """Adds two whole numbers and returns their sum."""
        return left + right

    def short(self) -> None:
        """Too short."""
        return None
'''


def test_a_documented_function_is_asked_for_by_its_description() -> None:
    (found,) = read("CODE_WITH_DOCS", SOURCE.encode(), "a.py")

    assert found.row is not None
    assert found.row.messages[0].content.endswith("`add`:\nAdds two whole numbers and returns their sum.")
    assert found.row.messages[1].content == (
        "```python\ndef add(left: int, right: int) -> int:\n    return left + right\n```"
    )


def test_code_in_an_archive_is_read_without_unpacking_to_disk() -> None:
    found = read("CODE_WITH_DOCS", archive(a__b=SOURCE, a__broken="def ("), "code.tar.gz")

    assert [each.problem is None for each in found] == [True, False]


def test_pairs_of_an_archive_are_found_by_their_folders() -> None:
    files = {"before__x": "a = 1\n", "after__x": "a = 2\n", "before__same": "b\n", "after__same": "b\n"}
    right, wrong = sorted(read("BUG_FIX", archive(**files), "fixes.tar"), key=lambda each: each.row is None)

    assert right.row is not None
    assert "a = 1" in right.row.messages[0].content
    assert wrong.problem is not None
    assert wrong.problem.message == "before and after are equal"


def test_a_damaged_archive_is_no_source() -> None:
    with pytest.raises(FileError):
        read("BUG_FIX", archive(before__x="a")[:300], "fixes.tar")
