"""A result has the shape that its tool says, whatever a program wrote, and never more bytes than the contract takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kala.errors import (
    AlreadyExistsError,
    InternalError,
    KalaError,
    NotFoundError,
    ResourceExhaustedError,
)
from services.tools.files.model import (
    Artifact,
    Changes,
    FileInfo,
    FileKind,
    FilePart,
    Reference,
    Removed,
    Skipped,
    WriteMode,
    Written,
)
from services.tools.files.workspace_files import FilePage, WorkspaceFiles
from services.tools.policy.loading import read_policy
from services.tools.policy.model import RefusedByPolicyError, Risk
from services.tools.sandbox.model import Ended, Language, Status, Usage
from services.tools.toolbox.calls import Toolbox
from services.tools.toolbox.definitions import DEFINITIONS
from services.tools.toolbox.model import FileCall, FileVerb, ProgramCall
from services.tools.toolbox.results import MAX_RESULT_BYTES, fitting_text

TOOLBOX = Toolbox(read_policy())
SCHEMAS = {each.name: json.loads(each.result_schema) for each in DEFINITIONS}
CALL = ProgramCall("shell", Risk.LOW, Language.SHELL, b"true\n")


def result(
    ended: Ended, stdout: bytes = b"", stderr: bytes = b"", **more: Any
) -> dict[str, Any]:  # Any: JSON
    text = TOOLBOX.result(CALL, ended, stdout=stdout, stderr=stderr, **more)
    assert len(text.encode()) <= MAX_RESULT_BYTES
    found: dict[str, Any] = json.loads(text)
    for name in ("shell", "code_execution"):
        jsonschema.validate(found, SCHEMAS[name], cls=jsonschema.Draft202012Validator)
    return found


def test_a_program_that_ended_well_succeeded() -> None:
    found = result(Ended(Status.OK, 0, None, "", Usage(wall_seconds=0.12345, output_bytes=3)), b"hi\n")
    assert found == {
        "success": True, "status": "ok", "exit_code": 0, "output": "hi\n", "error": "", "reason": "",
        "output_truncated": False, "artifacts": [], "written": [], "deleted": [], "skipped": [], "wall_seconds": 0.123,
    }  # fmt: skip


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.OK])
def test_any_other_end_is_none(status: Status) -> None:
    found = result(Ended(status, None, 9, "why", Usage()), b"", b"oh")
    assert not found["success"]
    assert (found["status"], found["error"], found["reason"]) == (status.value, "oh", "why")


@pytest.mark.parametrize(
    "data", [b"\xff\xfe", b"\x00\x01\x1b[2J", b"\xed\xa0\x80", bytes(range(256)), "\u202e\u2028".encode()]
)
def test_binary_output_is_shown_as_text(data: bytes) -> None:
    found = result(Ended(Status.OK, 0, None, "", Usage(output_bytes=len(data))), data)
    assert found["output"] == data.decode(errors="replace")


@pytest.mark.parametrize("byte", [b"\0", b"a", b"\xff", b'"', "\U0001f600".encode()])
def test_output_is_cut_to_fit_and_says_so(byte: bytes) -> None:
    data = byte * (1024 * 1024)
    many = [Artifact(f"n{i}", "\x01" * 1000, b"d" * 32, 1, "text/plain") for i in range(256)]
    changes = Changes(
        written=tuple(Reference("\x02" * 1000, b"d" * 32, 1) for _ in range(1000)),
        deleted=("\x03" * 1000,) * 1000,
        skipped=(Skipped("\x04" * 1000, "\x05" * 1000),) * 1000,
    )
    ended = Ended(Status.OUTPUT, None, 9, "\x06" * 1_000_000, Usage(output_bytes=2 * len(data)))
    found = result(ended, data, data, artifacts=many, changes=changes)
    assert found["output_truncated"]
    assert len(found["output"]) > 50_000
    assert 0 < len(found["artifacts"]) < 256


def test_output_that_was_not_all_passed_on_counts_as_cut() -> None:
    assert result(Ended(Status.OK, 0, None, "", Usage(output_bytes=4)), b"abc")["output_truncated"]


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=300), most=st.integers(2, 200))
def test_text_that_fits_is_whole_and_other_text_is_a_beginning(text: str, most: int) -> None:
    shown, is_cut = fitting_text(text, most)
    assert text.startswith(shown)
    assert len(json.dumps(shown, ensure_ascii=False).encode()) <= most
    assert is_cut == (shown != text)


class ScriptedFiles:
    """Files of a workspace that are as the test says."""

    def __init__(
        self, *, infos: Sequence[FileInfo] = (), data: bytes = b"", fails: KalaError | None = None
    ) -> None:
        self._infos = tuple(infos)
        self._data = data
        self._fails = fails

    async def list(self, path: str = "", *, recursive: bool = False, page_size: int = 0) -> FilePage:
        self._maybe_fail()
        return FilePage(self._infos[:page_size], "more" if len(self._infos) > page_size else "")

    async def read(self, path: str, *, offset: int = 0, max_bytes: int = 0) -> FilePart:
        self._maybe_fail()
        end = offset + max_bytes
        info = FileInfo(path, FileKind.REGULAR, len(self._data), 0.0)
        return FilePart(info, self._data[offset:end], end if end < len(self._data) else None)

    async def write(self, path: str, data: bytes, *, mode: WriteMode) -> Written:
        self._maybe_fail()
        return Written(FileInfo(path, FileKind.REGULAR, len(data), 0.0, b"d" * 32), created=True)

    async def delete(self, path: str, *, recursive: bool = False) -> Removed:
        self._maybe_fail()
        return Removed(inodes=3)

    def _maybe_fail(self) -> None:
        if self._fails is not None:
            raise self._fails


async def operated(call: FileCall, files: ScriptedFiles) -> tuple[dict[str, Any], str]:
    done = await TOOLBOX.operate(call, cast(WorkspaceFiles, files))
    assert len(done.result_json.encode()) <= MAX_RESULT_BYTES
    found: dict[str, Any] = json.loads(done.result_json)
    jsonschema.validate(found, SCHEMAS["filesystem"], cls=jsonschema.Draft202012Validator)
    assert found["success"] == (not done.reason)
    return found, done.reason


def call(verb: FileVerb, **more: Any) -> FileCall:
    return FileCall("filesystem", Risk.LOW, verb, "a", **more)


async def test_a_list_is_readable_and_structured() -> None:
    files = ScriptedFiles(
        infos=[FileInfo("d", FileKind.DIRECTORY, 0, 0.0), FileInfo("f", FileKind.REGULAR, 7, 0.0)]
    )
    found, _ = await operated(call(FileVerb.LIST, most=10), files)
    assert found["output"] == "d/\nf\n"
    assert found["entries"][1] == {"path": "f", "kind": "regular", "bytes": 7}
    assert found["more"] is False
    assert (await operated(call(FileVerb.LIST, most=1), files))[0]["more"] is True


async def test_a_list_of_hostile_names_still_fits() -> None:
    files = ScriptedFiles(infos=[FileInfo("\x01" * 1024, FileKind.OTHER, 0, 0.0)] * 1000)
    found, _ = await operated(call(FileVerb.LIST, most=1000), files)
    assert found["more"] is True
    assert len(found["entries"]) > 10


async def test_reading_in_parts_never_breaks_a_character() -> None:
    text = "a\u00e9\u20ac\U0001f600" * 50
    files, offset, parts = ScriptedFiles(data=text.encode()), 0, []
    while True:
        found, _ = await operated(call(FileVerb.READ, offset=offset, most=7), files)
        assert found["encoding"] == "utf-8"
        parts.append(found["output"])
        if "next_offset" not in found:
            break
        assert found["next_offset"] > offset
        offset = found["next_offset"]
    assert "".join(parts) == text


async def test_bytes_that_are_no_text_come_as_base64() -> None:
    found, _ = await operated(call(FileVerb.READ, most=10), ScriptedFiles(data=b"\xff\x00"))
    assert (found["output"], found["encoding"]) == ("/wA=", "base64")
    found, _ = await operated(call(FileVerb.READ, most=131_072), ScriptedFiles(data=b"\x01" * 131_073))
    assert found["next_offset"] == 131_072


@pytest.mark.parametrize("size", [1, 2, 3])
async def test_a_part_too_small_for_one_character_still_goes_on(size: int) -> None:
    files, offset = ScriptedFiles(data="\U0001f600\U0001f600".encode()), 0
    for _ in range(20):
        found, _ = await operated(call(FileVerb.READ, offset=offset, most=size), files)
        if "next_offset" not in found:
            return
        assert found["next_offset"] > offset
        offset = found["next_offset"]
    pytest.fail("it never ends")


async def test_writing_and_deleting_say_what_was_done() -> None:
    found, _ = await operated(call(FileVerb.WRITE, data=b"hi"), ScriptedFiles())
    assert (found["output"], found["bytes"], found["created"]) == ("made a (2 bytes)", 2, True)
    found, _ = await operated(call(FileVerb.DELETE), ScriptedFiles())
    assert (found["output"], found["deleted"]) == ("deleted a (3 in all)", 3)


@pytest.mark.parametrize(
    "error",
    [
        NotFoundError("a: is not there"),
        AlreadyExistsError("a: is there"),
        ResourceExhaustedError("the quota is full"),
    ],
)
@pytest.mark.parametrize("verb", FileVerb)
async def test_what_a_model_can_mend_is_a_result(verb: FileVerb, error: KalaError) -> None:
    found, reason = await operated(call(verb), ScriptedFiles(fails=error))
    assert found == {"success": False, "output": "", "reason": error.message}
    assert reason == error.message


@pytest.mark.parametrize("error", [InternalError("bug"), RefusedByPolicyError("no right")])
async def test_what_it_cannot_mend_is_raised(error: KalaError) -> None:
    with pytest.raises(type(error)):
        await operated(call(FileVerb.LIST), ScriptedFiles(fails=error))
