"""What a waiting interpreter is sent: every byte of it, and nothing that could be read as something else."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kala.errors import InvalidArgumentError
from services.tools.sandbox.model import Job, Language, Limits
from services.tools.sandbox.stubs import MAX_PROGRAM_BYTES, program

LIMITS = Limits(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
PYTHON, SHELL = Language.PYTHON, Language.SHELL
# What an argument of a process can hold.
WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


@given(st.binary(max_size=200), st.lists(WORDS, max_size=4), st.lists(WORDS, max_size=2))
def test_a_program_can_be_taken_apart_again(source: bytes, arguments: list[str], values: list[str]) -> None:
    pairs = tuple((f"V{index}", value) for index, value in enumerate(values))
    data = program(Job(PYTHON, source, LIMITS, tuple(arguments), environment=pairs))
    *fields, rest = data.split(b"\0", 3 + len(arguments) + 2 * len(values))
    assert rest == source
    assert [int(field) for field in fields[:3]] == [len(source), len(arguments), len(values)]
    words = [*arguments, *(word for pair in pairs for word in pair)]
    assert [field.decode() for field in fields[3:]] == words


@given(st.lists(WORDS, min_size=1, max_size=4), WORDS)
@settings(max_examples=25, deadline=None)
def test_bash_reads_every_argument_as_it_was(arguments: list[str], value: str) -> None:
    job = Job(SHELL, b"", LIMITS, tuple(arguments), environment=(("V", value),))
    line, _, rest = program(job).partition(b"\n")
    assert rest == b"exec 3<&-; "
    script = b'eval "$0"; printf "%s\\0" "$@" "$V"'
    done = subprocess.run(
        ["/bin/bash", "--norc", "--noprofile", "-c", script, line],
        capture_output=True,
        check=True,
        env={"LANG": "C.UTF-8"},
    )
    assert [word.decode() for word in done.stdout.split(b"\0")[:-1]] == [*arguments, value]


def test_the_first_line_of_a_script_stays_the_first() -> None:
    data = program(Job(SHELL, b"echo 1\necho 2\n", LIMITS))
    assert data.count(b"\n") == 3
    assert data.splitlines()[1].endswith(b"echo 1")


@pytest.mark.parametrize(
    ("job", "problem"),
    [
        (Job(PYTHON, b"", LIMITS, ("a\0b",)), "arguments: an argument or variable holds a NUL"),
        (
            Job(PYTHON, b"", LIMITS, environment=(("a=b", ""),)),
            "environment: a variable's name is empty or holds '='",
        ),
        (Job(PYTHON, b"", LIMITS, environment=(("", "x"),)), "environment: a variable's name is empty"),
        (Job(SHELL, b"", LIMITS, environment=(("x;touch y", ""),)), "cannot be a variable of the shell"),
        (Job(SHELL, b"", LIMITS, environment=(("1x", ""),)), "cannot be a variable of the shell"),
        (Job(SHELL, b"a\0b", LIMITS), "source: a shell script cannot hold a NUL"),
        (Job(PYTHON, b"x" * MAX_PROGRAM_BYTES, LIMITS), "at most 1048576 are allowed"),
    ],
    ids=["nul", "equals", "empty", "shell-name", "digit", "shell-nul", "too-long"],
)
def test_what_cannot_be_sent_is_refused_with_its_reason(job: Job, problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem):
        program(job)
