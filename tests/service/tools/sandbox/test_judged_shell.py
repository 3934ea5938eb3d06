"""Commands that the shell policy lets through do in the real sandbox what they do anywhere."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest_asyncio

from services.tools.policy.loading import read_policy
from services.tools.sandbox.client import LauncherSandbox
from services.tools.sandbox.model import Status
from services.tools.toolbox.calls import Toolbox
from services.tools.toolbox.model import ProgramCall
from tests.sandbox_runs import bubblewrap, execute, needs_bubblewrap

pytestmark = needs_bubblewrap
TOOLBOX = Toolbox(read_policy())


@pytest_asyncio.fixture
async def sandbox() -> AsyncIterator[LauncherSandbox]:
    async with bubblewrap() as opened:
        yield opened


FILES = "mkdir -p src/deep; echo 'b 2' > src/b.txt; echo 'a 10' > src/a.txt; cp src/a.txt src/deep/c.txt; "


CASES = [
    ('pwd; echo $HOME; echo "$(id -u)" | wc -l', "/workspace\n/workspace\n1\n"),
    (FILES + "ls src", "a.txt\nb.txt\ndeep\n"),
    (FILES + "sort -k2n src/*.txt 2>/dev/null || true", "b 2\na 10\n"),
    (FILES + "find src -name '*.txt' -exec cat {} + | sort | uniq -c | awk '{print $1, $2}'", "2 a\n1 b\n"),
    (FILES + "find src -name '*.txt' -print0 | sort -z | xargs -0 -n1 basename", "a.txt\nb.txt\nc.txt\n"),
    (
        FILES + 'for f in src/*.txt; do n=$(wc -l < "src/${f#src/}"); echo "$f $n"; done',
        "src/a.txt 1\nsrc/b.txt 1\n",
    ),
    (FILES + "while IFS=' ' read -r x y; do echo \"$y$x\"; done < src/a.txt", "10a\n"),
    (FILES + "diff <(cat src/a.txt) <(cat src/b.txt) > /dev/null || echo differ", "differ\n"),
    (FILES + "cd src && cat a.txt; cd deep; pwd", "a 10\n/workspace/src/deep\n"),
    (FILES + "rm -r src; ls | wc -l", "0\n"),
    ("echo abc | sed 's/b/X/' | tr a-z A-Z", "AXC\n"),
    ("echo x | sed 'e id' 2>/dev/null || echo refused", "refused\n"),
    ("cat <<E | sort -r\na $((6*7))\nb\nE", "b\na 42\n"),
    ('i=0; while [ "$i" -lt 3 ]; do i=$((i+1)); printf \'%s.\' "$i"; done', "1.2.3."),
    ("timeout 5 env LANG=C nice -n 1 printf 'ok\\n'", "ok\n"),
    ("if [ -e /etc/shadow ] || [ -e /root ]; then echo leak; else echo clean; fi", "clean\n"),
    ("printf 'a\\tb\\n' | cut -f2; seq 3 | tac | head -1; echo aGk= | base64 -d", "b\n3\nhi"),
    ("! false && echo $?; ( exit 3 ); echo $?", "0\n3\n"),
    ("echo one | tee a b > /dev/null; cat a b; mv a c; cat c", "one\none\none\n"),
]


async def test_judged_commands_do_what_they_say(sandbox: LauncherSandbox) -> None:
    for command, output in CASES:
        call = TOOLBOX.plan("shell", json.dumps({"command": command}))
        assert isinstance(call, ProgramCall)
        ran = await execute(sandbox, call.language, call.source.decode())
        assert (command, ran.stdout, ran.stderr) == (command, output, "")
        assert ran.ended.status is Status.OK


async def test_the_exit_code_is_the_commands(sandbox: LauncherSandbox) -> None:
    call = TOOLBOX.plan("shell", '{"command": "echo no >&2; exit 7"}')
    assert isinstance(call, ProgramCall)
    ran = await execute(sandbox, call.language, call.source.decode())
    assert (ran.ended.status, ran.ended.exit_code, ran.stderr) == (Status.ERROR, 7, "no\n")


async def test_every_program_that_the_default_policy_names_is_in_the_sandbox_or_says_so(
    sandbox: LauncherSandbox,
) -> None:
    names = [rule.program for rule in read_policy().commands]
    call = TOOLBOX.plan(
        "shell", json.dumps({"command": "command -v " + " ".join(f"'{name}'" for name in names)})
    )
    assert isinstance(call, ProgramCall)
    ran = await execute(sandbox, call.language, call.source.decode())
    found = {line.rpartition("/")[2] for line in ran.stdout.splitlines()}
    # Not every system has these.
    assert set(names) - found <= {"column", "xxd", "rev", "hostname", "uptime"}
