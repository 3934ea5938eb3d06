"""What bash gets means what was written: the same output as bash gives for the text itself, and never another program."""

from __future__ import annotations

import subprocess
import tempfile
from functools import cache
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.tools.policy.loading import read_policy
from services.tools.policy.model import RefusedByPolicyError
from services.tools.policy.shell.judge import ShellPolicy
from services.tools.policy.zones import Zones

POLICY = read_policy()
SHELL = ShellPolicy(POLICY.commands, Zones(POLICY.zones))
# Each example starts bash twice.
SLOW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

# Pieces that mean something to a shell, and some that do not.
SOUP = [
    *"'\"`$\\(){}[]<>|&;#!*?~=+-,.:/@%^ \t\n01ax",
    "pwned", "pwned ", "echo ", "ls", "cat ", "eval ", "exec ", "command ", "printf ", "read ", "test ", "$(", "${", "$((",
    "))", "<<", "<<-", "<<<", ">&", "&>", "<(", "&&", "||", ";;", "|&", "if ", "then ", "fi", "for x in ", "do ", "done",
    "case x in ", "esac", "while ", "x=", "PATH=", "IFS=", "$x", "${x", "E\n", "\nE\n", "\\\n", "$'", "\\x70", "find . ",
    "-exec ", "xargs ", "env ", "awk ", "sed ", "{}", " \\;", "system(", "1e ", "-v ", "[ ", " ]", "x[", "$IFS", "timeout 1 ",
]  # fmt: skip

WORDS = st.one_of(
    st.sampled_from(
        [
            "a",
            "'b c'",
            '"d  e"',
            "f\\ g",
            '"$x"',
            "$x",
            "${x}y",
            "$(echo i j)",
            '"$(echo k  l)"',
            "`echo m`",
            "''",
            "n'o'\"p\"",
            "{q,r}",
            "{1..3}",
            "s{t,u}v",
            "$((2*3))",
            '"$((x+1))"',
            "$'\\tw\\'z'",
            "\\$x",
            "'$x'",
            "~",
            "[y]",
            "*nothing*",
            "é",
            "${x:-1}",
            "${#x}",
            '"${x/1/2}"',
            "\\#",
            "a#b",
            "!",
            "a=b",
            "%",
            "\\\n",
            '"\\""',
            "$",
            '"$"',
            "{",
            "}",
            "a{b",
            "@",
        ]
    )
)
SIMPLE = st.builds(
    lambda program, words, ending: " ".join([program, *words]) + ending,
    st.sampled_from(["echo", "printf '<%s>'", "echo -n"]),
    st.lists(WORDS, min_size=1, max_size=5),
    st.sampled_from(
        [
            "",
            " 2>&1",
            " | cat",
            " | tr a b",
            " > out; cat out",
            " >&1",
            " |& cat",
            " <<E\n$x \\$x $(echo h)\nE\n",
        ]
    ),
)
SCRIPTS = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        st.builds("{}\n{}".format, inner, inner),
        st.builds("( {}\n)".format, inner),
        st.builds("{{ {}\n}}".format, inner),
        st.builds('if [ -n "$x" ]; then {}\nelse {}\nfi'.format, inner, inner),
        st.builds("for y in a 'b c' {{1..2}}; do {}\necho \"$y\"; done".format, inner),
        st.builds("case $x in [0-9]) {}\n;; *) {}\nesac".format, inner, inner),
        st.builds('echo "$( {}\n)"'.format, inner),
        st.builds('while read -r z; do echo "$z"; done < <({}\n)'.format, inner),
        st.builds("! {}\ntrue".format, inner),
    ),
    max_leaves=4,
)


@cache
def canary() -> Path:
    """A directory of programs in which `pwned` leaves a file beside it."""
    programs = Path(tempfile.mkdtemp())
    (programs / "pwned").write_text(f"#!/bin/sh\n: > {programs}/started\n")
    (programs / "pwned").chmod(0o755)
    return programs


def run(script: str) -> tuple[int, bytes]:
    with tempfile.TemporaryDirectory() as work:
        done = subprocess.run(
            ["/bin/bash", "--norc", "--noprofile", "-c", script],
            cwd=work, env={"PATH": f"{canary()}:/usr/bin:/bin", "HOME": "/workspace", "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20, check=False,
        )  # fmt: skip
    return done.returncode, done.stdout


@SLOW
@given(script=SCRIPTS)
def test_a_judged_script_does_what_the_written_one_does(script: str) -> None:
    script = "x=1\n" + script
    assert run(SHELL.judge(script).script) == run(script), script


@SLOW
@given(pieces=st.lists(st.sampled_from(SOUP), max_size=25))
def test_no_soup_of_shell_starts_another_program(pieces: list[str]) -> None:
    text = "".join(pieces)
    try:
        judged = SHELL.judge(text)
    except RefusedByPolicyError:
        return
    run(judged.script)
    assert not (canary() / "started").exists(), text


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_is_judged_or_refused_and_nothing_else(text: str) -> None:
    try:
        SHELL.judge(text)
    except RefusedByPolicyError:
        return


@settings(max_examples=150, deadline=None)
@given(script=SCRIPTS)
def test_what_is_written_out_is_understood_again_as_the_same(script: str) -> None:
    once = SHELL.judge("x=1\n" + script)
    body = once.script.split("\n", 2)[2]
    again = SHELL.judge(body)
    assert again.programs == once.programs
    assert again.risk == once.risk
