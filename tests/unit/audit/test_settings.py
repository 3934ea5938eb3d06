"""The audit service's settings and what its README says of them."""

from __future__ import annotations

from pathlib import Path

import services.audit
from services.audit.config import SECTION, AuditSettings
from services.common.settings import settings_table

README = Path(services.audit.__file__).parent / "README.md"


def test_the_readme_lists_the_settings_as_they_are() -> None:
    table = settings_table(AuditSettings, section=SECTION).replace(str(Path.home()), "~")
    assert table in README.read_text()


def test_every_setting_has_a_default() -> None:
    assert AuditSettings().address == "127.0.0.1:50054"
