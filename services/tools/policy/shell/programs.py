"""Which programs need more than a look at each argument, and which no policy may list."""

from __future__ import annotations

import re
from typing import Final

from services.tools.policy.shell import effects, starters
from services.tools.policy.shell.bench import ProgramJudge

# Nobody can say what these run or change in the shell itself, so no policy may list them.
UNJUDGED: Final = frozenset(
    [
        ".",
        "alias",
        "bash",
        "bg",
        "bind",
        "builtin",
        "busybox",
        "caller",
        "compgen",
        "complete",
        "compopt",
        "coproc",
        "csh",
        "dash",
        "declare",
        "dirs",
        "disown",
        "doas",
        "enable",
        "eval",
        "exec",
        "export",
        "fc",
        "fg",
        "fish",
        "function",
        "getopts",
        "hash",
        "history",
        "jobs",
        "ksh",
        "let",
        "local",
        "logout",
        "mapfile",
        "parallel",
        "pkexec",
        "popd",
        "pushd",
        "readarray",
        "readonly",
        "return",
        "rbash",
        "script",
        "set",
        "setsid",
        "sh",
        "shift",
        "shopt",
        "source",
        "ssh",
        "su",
        "sudo",
        "suspend",
        "tcsh",
        "time",
        "times",
        "trap",
        "type",
        "typeset",
        "ulimit",
        "umask",
        "unalias",
        "unset",
        "unshare",
        "wait",
        "watch",
        "xonsh",
        "zsh",
        "chroot",
        "nsenter",
        "strace",
        "gdb",
        "ltrace",
    ]
)

# These run code that an argument or a file holds, so they are never of low risk.
RUN_CODE: Final = re.compile(
    r"""python[0-9.]*|pypy[0-9.]*|node|nodejs|deno|bun|perl[0-9.]*|ruby[0-9.]*|php[0-9.]*|lua[0-9.]*|luajit|tclsh|wish|expect
    |make|gmake|cmake|ninja|gcc[0-9.-]*|g\+\+|cc|clang[0-9.-]*|go|cargo|rustc|javac?|npm|npx|yarn|pnpm|pip[0-9.]*|uv|uvx
    |git|tar|bsdtar|zip|unzip|7z|rsync|scp|vi|vim|nvim|view|emacs|nano|ed|ex|less|more|man|m4|bc|dc|sqlite3|psql|mysql|rg
    |jq|tree|dd|docker|podman|kubectl""".replace("\n", "").replace(" ", "")
)

PROGRAM_JUDGES: Final[dict[str, ProgramJudge]] = {
    "[": effects.judge_test,
    "awk": starters.judge_awk,
    "break": effects.judge_numbers_only,
    "command": starters.judge_command,
    "continue": effects.judge_numbers_only,
    "cp": effects.judge_writes_last,
    "env": starters.judge_env,
    "exit": effects.judge_numbers_only,
    "find": starters.judge_find,
    "gawk": starters.judge_awk,
    "ln": effects.judge_writes_last,
    "mawk": starters.judge_awk,
    "mkdir": effects.judge_writes_all,
    "mv": effects.judge_moves,
    "nice": starters.runs_inner(r"-n-?[0-9]+|--adjustment=-?[0-9]+", "-n", needs_one=False),
    "nohup": starters.runs_inner("(?!)", "(?!)"),
    "printf": effects.judge_printf,
    "read": effects.judge_read,
    "rm": effects.judge_deletes,
    "rmdir": effects.judge_deletes,
    "sed": starters.judge_sed,
    "stdbuf": starters.runs_inner(r"-[ioe][0L]|-[ioe][0-9]+[KM]?|--(?:input|output|error)=\w+", "-[ioe]"),
    "tee": effects.judge_writes_all,
    "test": effects.judge_test,
    "timeout": starters.runs_inner(
        r"--preserve-status|--foreground|-v|--verbose|-[sk]\w+|--signal=\w+|--kill-after=[\w.]+",
        "-[sk]",
        skips=1,
    ),
    "touch": effects.judge_writes_all,
    "uniq": effects.judge_uniq,
    "xxd": effects.judge_xxd,
    "unlink": effects.judge_deletes,
    "xargs": starters.judge_xargs,
}
