"""What the shell tool lets through, at which risk, and what it says when it does not."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.tools.policy.loading import read_policy
from services.tools.policy.model import CommandRule, RefusedByPolicyError, Risk, Zone
from services.tools.policy.shell.arguments import ANYTHING, Argument, compiled, may_match
from services.tools.policy.shell.awk import starts_programs
from services.tools.policy.shell.judge import ShellPolicy
from services.tools.policy.zones import Zones

POLICY = read_policy()
SHELL = ShellPolicy(POLICY.commands, Zones(POLICY.zones))

LOW = [
    "ls -la",
    "ls -la ./kala | head -20",
    "cat a.txt b.txt",
    "grep -rn 'def main' . --include=*.py | sort -u | head",
    "find . -name '*.py' -type f | wc -l",
    "find . -name '*.py' -exec wc -l {} +",
    "find src -type f -exec grep -l TODO {} \\;",
    "find . -name '*.py' -print0 | xargs -0 grep -n TODO",
    "find . -name '*.txt' | xargs -I{} sort ./{}",
    "find . -size +1M -not -path './.git/*' -printf '%s %p\\n' | sort -rn",
    'd=src; find . -name "$d"',
    "wc -l < data.csv",
    'for f in *.csv; do echo "$f: $(wc -l < "./$f")"; done',
    "sort ./*.txt",
    "awk -F, '{s += $2} END {print s}' data.csv",
    "awk -F, 'NR > 1 && $3 > 10 {print $1 \"|\" $2}' data.csv",
    "awk '/error|warn/ {n++} END {print n}' log",
    'n=3; awk -v n="$n" \'NR <= n\' data.csv',
    "sed -n '1,10p' file",
    "sed 's/a/b/g; /x/d' file",
    "cat file 2>/dev/null || echo missing",
    "cat file > /dev/null 2>&1 && echo there",
    "diff <(sort ./a) <(sort ./b)",
    "if [ -f a ] && [ ! -d b ]; then cat a; else echo no; fi",
    'x=$(cat f); if [ "$x" = yes ]; then echo ok; fi',
    'while IFS=, read -r a b; do echo "$b,$a"; done < data.csv',
    'i=0; while [ "$i" -lt 3 ]; do echo $i; i=$((i+1)); done',
    "case $HOME in /w*) echo yes;; esac",
    "cat <<'E'\n$(not run)\nE",
    "LC_ALL=C sort ./x",
    "TZ=Europe/Berlin date",
    "env LANG=C sort ./x",
    "timeout 5 cat x",
    "command -v ls",
    "echo ${HOME} $RANDOM ${x:-none}",
    "cd src && ls; pwd",
    "exit 3",
    "ls; exit $?",
    "printf '%s\\n' \"$HOME\"",
    "base64 -d <<< aGk=",
    "xxd -l 16 -c 8 a",
    "xxd -r a > /dev/null",
    "uniq -",
]  # fmt: skip
MEDIUM = [
    "echo hi > out.txt",
    "ls >> log",
    "ls &> out/log",
    "cd src && ls > x",
    "mkdir -p a/{b,c}",
    "touch a",
    "cp a b",
    "mv a b",
    "ls | tee x",
    "sed -i s/a/b/ f",
    "sed -ni s/a/b/ f",
    "sed -ui.bak s/a/b/ f",
    "sed --i s/a/b/ f",
    'x=a; sed "$x" f',
    "uniq a b",
    # A second name is written: - stands for standard input, and nothing after -- is an option.
    "uniq - b",
    "uniq -- -a b",
    "xxd a b",
    "xxd -r - b",
    "xxd -l 16 a b",
    "xxd -l $x a",
    "ls | xargs xxd",
    "awk '{print > \"x\"}' f",
    "cat <<E > /workspace/a\nx\nE",
    "ls | xargs touch",
    "find . -exec cp {} /tmp/x \\;",
]
HIGH = [
    "rm x",
    "rm -rf build",
    "ls | xargs rm",
    "find . -name '*.o' -exec rm {} +",
    "echo $(rm x)",
    "ls; (rmdir a)",
]


@pytest.mark.parametrize(
    ("command", "risk"),
    [
        (each, risk)
        for risk, group in ((Risk.LOW, LOW), (Risk.MEDIUM, MEDIUM), (Risk.HIGH, HIGH))
        for each in group
    ],
)
def test_everyday_commands_pass_with_the_risk_of_their_worst_part(command: str, risk: Risk) -> None:
    assert SHELL.judge(command).risk == risk


@pytest.mark.parametrize(
    "command",
    [
        "sed p",
        "ls | sed p",
        "echo {a,b} $(sed p) {c,d}",
        "ls {a,b} | xargs -0 -n 1 sed p",
        "find a{b,c} -name x -exec sed p {} +",
        "find . -exec ls {} \\; -exec sed p {} \\;",
        "timeout -s KILL 5 env LANG=C nice -n 1 sed p",
        "x=1; LC_ALL=C sed p < f",
        "command sed p",
        "if sed p; then sed p; fi",
    ],
)
def test_sed_never_runs_without_its_own_sandbox(command: str) -> None:
    script = SHELL.judge(command).script
    assert "'sed' '--sandbox' 'p'" in script
    assert script.count("'sed'") == script.count("'sed' '--sandbox'")


def test_the_programs_of_every_part_are_named() -> None:
    judged = SHELL.judge("ls | xargs wc -l > out/n; echo $(date) <(id)")
    assert judged.programs == ("date", "echo", "id", "ls", "wc", "xargs")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("pyhton3 x", "'pyhton3': is not on the policy's list of programs"),
        ("python3 -c x", "use the tool code_execution"),
        ("/bin/ls", "write the name without a directory"),
        ("c\u0430t x", "U+0430 CYRILLIC SMALL LETTER A"),
        ("ls\n\nls &", "line 3, column 4: & is not taken"),
        ("sort *", "begin it with ./"),
        ("ls > /etc/x", "outside of the workspace"),
        ("[[ -f x ]]", "use [ … ]"),
        ("x=abc; echo $((x))", "takes x only when"),
        ("sort -o x y", "refuses its argument '-o'"),
    ],
)
def test_a_refusal_says_what_is_wrong_and_what_to_do(command: str, words: str) -> None:
    with pytest.raises(RefusedByPolicyError, match=re.escape(words)):
        SHELL.judge(command)


def policy_of(
    *rules: CommandRule, zones: tuple[Zone, ...] = (Zone("", read=True, write=True, delete=True),)
) -> ShellPolicy:
    return ShellPolicy(rules, Zones(zones))


def test_a_program_without_redirections_gets_no_file() -> None:
    shell = policy_of(CommandRule("ls", Risk.LOW), CommandRule("cat", Risk.LOW, redirections=True))
    shell.judge("ls 2> /dev/null | cat > x")
    for command in ("ls > x", "ls < x", "{ ls; } > x", "for i in a; do ls; done > x", "( cat; ls ) > x"):
        with pytest.raises(RefusedByPolicyError, match="no file be its input or output"):
            shell.judge(command)


def test_the_number_of_arguments_is_bounded_whatever_they_expand_to() -> None:
    shell = policy_of(CommandRule("ls", Risk.LOW, max_arguments=2))
    shell.judge('x=a; ls "$x" b')
    for command in ("ls a b c", "ls *", "x='a b'; ls $x", "ls {1..3}"):
        with pytest.raises(RefusedByPolicyError, match="at most 2"):
            shell.judge(command)


def test_redirections_and_writing_programs_keep_to_the_zones() -> None:
    zones = (Zone("", read=True), Zone("out", read=True, write=True), Zone("secret"))
    programs = ("ls", "cat", "touch", "cp", "mv", "rm", "cd")
    shell = policy_of(*(CommandRule(name, Risk.LOW, redirections=True) for name in programs), zones=zones)
    for command in ("ls > out/x", "touch out/a", "cp a out/b", "cat < a", "cd out; ls > /workspace/out/y"):
        shell.judge(command)
    for command in (
        "ls > x",
        "ls > out/../x",
        "touch out/a b",
        "cp out/a b",
        "mv a out/b",
        "rm out/a",
        "cat < secret/x",
        "cd out; ls > x",
    ):
        with pytest.raises(RefusedByPolicyError, match="no right to"):
            shell.judge(command)


def test_a_loop_may_walk_deeper_than_it_says() -> None:
    zones = (Zone("", read=True, write=True), Zone("a/a", read=True))
    programs = ("ls", "cd")
    shell = policy_of(*(CommandRule(name, Risk.LOW, redirections=True) for name in programs), zones=zones)
    shell.judge("cd a; ls > x")
    with pytest.raises(RefusedByPolicyError, match="may lead anywhere"):
        shell.judge("for i in 1 2; do cd a; done; ls > x")


@pytest.mark.parametrize("name", ["x", "LINENO", "DIRSTACK", "INPUTRC", "histchars", "kala_x"])
def test_a_variable_never_has_a_name_that_bash_could_know(name: str) -> None:
    script = SHELL.judge(f'{name}=1; for {name} in a; do read -r {name}; echo "${name}"; done').script
    assert f"kala_{name}='1'" in script
    assert f"for kala_{name} in" in script
    assert f"'read' '-r' 'kala_{name}'" in script
    assert f"${{kala_{name}}}" in script


def test_the_shell_begins_in_the_host_directory_where_one_is_shown() -> None:
    SHELL.judge("ls; cat < x; ls > /workspace/x", directory="host")
    with pytest.raises(RefusedByPolicyError, match="no right to write host/x"):
        SHELL.judge("ls > x", directory="host")


PATTERNS = [
    "-.*",
    "--c[o-z].*",
    "-[^-]*o.*",
    "-exec(?:dir)?",
    "(?i)-exec",
    "(?s)[-(),!].*",
    "a|b",
    "",
    "x{2,}",
    "[^a]+",
    ".*",
]


@settings(max_examples=400, deadline=None)
@given(
    pattern=st.sampled_from(PATTERNS),
    prefix=st.text(alphabet="-abcoxe!./\u00e9", max_size=3),
    rest=st.text(alphabet="-abcoxe!./\u00e9", max_size=5),
)
def test_an_expansion_that_could_match_is_never_overlooked(pattern: str, prefix: str, rest: str) -> None:
    if compiled(pattern).fullmatch(prefix + rest):
        assert may_match(pattern, Argument(prefix, known=False))
        assert may_match(pattern, ANYTHING)


def test_a_prefix_that_no_match_begins_with_is_let_through() -> None:
    assert not may_match("-.*", Argument("./", known=False))
    assert not may_match("--c[o-z].*", Argument("/dev/fd/", known=False))


@pytest.mark.parametrize(
    "program",
    [
        "{print $1}",
        '/a|b/ {print "x|y"}',
        "$1 ~ /a|b/",
        '{print $1 || $2, "|"} # a | b',
        "($1 > 3) || /a|[b|c]/",
        'BEGIN { x = "a@b" }',
    ],
)
def test_awk_programs_with_harmless_bars_pass(program: str) -> None:
    assert not starts_programs(program)
