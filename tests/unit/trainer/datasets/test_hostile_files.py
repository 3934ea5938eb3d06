"""Whatever a file holds, a reader gives rows, problems or one FileError, and every row can be written and read back."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kala.trainer.v1 import dataset_pb2 as pb
from services.trainer.datasets.contamination import Contamination
from services.trainer.datasets.problems import FileError
from services.trainer.datasets.readers import READERS
from services.trainer.datasets.rows import Row

FORMS = [pb.SourceFormat.Name(form) for form in READERS]
FIELDS = [
    "messages",
    "role",
    "content",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "text",
    "label",
    "question",
    "answer",
    "problem",
    "solution",
    "steps",
    "unit",
    "code",
    "test_list",
    "task_id",
    "claim",
    "sources",
    "before",
    "after",
    "buggy",
    "fixed",
    "vulnerable",
    "explanation",
    "cwe",
    "subject",
    "category",
]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS
    | st.sampled_from(["user", "assistant", "Human: x\n\nAssistant: y", "#### 5", "\\boxed{1}", "supported"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(["rows.jsonl", "rows.json", "code.py", "code.tar.gz", "Posts.xml"])


def rows_of(form: str, data: bytes, name: str) -> list[Row]:
    try:
        found = list(READERS[pb.SourceFormat.Value(form)](io.BytesIO(data), name))
    except FileError:
        return []
    assert all((each.row is None) != (each.problem is None) for each in found)
    return [each.row for each in found if each.row is not None]


def hold(rows: list[Row]) -> None:
    for row in rows:
        line = row.line("source").encode()
        assert b"\n" not in line
        assert json.loads(line)["id"] == row.digest().hex()[:32]
        Contamination().finds(row)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=st.lists(VALUES, max_size=4), name=NAMES)
def test_any_json_is_read_or_refused(form: str, rows: list[object], name: str) -> None:
    hold(rows_of(form, "".join(json.dumps(row) + "\n" for row in rows).encode(), name))
    hold(rows_of(form, json.dumps(rows).encode(), name))


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300), name=NAMES)
def test_any_bytes_are_read_or_refused(form: str, data: bytes, name: str) -> None:
    hold(rows_of(form, data, name))


@settings(max_examples=100, deadline=None)
@given(
    attributes=st.dictionaries(
        st.sampled_from(["AcceptedAnswerId", "ParentId", "Title", "Body", "Score", "Tags"]),
        st.sampled_from(["1", "2", "3", "-1", "", "x", "&lt;p&gt;text&lt;pre&gt;", "&#xD;", "¹"]),
    ),
    number=st.sampled_from(["1", "3", "9" * 30, "x", "¹", ""]),
    kind=st.sampled_from(["1", "2"]),
)
def test_any_post_is_read_or_refused(attributes: dict[str, str], number: str, kind: str) -> None:
    given = "".join(f' {name}="{value}"' for name, value in attributes.items())
    given += f' Id="{number}" PostTypeId="{kind}"'
    posts = f'<posts><row Id="2" PostTypeId="1" AcceptedAnswerId="3" Title="t"/><row{given}/></posts>'
    hold(rows_of("SOURCE_FORMAT_STACK_OVERFLOW", posts.encode(), "Posts.xml"))
