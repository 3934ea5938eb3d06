"""The packaged policy, for tests of what rests on it."""

from __future__ import annotations

import pytest

from services.tools.policy.loading import read_policy
from services.tools.policy.model import Policy


@pytest.fixture(scope="session")
def packaged_policy() -> Policy:
    return read_policy()
