"""Reading the policy file: strictly, since a typing error in it must not widen what may run."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

from kala.errors import InvalidArgumentError
from services.tools.files.paths import require_path
from services.tools.policy.model import (
    MAX_APPROVAL_SECONDS,
    ApprovalRule,
    Approver,
    CommandRule,
    Policy,
    Risk,
    Zone,
)
from services.tools.policy.shell.arguments import compiled
from services.tools.policy.shell.programs import RUN_CODE, UNJUDGED
from services.tools.policy.strict_yaml import Section, read_document
from services.tools.policy.zones import HOST
from services.tools.sandbox.model import Limits, Strength

DEFAULT_POLICY: Final = Path(__file__).with_name("default.yaml")
TOOL_NAMES: Final = ("code_execution", "filesystem", "shell")
MAX_FILE_BYTES: Final = 1024 * 1024
MAX_GROUPS: Final = 256
MAX_PROGRAMS: Final = 1_024
MAX_ZONES: Final = 256
# As the contract says.
MAX_PATTERNS: Final = 64
LEAST_WALL_SECONDS: Final = 0.01
MOST_WALL_SECONDS: Final = 900.0
LEAST_MEMORY_BYTES: Final = 16 * 1024 * 1024
LEAST_OPEN_FILES: Final = 8
LEAST_APPROVAL_SECONDS: Final = 1.0
# More than any machine has of them.
_MANY: Final = 1_000_000
_LEAST_TTL_SECONDS: Final = 60.0
_MOST_TTL_SECONDS: Final = 30 * 24 * 3600.0
_PROGRAM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}|\[|:")
_KEYWORDS: Final = frozenset(
    {"case", "do", "done", "elif", "else", "esac", "fi", "for", "if", "in", "then", "until", "while"}
)


def read_policy(path: Path = DEFAULT_POLICY) -> Policy:
    """The policy of a file; raises InvalidArgumentError naming the file, the key, the limit and the cure."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidArgumentError(str(path), f"cannot be read: {error.strerror}") from None
    return parse_policy(data, where=str(path))


def parse_policy(data: bytes, *, where: str) -> Policy:
    """The policy of these bytes; raises InvalidArgumentError beginning with `where`."""
    if len(data) > MAX_FILE_BYTES:
        raise InvalidArgumentError(where, f"has more than {MAX_FILE_BYTES} bytes")
    try:
        return _policy(read_document(data, where=""), hashlib.sha256(data).digest())
    except InvalidArgumentError as error:
        # A key's path, or a colon with the line of what is no YAML.
        place = error.field if error.field.startswith(":") else f": {error.field}"
        raise InvalidArgumentError(f"{where}{place}".removesuffix(": "), error.problem) from None


def _policy(top: Section, digest: bytes) -> Policy:
    workspaces = top.section("workspaces")
    limits = top.section("limits")
    max_limits = _limits(limits.section("max"))
    policy = Policy(
        version=top.text("version"),
        digest=digest,
        tools=_tools(top),
        commands=_commands(top),
        zones=_zones(top),
        approvals=_approvals(top.section("approvals")),
        default_limits=_limits(limits.section("default")),
        max_limits=max_limits,
        least_strength=top.choice("least_strength", Strength),
        allow_weak=top.flag("allow_weak"),
        default_workspace_bytes=workspaces.size("default_bytes", least=1),
        max_workspace_bytes=workspaces.size("max_bytes", least=1),
        default_workspace_seconds=_ttl(workspaces, "default_ttl"),
        max_workspace_seconds=_ttl(workspaces, "max_ttl"),
        allow_host_directory=workspaces.flag("allow_host_directory"),
    )
    for section in (workspaces, limits, top):
        section.end()
    _require_defaults_within(policy)
    if policy.least_strength is Strength.WEAK and not policy.allow_weak:
        raise InvalidArgumentError("least_strength", "is weak, which needs allow_weak: true as well")
    return policy


def _tools(top: Section) -> frozenset[str]:
    names = top.texts("tools", most=len(TOOL_NAMES))
    for name in names:
        if name not in TOOL_NAMES:
            raise InvalidArgumentError("tools", f"{name!r} is no tool; there are {', '.join(TOOL_NAMES)}")
    return frozenset(names)


