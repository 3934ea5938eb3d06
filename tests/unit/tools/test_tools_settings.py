"""The tools service's settings: documented as they are, strict about what could open a door."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from kala.errors import InvalidArgumentError
from services.common.settings import load, settings_table
from services.tools.config import SECTION, ToolsSettings
from services.tools.metrics import CallCounter, show_isolation
from services.tools.policy.model import Policy
from services.tools.sandbox.model import Isolation, Status, Strength, Tier
from services.tools.tiers import detection_policy

README = Path(__file__).parents[3] / "services" / "tools" / "README.md"


def test_the_readme_has_the_table_of_settings() -> None:
    table = settings_table(ToolsSettings, section=SECTION).replace(str(Path.home()), "~")
    assert table in README.read_text()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TIERS", "none"),
        ("TIERS", ""),
        ("RUN_AS_UID", "0"),
        ("MAX_RUNS", "0"),
        ("REPLICA", "a/b"),
        ("MAX_ACT_SECONDS", "901"),
        ("UNSANDBOXED", "true"),
    ],
)
def test_a_setting_that_could_open_a_door_stops_the_process(name: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=name):
        load(ToolsSettings, section=SECTION, argv=[], environ={f"KALA_TOOLS_{name}": value}, cwd=tmp_path)


def test_the_weak_tier_needs_a_word_of_the_operator(packaged_policy: Policy) -> None:
    assert not detection_policy(ToolsSettings(), packaged_policy).allow_weak
    allowed = detection_policy(ToolsSettings(allow_weak=True, tiers=("landlock",)), packaged_policy)
    assert allowed.allow_weak
    assert allowed.tiers == (Tier.LANDLOCK,)


def test_calls_and_isolation_are_counted() -> None:
    registry = CollectorRegistry()
    count = CallCounter(registry)
    count("shell", Status.REFUSED)
    count("shell", Status.REFUSED)
    assert registry.get_sample_value("kala_tool_calls_total", {"tool": "shell", "status": "refused"}) == 2
    show_isolation(Isolation(Tier.BUBBLEWRAP, Strength.STANDARD, "1", ()), registry)
    assert registry.get_sample_value("kala_tools_isolation_strength") == 2
