"""What only looks like an evasion is judged as bash reads it, and no command's size or depth wears the judge out.

The evasions are in the files beside this one. The program that none of them may start is `pwned`; the policy is the default
one, which does not know it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from services.tools.policy.loading import read_policy
from services.tools.policy.model import RefusedByPolicyError
from services.tools.policy.shell.judge import ShellPolicy
from services.tools.policy.shell.words import MAX_CHARS
from services.tools.policy.zones import Zones

POLICY = read_policy()
SHELL = ShellPolicy(POLICY.commands, Zones(POLICY.zones))


HARMLESS_LOOKING = [
    ("echo pwned", "pwned"),
    ("echo '$(pwned)'", "$(pwned)"),
    ("echo '`pwned`'", "`pwned`"),
    ("echo \\$(echo hi | tr a-z A-Z)", None),
    ("cat <<'E'\n$(pwned) `pwned` \\$x\nE", "$(pwned) `pwned` \\$x"),
    ("cat <<\\E\n$(pwned)\nE", "$(pwned)"),
    ("cat <<E\n\\$(pwned) \\`pwned\\`\nE", "$(pwned) `pwned`"),
    ('echo "\\$(pwned)"', "$(pwned)"),
    ('echo "\\`pwned\\`"', "`pwned`"),
    ("x='$(pwned)'; echo \"$x\"", "$(pwned)"),
    ("x='`pwned`'; echo $x", "`pwned`"),
    ("x='; pwned'; echo $x", "; pwned"),
    ("x='> pwned.txt'; echo $x", "> pwned.txt"),
    ("x='a[$(pwned)]'; [ \"$x\" = y ] || echo no", "no"),
    ("x='a[$(pwned)]'; [ \"$x\" -eq 1 ] 2> /dev/null || echo no", "no"),
    ("x='-v a[$(pwned)]'; [ \"$x\" ] && echo yes", "yes"),
    ("echo if then fi done } { !", "if then fi done } { !"),
    ("echo ls | sed 'e pwned' 2> /dev/null || echo no", "no"),
    ("echo ls | sed 's/ls/pwned/e' 2> /dev/null || echo no", "no"),
    ("echo ls | sed -n 'w pwned.txt' 2> /dev/null || echo no", "no"),
    ("echo ls | sed -e '1!e pwned' 2> /dev/null || echo no", "no"),
    ("x='1e pwned'; echo ls | sed \"$x\" 2> /dev/null || echo no", "no"),
    ("x='-n w pwned.txt'; echo ls | sed $x 2> /dev/null || echo no", "no"),
    ('kala=1; echo "$kala${kala_x:-}"', "1"),
    ("echo '' '\\'", " \\"),
    ("printf '%s\\n' -v PATH", "-v\nPATH"),
    ("echo {a,b}{1..3}", "a1 a2 a3 b1 b2 b3"),
    ("echo x > 'a b' ; cat 'a b'", "x"),
    ("echo '\n}\npwned'", "\n}\npwned"),
    ("case 'a)pwned' in 'a)pwned') echo yes;; esac", "yes"),
    ("echo $'\\'; pwned #'", "'; pwned #"),
    ("echo 'it'\\''s'; echo \"it's\"", "it's\nit's"),
]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A directory to run in, and an environment in which `pwned`, should it ever start, leaves a file."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "pwned").write_text(f"#!/bin/sh\n: > {tmp_path}/started\n")
    (programs / "pwned").chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    return work, {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(work), "LANG": "C.UTF-8"}


def run(script: str, place: tuple[Path, dict[str, str]]) -> str:
    work, environment = place
    done = subprocess.run(
        ["/bin/bash", "--norc", "--noprofile", "-c", script],
        cwd=work, env=environment, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    return done.stdout.removesuffix("\n")


@pytest.mark.parametrize(("command", "expected"), HARMLESS_LOOKING)
def test_what_only_looks_like_an_evasion_means_what_bash_would_make_of_it(
    command: str, expected: str | None, place: tuple[Path, dict[str, str]]
) -> None:
    if expected is None:
        with pytest.raises(RefusedByPolicyError):
            SHELL.judge(command)
        return
    assert run(SHELL.judge(command).script, place) == expected
    assert not (place[0].parent / "started").exists()
    assert not (place[0] / "pwned.txt").exists()


def test_the_canary_would_be_seen(place: tuple[Path, dict[str, str]]) -> None:
    run("eval pwned", place)
    assert (place[0].parent / "started").exists()


@pytest.mark.parametrize(
    "builtin", ["eval pwned", ". ./x", "exec pwned", "builtin eval pwned", "trap pwned EXIT", "PATH=. ls"]
)
def test_the_first_lines_take_bash_what_the_judge_never_lets_through(
    builtin: str, place: tuple[Path, dict[str, str]]
) -> None:
    (place[0] / "x").write_text("pwned\n")
    (place[0] / "ls").write_text(f"#!/bin/sh\n: > {place[0].parent}/started\n")
    (place[0] / "ls").chmod(0o755)
    first = SHELL.judge("true").script.removesuffix("'true'\n")
    run(first + builtin, place)
    assert not (place[0].parent / "started").exists()


def test_a_huge_command_is_refused_before_it_is_read() -> None:
    with pytest.raises(RefusedByPolicyError, match="characters"):
        SHELL.judge("ls;" * (100 * 1024 * 1024 // 3))


@pytest.mark.parametrize(
    "command",
    [
        "$(" * 9_000,
        "(" * 9_000,
        "{ " * 9_000,
        "`" * 9_000,
        '"$(' * 9_000,
        "if " * 9_000,
        "ls <(" * 9_000,
        "$((" + "(" * 9_000,
        "echo " + "{" * 9_000,
        "echo " + "{a,b}" * 1_000,
        "echo " + "{a,{b," * 30 + "c" + "}}" * 30 + "{1..9}" * 3,
        "echo {1..999999999}",
        "echo " + "{1..250} " * 1_000,
        "echo " + "{1..200}" * 2,
        "echo " + "[" * 9_000,
        "echo " + "[" * 9_000 + " ]",
        "cat <<A\n" * 8_000,
        "echo ${x/" + "*" * 9_000,
        "echo ${x#" + "[" * 9_000,
        "awk '" + "/" * 9_000 + "|'",
        "awk '" + '"' * 9_000 + "|'",
        "for x in a; do " * 4_000,
        "case x in a) " * 4_000,
        "! " * 9_000 + "ls",
    ],
    ids=range(24),
)
def test_deep_or_wide_nesting_is_refused_and_costs_little(command: str) -> None:
    try:
        SHELL.judge(command[:MAX_CHARS])
    except RefusedByPolicyError:
        return
    # A pattern of many brackets is one odd argument, and harmless.
    assert command.startswith("echo [")


def test_the_longest_command_that_is_taken_is_judged() -> None:
    judged = SHELL.judge("ls;" * 5_000)
    assert judged.script.count("'ls'") == 5_000
    assert os.path.sep not in judged.programs[0]
