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
# A worker takes whole files, in this order: one of minutes that begins last is waited for by all. Others follow by name.
LONGEST = (
    "test_ray_training", "test_suite", "test_training", "test_sessions", "test_audit_kill", "test_trainer_kill",
    "test_fine_tuning", "test_erasure_kill", "test_one_conversation", "test_adapters", "test_schemathesis",
    "test_batch_kill", "test_seed_guide", "test_started_server",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here starts real processes; the longest files come first."""
    ours = [item for item in items if HERE in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.e2e)
    ours.sort(key=_turn)
    items[:] = [item for item in items if HERE not in item.path.parents] + ours


def _turn(item: pytest.Item) -> int:
    name = item.path.stem
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


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
