"""The policy file is read strictly: a slip in it stops the service and never widens what may run."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from kala.errors import InvalidArgumentError
from services.tools.policy.loading import DEFAULT_POLICY, parse_policy, read_policy
from services.tools.policy.model import Approver, RefusedByPolicyError, Risk
from services.tools.policy.shell.programs import PROGRAM_JUDGES
from services.tools.policy.zones import Zones
from services.tools.sandbox.model import Strength

TEXT = DEFAULT_POLICY.read_text()


def changed(old: str, new: str) -> bytes:
    assert old in TEXT
    return TEXT.replace(old, new, 1).encode()


def test_the_default_policy_is_cautious() -> None:
    policy = read_policy()
    assert policy.digest == hashlib.sha256(DEFAULT_POLICY.read_bytes()).digest()
    assert policy.tools == {"code_execution", "filesystem", "shell"}
    assert policy.least_strength is Strength.STANDARD
    assert not policy.allow_weak
    assert not policy.allow_host_directory
    assert policy.approvals.from_risk is Risk.HIGH
    assert policy.approvals.from_risk_after_untrusted is Risk.MEDIUM
    assert policy.approvals.approver is Approver.OWNER
    assert {rule.program for rule in policy.commands if rule.risk is Risk.HIGH} == {"rm", "rmdir", "unlink"}


def test_no_program_of_the_default_policy_runs_code_that_is_not_judged() -> None:
    starters = {"awk", "command", "env", "find", "nice", "nohup", "sed", "stdbuf", "timeout", "xargs"}
    allowed = {rule.program for rule in read_policy().commands}
    assert starters <= allowed & PROGRAM_JUDGES.keys()
    assert not allowed & {
        "bash",
        "sh",
        "python3",
        "node",
        "perl",
        "git",
        "tar",
        "vi",
        "less",
        "curl",
        "ssh",
        "dd",
        "make",
    }


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("allow_weak: false", "allow_week: false", r"allow_weak: is missing"),
        ("allow_weak: false", "allow_weak: false\nallow_week: true", r"allow_week: is no setting"),
        ("allow_weak: false", 'allow_weak: "false"', r"allow_weak: must be true or false"),
        ("allow_weak: false", "allow_weak: false\nallow_weak: true", r":\d+: the key 'allow_weak' comes twice"),
        ("least_strength: standard", "least_strength: weak", r"least_strength: is weak, which needs allow_weak"),
        ("least_strength: standard", "least_strength: strongest", r"must be weak, standard or strong"),
        ("tools: [code_execution, filesystem, shell]", "tools: [shel]", r"tools: 'shel' is no tool"),
        ("wall: 30s", "wall: 30", r"limits.default.wall: must be a time with its unit"),
        ("wall: 30s", "wall: 20m", r"limits.default.wall: must be from 0.01 s to 900 s"),
        ("memory: 512MiB", "memory: 8GiB", r"limits.default.memory_bytes: is 8.58993e\+09, above its maximum"),
        ("memory: 512MiB", "memory: 512MB", r"limits.default.memory: must be a size with its unit"),
        ("memory: 512MiB", "memory: 1MiB", r"limits.default.memory: must be at least 16777216"),
        ("processes: 64", "processes: 0", r"limits.default.processes: must be a whole number from 1"),
        ("processes: 64", "processes: true", r"limits.default.processes: must be a whole number from 1"),
        ("waits: 10m", "waits: 48h", r"approvals.waits: must be from 1 s to 86400 s"),
        ("approver: owner", "approver: anybody", r"approvals.approver: must be owner, other or admin"),
        ("default_bytes: 64MiB", "default_bytes: 2GiB", r"workspaces.default_bytes: is above max_bytes"),
        ('{path: "", read', '{path: "../x", read', r"zones\[0\].path: must not hold the segment"),
        ("{path: host, read", '{path: "", read', r"zones\[1\].path: '' comes twice"),
        ("{path: host, read: true, write: false", "{path: host, read: true, write: true", r"host directory is read-only"),
        ("programs: [sort]", "programs: [sort, bash]", r"bash runs what cannot be judged"),
        ("programs: [sort]", "programs: [eval]", r"eval runs what cannot be judged"),
        ("programs: [sort]", "programs: [python3.11]", r"risk: must be medium or high, since python3.11"),
        ("programs: [sort]", "programs: [/usr/bin/sort]", r"no program's name"),
        ("programs: [sort]", "programs: [sort, ls]", r"'(sort|ls)' has a rule already"),
        ("programs: [sort]", "programs: [true]", r"must be a text; write"),
        ("programs: [sort]", "programs: ['if']", r"if runs what cannot be judged"),
        ('refuse: ["--f.*"]', 'refuse: ["(?=x)"]', r"refuse: '\(\?=x\)' is no RE2 pattern"),
        ('refuse: ["--f.*"]', 'refuse: ["(a{1000}){1000}"]', r"needs too much memory|no RE2 pattern"),
        ('version: "1"', "version: 1", r"version: must be a text"),
        ('version: "1"', 'version: &a "1"\nother: *a', r"references are not taken"),
        ('version: "1"', "version: [", r"policy.yaml:\d+"),
    ],
)  # fmt: skip
def test_a_slip_is_named_with_its_place_and_its_cure(old: str, new: str, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        parse_policy(changed(old, new), where="policy.yaml")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"x", b"\xff", b"{" * 5_000, b"a: " + b"[" * 5_000, b"x" * (1024 * 1024 + 1)]
)
def test_what_is_no_policy_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match=r"policy\.yaml"):
        parse_policy(data, where="policy.yaml")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"none\.yaml: cannot be read"):
        read_policy(tmp_path / "none.yaml")


def test_never_means_that_nobody_is_asked() -> None:
    rule = parse_policy(changed("from_risk: high", "from_risk: never"), where="x").approvals
    assert rule.from_risk is None
    assert rule.reason(Risk.HIGH, after_untrusted=False) == ""
    assert "untrusted" in rule.reason(Risk.MEDIUM, after_untrusted=True)
    assert rule.reason(Risk.LOW, after_untrusted=True) == ""


def test_the_longest_matching_zone_decides_and_nothing_matching_means_no_right() -> None:
    text = "  - {path: a/b, read: false, write: true, delete: false}\n  - {path: a, read: true, write: false, delete: false}\n"
    start, end = TEXT.index('  - {path: ""'), TEXT.index("\n# When a person")
    zones = Zones(parse_policy((TEXT[:start] + text + TEXT[end:]).encode(), where="x").zones)
    assert zones.may_read("a")
    assert zones.may_read("a/c")
    assert zones.may_read("a/bc")
    assert not zones.may_read("a/b/c")
    assert zones.may_write("a/b/c")
    assert not zones.may_read("")
    assert not zones.may_read("b")
    with pytest.raises(RefusedByPolicyError, match=r"no right to delete a/b; it gives that right to nothing"):
        zones.require_delete("a/b")


@pytest.mark.parametrize("path", ["host", "host/x"])
def test_the_host_directory_is_read_only_whatever_the_zones_say(path: str) -> None:
    zones = Zones(read_policy().zones)
    assert zones.may_read(path)
    assert not zones.may_write(path)
    assert not zones.may_delete(path)
