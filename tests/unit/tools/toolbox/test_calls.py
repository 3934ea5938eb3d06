"""A tool call comes to a judged program or an allowed file operation, exactly as its schema says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kala.errors import InvalidArgumentError
from services.tools.files.model import WriteMode
from services.tools.policy.loading import TOOL_NAMES, read_policy
from services.tools.policy.model import RefusedByPolicyError, Risk
from services.tools.sandbox.model import Language
from services.tools.toolbox.calls import Toolbox
from services.tools.toolbox.definitions import DEFINITIONS
from services.tools.toolbox.model import Call, FileCall, FileVerb, ProgramCall

POLICY = read_policy()
TOOLBOX = Toolbox(POLICY)
SCHEMAS = {each.name: json.loads(each.parameters_schema) for each in DEFINITIONS}


def plan(tool: str, *, host_directory: bool = False, **arguments: Any) -> Call:  # Any: JSON
    return TOOLBOX.plan(tool, json.dumps(arguments), host_directory=host_directory)


def test_the_tools_are_what_the_policy_knows_and_openai_takes() -> None:
    assert tuple(each.name for each in TOOLBOX.definitions) == TOOL_NAMES == tuple(sorted(TOOL_NAMES))
    for each in DEFINITIONS:
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", each.name)
        assert len(each.description) <= 1024
        jsonschema.Draft202012Validator.check_schema(json.loads(each.parameters_schema))
        jsonschema.Draft202012Validator.check_schema(json.loads(each.result_schema))


def test_a_shell_call_becomes_what_was_judged() -> None:
    call = plan("shell", command="ls -la | head -1", timeout_seconds=5)
    assert isinstance(call, ProgramCall)
    assert (call.language, call.risk, call.wall_seconds) == (Language.SHELL, Risk.LOW, 5.0)
    assert call.source.endswith(b"'ls' '-la' | 'head' '-1'\n")
    assert plan("shell", command="rm x").risk is Risk.HIGH


def test_a_refused_command_never_becomes_a_program() -> None:
    with pytest.raises(RefusedByPolicyError, match="policy's list of programs"):
        plan("shell", command="curl x")


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("python", Language.PYTHON),
        ("javascript", Language.JAVASCRIPT),
        ("shell", Language.SHELL),
        ("bash", Language.SHELL),
    ],
)
def test_code_is_run_as_it_is(name: str, language: Language) -> None:
    call = plan("code_execution", language=name, code="x = '\u00e9'", arguments=["-a", ""])
    assert call == ProgramCall("code_execution", Risk.MEDIUM, language, "x = '\u00e9'".encode(), ("-a", ""))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"operation": "list"}, FileCall("filesystem", Risk.LOW, FileVerb.LIST, "", most=200)),
        ({"operation": "list", "path": "."}, FileCall("filesystem", Risk.LOW, FileVerb.LIST, "", most=200)),
        (
            {"operation": "list", "path": "./kala"},
            FileCall("filesystem", Risk.LOW, FileVerb.LIST, "kala", most=200),
        ),
        (
            {"operation": "list", "path": "/workspace/a/", "recursive": True, "max_entries": 5},
            FileCall("filesystem", Risk.LOW, FileVerb.LIST, "a", recursive=True, most=5),
        ),
        (
            {"operation": "read", "path": "a/b", "offset": 7, "max_bytes": 9},
            FileCall("filesystem", Risk.LOW, FileVerb.READ, "a/b", offset=7, most=9),
        ),
        (
            {"operation": "write", "path": "a", "content": "\u00e9"},
            FileCall("filesystem", Risk.MEDIUM, FileVerb.WRITE, "a", "\u00e9".encode()),
        ),
        (
            {"operation": "write", "path": "a", "content": "AP8=", "encoding": "base64", "mode": "create"},
            FileCall("filesystem", Risk.MEDIUM, FileVerb.WRITE, "a", b"\0\xff", WriteMode.CREATE),
        ),
        ({"operation": "delete", "path": "a"}, FileCall("filesystem", Risk.HIGH, FileVerb.DELETE, "a")),
    ],
)
def test_a_file_call_becomes_one_operation(arguments: dict[str, Any], expected: FileCall) -> None:
    assert plan("filesystem", **arguments) == expected


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("./kala", "host/kala"),
        (".", "host"),
        ("/workspace/x", "x"),
        ("/workspace", ""),
        ("host", "host/host"),
    ],
)
def test_paths_are_in_the_host_directory_where_one_is_shown(path: str, inside: str) -> None:
    call = plan("filesystem", operation="list", path=path, host_directory=True)
    assert isinstance(call, FileCall)
    assert call.path == inside


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../x",
        "a/../x",
        "a/..",
        "./..",
        "/workspace/../x",
        "/etc/passwd",
        "/",
        "//workspace/x",
        "/workspacex",
        "/proc/self/root",
    ],
)
@pytest.mark.parametrize("operation", ["list", "read", "write", "delete"])
def test_no_path_leads_out(operation: str, path: str) -> None:
    more = {"content": "x"} if operation == "write" else {}
    with pytest.raises((RefusedByPolicyError, InvalidArgumentError)):
        plan("filesystem", operation=operation, path=path, **more)


@pytest.mark.parametrize("path", ["a//b", "a/./b", "a\0b", "\ud800", "x" * 256, "a/" * 600])
def test_a_path_has_one_spelling(path: str) -> None:
    with pytest.raises(InvalidArgumentError):
        plan("filesystem", operation="read", path=path)


@pytest.mark.parametrize("operation", ["write", "delete"])
def test_the_host_directory_is_never_changed(operation: str) -> None:
    more = {"content": "x"} if operation == "write" else {}
    with pytest.raises(RefusedByPolicyError, match=f"no right to {operation} host/x"):
        plan("filesystem", operation=operation, path="x", host_directory=True, **more)
    assert plan("filesystem", operation=operation, path="/workspace/x", host_directory=True, **more)


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("", {}, "tool: '' is no tool; there are code_execution, filesystem, shell"),
        ("Shell", {}, "tool: 'Shell' is no tool"),
        ("shell", {}, "arguments_json.command: is missing"),
        ("shell", {"command": ""}, "arguments_json.command: must be a text of 1 to"),
        ("shell", {"command": ["ls"]}, "arguments_json.command: must be a text"),
        ("shell", {"command": None}, "arguments_json.command: must be a text"),
        ("shell", {"command": "ls", "cwd": "/"}, "arguments_json.cwd: is no argument"),
        (
            "shell",
            {"command": "ls", "timeout_seconds": 0},
            "timeout_seconds: must be a number of seconds from 0.1 to 900",
        ),
        ("shell", {"command": "ls", "timeout_seconds": True}, "timeout_seconds: must be a number"),
        ("shell", {"command": "ls", "timeout_seconds": "5"}, "timeout_seconds: must be a number"),
        ("code_execution", {"code": "x"}, "language: is missing"),
        (
            "code_execution",
            {"language": "ruby", "code": "x"},
            "language: must be one of python, javascript, shell, bash",
        ),
        (
            "code_execution",
            {"language": "python", "code": "x", "arguments": "a"},
            "must be a list of at most 64",
        ),
        (
            "code_execution",
            {"language": "python", "code": "x", "arguments": ["a\0"]},
            "arguments[0]: must be a text",
        ),
        (
            "code_execution",
            {"language": "python", "code": "x", "arguments": ["a"] * 65},
            "must be a list of at most 64",
        ),
        (
            "filesystem",
            {"operation": "rename", "path": "a"},
            "operation: must be one of list, read, write, delete",
        ),
        ("filesystem", {"operation": "read"}, "path: is missing"),
        ("filesystem", {"operation": "read", "path": "."}, "path: must name a file to read"),
        ("filesystem", {"operation": "delete", "path": "/workspace"}, "path: must name a file to delete"),
        ("filesystem", {"operation": "write", "path": "a"}, "content: is missing"),
        (
            "filesystem",
            {"operation": "write", "path": "a", "content": "!", "encoding": "base64"},
            "content: is not base64",
        ),
        ("filesystem", {"operation": "read", "path": "a", "content": "x"}, "content: is no argument"),
        (
            "filesystem",
            {"operation": "read", "path": "a", "max_bytes": 131_073},
            "max_bytes: must be a whole number",
        ),
        ("filesystem", {"operation": "read", "path": "a", "offset": -1}, "offset: must be a whole number"),
        ("filesystem", {"operation": "read", "path": "a", "offset": 1.5}, "offset: must be a whole number"),
        ("filesystem", {"operation": "list", "recursive": 1}, "recursive: must be true or false"),
    ],
)
def test_a_wrong_argument_is_named(tool: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(words)):
        plan(tool, **arguments)


def test_a_tool_that_the_policy_leaves_out_is_refused_and_not_offered() -> None:
    toolbox = Toolbox(replace(POLICY, tools=frozenset({"shell"})))
    assert [each.name for each in toolbox.definitions] == ["shell"]
    with pytest.raises(RefusedByPolicyError, match="does not let code_execution be called"):
        toolbox.plan("code_execution", '{"language": "python", "code": "1"}')


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 200_000), st.floats(-2, 1000), st.text(max_size=4),
    st.sampled_from(["list", "read", "write", "delete", "python", "bash", "utf-8", "base64", "create", "append", "ls", "a"]),
    st.lists(st.text(alphabet="ab\0", max_size=2), max_size=3),
)  # fmt: skip
NAMES = sorted({name for schema in SCHEMAS.values() for name in schema["properties"]} | {"x"})


@settings(max_examples=300, deadline=None)
@given(
    tool=st.sampled_from(TOOL_NAMES), arguments=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5)
)
def test_whatever_passes_is_what_the_schema_takes(tool: str, arguments: dict[str, Any]) -> None:
    text = json.dumps(arguments, allow_nan=False)
    try:
        TOOLBOX.plan(tool, text)
    except (InvalidArgumentError, RefusedByPolicyError):
        return
    jsonschema.validate(arguments, SCHEMAS[tool], cls=jsonschema.Draft202012Validator)
