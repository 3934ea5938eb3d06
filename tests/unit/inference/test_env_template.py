"""The template of .env: every line of it works when its # is taken away."""

from __future__ import annotations

import re
from pathlib import Path

from gateway.config import SECTION as GATEWAY_SECTION
from gateway.config import GatewaySettings
from services.common.settings import known_names, load
from services.inference.config import SECTION, InferenceSettings

TEMPLATE = Path(__file__).parents[3] / ".env.template"
SETTING = re.compile(r"^# ([A-Z][A-Z0-9_]*=\S*)", re.MULTILINE)


def test_every_line_works_when_its_sign_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        re.sub(r"^# (?=[A-Z][A-Z0-9_]*=)", "", TEMPLATE.read_text(), flags=re.MULTILINE)
    )
    inference = load(InferenceSettings, section=SECTION, argv=[], environ={}, cwd=tmp_path)
    assert inference.lmstudio_url == "http://localhost:1234/v1"
    assert inference.routing.role("sigma").model == "qwen/qwen3-4b-2507"
    assert inference.lmstudio_preferences.contexts.of("qwen/qwen3-4b-2507") == 16384
    gateway = load(GatewaySettings, section=GATEWAY_SECTION, argv=[], environ={}, cwd=tmp_path)
    assert gateway.provider == "auto"


def test_it_names_only_settings_that_there_are() -> None:
    known = known_names(InferenceSettings, SECTION)
    variables = {name for one in known for name in one.variables}
    families = tuple(one.family for one in known if one.family)
    names = {line.partition("=")[0] for line in SETTING.findall(TEMPLATE.read_text())}
    assert names
    assert {name for name in names if name not in variables and not name.startswith(families)} == set()
