"""One suite for all tests that only talk to it; tests that break things start their own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kala.suite.record import Condition
from tests.e2e.suites import Suite, kala, running_suite
from tests.fakes.lm_studio import FakeLMStudio, lm_studio

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here starts real processes."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def upstream() -> Iterator[FakeLMStudio]:
    """The model server behind the shared suite."""
    with lm_studio() as fake:
        yield fake


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory, upstream: FakeLMStudio) -> Iterator[Suite]:
    """The shared suite: LM Studio behind it, the embedded demo by name."""
    state = tmp_path_factory.mktemp("suite") / "state"
    with running_suite(state, KALA_INFERENCE_LMSTUDIO_URL=upstream.url) as running:
        yield running


@pytest.fixture
def tool_suite(suite: Suite) -> Suite:
    """The shared suite, with its tools running; what they said where they do not."""
    logged = kala("logs", "tools", "--state", suite.state).stdout
    assert suite.record().parts["tools"].condition is Condition.READY, logged
    return suite


@pytest.fixture(scope="session")
def go_checker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Go's checker, built from tests/go by the script that installs what it needs."""
    path = tmp_path_factory.mktemp("go") / "checker"
    subprocess.run([HERE.parents[1] / "scripts" / "go_checker.sh", path], check=True, timeout=600)
    return path
