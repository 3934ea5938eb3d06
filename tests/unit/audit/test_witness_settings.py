"""The witness's settings and what its README says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

import services.audit.witness
from kala.errors import InvalidArgumentError
from services.audit.witness.config import SECTION, WitnessSettings
from services.common.settings import load, settings_table

README = Path(services.audit.witness.__file__).parent / "README.md"


def test_the_readme_lists_the_settings_as_they_are() -> None:
    table = settings_table(WitnessSettings, section=SECTION).replace(str(Path.home()), "~")
    assert table in README.read_text()


def test_it_listens_on_this_machine_unless_told_otherwise() -> None:
    assert WitnessSettings().address == "127.0.0.1:8806"


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"ADDRESS": "0.0.0.0:8806"}, "tls_cert_file"),
        ({"ADDRESS": "unix:/run/witness.sock"}, "over HTTP"),
        ({"ADDRESS": "nowhere"}, "port"),
        ({"TLS_CERT_FILE": "/c.pem"}, "together"),
        ({"METRICSPORT": "1"}, "KALA_WITNESS_METRICSPORT"),
    ],
    ids=["open", "unix", "no port", "half of TLS", "unknown"],
)
def test_settings_that_open_it_to_others_or_mean_nothing_are_refused(
    tmp_path: Path, variables: dict[str, str], problem: str
) -> None:
    environ = {f"KALA_WITNESS_{name}": value for name, value in variables.items()}
    with pytest.raises(InvalidArgumentError, match=problem):
        load(WitnessSettings, section=SECTION, argv=[], environ=environ, cwd=tmp_path)


def test_its_section_of_the_common_file_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "kala.yaml").write_text("witness:\n  address: 127.0.0.1:9\naudit:\n  witnesses_required: 0\n")
    settings = load(WitnessSettings, section=SECTION, argv=[], environ={}, cwd=tmp_path)
    assert settings.address == "127.0.0.1:9"
