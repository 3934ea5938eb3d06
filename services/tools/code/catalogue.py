"""From weakness classes to what auditors ask for: CWE to OWASP Top 10 (2021 and 2025) to NIST SSDF; and all rules by id.

The tables are in catalogue.yaml. The SSDF practices are those of SP 800-218 version 1.1 whose neglect lets such a
weakness through.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from typing import Final

import yaml

from services.tools.code.model import Rule

# Rule ids that RepairCode has a rewrite for; the rewrites themselves answer for this list in a test.
REPAIRABLE: Final[frozenset[str]] = frozenset(
    {
        "bandit.B105",
        "bandit.B303",
        "bandit.B306",
        "bandit.B307",
        "bandit.B311",
        "bandit.B323",
        "bandit.B501",
        "bandit.B502",
        "bandit.B503",
        "bandit.B506",
        "bandit.B507",
        "bandit.B602",
        "bandit.B605",
        "bandit.B607",
        "bandit.B701",
        "kala.python.all_interfaces",
        "kala.python.autoescape_off",
        "kala.python.certificate_unchecked",
        "kala.python.code_injection",
        "kala.python.command_injection",
        "kala.python.cookie_flags",
        "kala.python.debug_mode",
        "kala.python.entity_parser",
        "kala.python.hardcoded_key",
        "kala.python.hardcoded_password",
        "kala.python.host_key_unchecked",
        "kala.python.hostname_unchecked",
        "kala.python.insecure_random",
        "kala.python.insecure_temporary",
        "kala.python.open_permissions",
        "kala.python.open_umask",
        "kala.python.signature_unchecked",
        "kala.python.sql_injection",
        "kala.python.unsafe_deserialisation",
        "kala.python.weak_hash",
        "kala.python.xml_external_entity",
    }
)


def _tables() -> dict[str, dict[str, frozenset[int]]]:
    text = files("services.tools.code").joinpath("catalogue.yaml").read_text(encoding="utf-8")
    # The C loader is the same safe loader, thirty times as fast.
    raw = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
    return {
        table: {name: frozenset(numbers) for name, numbers in members.items()}
        for table, members in raw.items()
    }


_TABLES: Final = _tables()
# Secure coding practices: every weakness in source code touches it.
_SSDF_ALWAYS: Final = "PW.5.1"


def owasp_of(cwe: Iterable[int]) -> tuple[str, ...]:
    """Give the OWASP categories of the first CWE that has any, of both years, sorted by year."""
    for number in cwe:
        found = [
            category
            for table in ("owasp_2021", "owasp_2025")
            for category, numbers in _TABLES[table].items()
            if number in numbers
        ]
        if found:
            return tuple(found)
    return ()


def ssdf_of(cwe: Iterable[int]) -> tuple[str, ...]:
    """Give the SSDF practices that weaknesses of these classes touch; never empty."""
    numbers = set(cwe)
    return tuple(
        sorted({_SSDF_ALWAYS, *(name for name, members in _TABLES["ssdf"].items() if numbers & members)})
    )


def repairable(rule_id: str) -> bool:
    """Tell whether RepairCode has a rewrite for findings of this rule."""
    return rule_id in REPAIRABLE


def by_id(*tables: Iterable[Rule]) -> dict[str, Rule]:
    """Put rules into one table.

    Raises:
        ValueError: an id comes twice or a rule names no CWE; both are mistakes in this product.
    """
    rules: dict[str, Rule] = {}
    for rule in (rule for table in tables for rule in table):
        if rule.id in rules or not rule.cwe:
            raise ValueError(f"rule {rule.id} is defined twice or names no CWE")
        rules[rule.id] = rule
    return rules