def _zones(top: Section) -> tuple[Zone, ...]:
    zones: dict[str, Zone] = {}
    for item in top.sections("zones", most=MAX_ZONES):
        path = item.path_text("path")
        if path:
            require_path(item.path("path"), path)
        if path in zones:
            raise InvalidArgumentError(item.path("path"), f"{path!r} comes twice")
        zone = Zone(path, read=item.flag("read"), write=item.flag("write"), delete=item.flag("delete"))
        item.end()
        if (path == HOST or path.startswith(HOST + "/")) and (zone.write or zone.delete):
            raise InvalidArgumentError(
                item.where, "the host directory is read-only; write and delete must be false"
            )
        zones[path] = zone
    return tuple(zones.values())


def _approvals(section: Section) -> ApprovalRule:
    rule = ApprovalRule(
        from_risk=section.choice_or_never("from_risk", Risk),
        from_risk_after_untrusted=section.choice_or_never("from_risk_after_untrusted", Risk),
        approver=section.choice("approver", Approver),
        wait_seconds=section.span("waits", least=LEAST_APPROVAL_SECONDS, most=MAX_APPROVAL_SECONDS),
    )
    section.end()
    return rule


def _commands(top: Section) -> tuple[CommandRule, ...]:
    rules: dict[str, CommandRule] = {}
    for group in top.sections("commands", most=MAX_GROUPS):
        for rule in _group(group):
            if rule.program in rules:
                raise InvalidArgumentError(group.where, f"{rule.program!r} has a rule already")
            rules[rule.program] = rule
    if len(rules) > MAX_PROGRAMS:
        raise InvalidArgumentError(
            "commands", f"name {len(rules)} programs, at most {MAX_PROGRAMS} are taken"
        )
    return tuple(rules[program] for program in sorted(rules))


def _group(group: Section) -> list[CommandRule]:
    programs = group.texts("programs", most=MAX_PROGRAMS)
    risk = group.choice("risk", Risk)
    redirections = group.flag("redirections")
    patterns = tuple(group.texts("refuse", most=MAX_PATTERNS)) if group.has("refuse") else ()
    most = group.count("max_arguments", least=0, most=_MANY) if group.has("max_arguments") else None
    group.end()
    for pattern in patterns:
        try:
            compiled(pattern)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(group.path("refuse"), error.problem) from None
    for program in programs:
        _require_judgeable(group, program, risk)
    return [CommandRule(program, risk, patterns, most, redirections) for program in programs]


def _require_judgeable(group: Section, program: str, risk: Risk) -> None:
    where = group.path("programs")
    if not _PROGRAM.fullmatch(program):
        raise InvalidArgumentError(where, f"{program!r} is no program's name without a directory")
    if program in _KEYWORDS or program in UNJUDGED:
        raise InvalidArgumentError(
            where, f"{program} runs what cannot be judged; use the tool code_execution instead"
        )
    if RUN_CODE.fullmatch(program) and risk < Risk.MEDIUM:
        raise InvalidArgumentError(
            group.path("risk"), f"must be medium or high, since {program} can run any code"
        )


def _limits(section: Section) -> Limits:
    limits = Limits(
        wall_seconds=section.span("wall", least=LEAST_WALL_SECONDS, most=MOST_WALL_SECONDS),
        cpu_seconds=section.span("cpu", least=LEAST_WALL_SECONDS, most=MOST_WALL_SECONDS),
        memory_bytes=section.size("memory", least=LEAST_MEMORY_BYTES),
        processes=section.count("processes", least=1, most=_MANY),
        open_files=section.count("open_files", least=LEAST_OPEN_FILES, most=_MANY),
        disk_bytes=section.size("disk"),
        inodes=section.count("inodes", least=0, most=_MANY),
        file_bytes=section.size("file"),
        output_bytes=section.size("output"),
        artifacts=section.count("artifacts", least=0, most=_MANY),
        artifact_bytes=section.size("artifact_bytes"),
    )
    section.end()
    return limits


def _ttl(section: Section, key: str) -> float:
    return section.span(key, least=_LEAST_TTL_SECONDS, most=_MOST_TTL_SECONDS)


def _require_defaults_within(policy: Policy) -> None:
    for name in Limits.__slots__:
        default, most = getattr(policy.default_limits, name), getattr(policy.max_limits, name)
        if default > most:
            raise InvalidArgumentError(
                f"limits.default.{name}", f"is {default:g}, above its maximum of {most:g}"
            )
    if policy.default_workspace_bytes > policy.max_workspace_bytes:
        raise InvalidArgumentError("workspaces.default_bytes", "is above max_bytes")
    if policy.default_workspace_seconds > policy.max_workspace_seconds:
        raise InvalidArgumentError("workspaces.default_ttl", "is above max_ttl")
