"""What the LM Studio guide says of tools: the packaged policy offers them, and a session that wants none has none.

The tools themselves are tested in tests/unit/tools and tests/service/tools, the guide's own calls in tests/unit/sdk and
tests/e2e.
"""

from __future__ import annotations

import pytest

from kala.client import KalaClient
from kala.core.connection import Connection
from kala.core.unified_session import UnifiedKALASession
from kala.errors import ToolsDisabled
from kala.target import Target
from services.tools.policy.loading import read_policy
from tests.fakes.gateway import FakeGateway


def test_the_packaged_policy_has_the_guides_tools() -> None:
    policy = read_policy()
    assert {"shell", "filesystem", "code_execution"} <= set(policy.tools)


def test_a_session_without_tools_asks_for_none() -> None:
    gateway = FakeGateway()
    with (
        KalaClient(Target("http://x", "k"), gateway.transport) as client,
        UnifiedKALASession(connection=Connection(client)) as session,
    ):
        with pytest.raises(ToolsDisabled, match="enable_tools=True"):
            session.execute_tool("shell", command="ls -la")
        assert session.list_tools() == ()
    assert gateway.seen == []
