"""What inference writes into the log on its own account."""

from __future__ import annotations

import pytest

from kala.audit.v1 import audit_pb2
from kala.common.v1.clearance_pb2 import SealedAction
from kala.errors import ClearanceError, UnavailableError
from kala.inference.v1 import inference_pb2 as pb
from services.common.audit_client import Appended, AppendStatus, AuditPolicy
from services.common.sealing import pack
from services.common.status import translated
from services.inference.records import ADMINISTRATIVE
from tests.fakes.model_server import FakeModelServer
from tests.service.inference.conftest import CHAT, StartSuite, action


class FakeWriter:
    """Keeps records, or is away."""

    def __init__(self, *, is_away: bool = False) -> None:
        self.is_away = is_away
        self.records: list[audit_pb2.Record] = []
        self.policies: list[AuditPolicy] = []

    async def append(self, record: audit_pb2.Record, *, policy: AuditPolicy) -> Appended:
        if self.is_away:
            raise UnavailableError("the log is away", reason="AUDIT_UNAVAILABLE")
        self.records.append(record)
        self.policies.append(policy)
        return Appended(b"", AppendStatus.LOGGED)


@pytest.mark.parametrize("is_away", [False, True])
async def test_a_denied_call_is_recorded_and_denied_whether_or_not_the_log_is_there(
    start: StartSuite, llama: FakeModelServer, is_away: bool
) -> None:
    writer = FakeWriter(is_away=is_away)
    suite = await start(llamacpp_url=llama.url, writer=writer)
    with pytest.raises(ClearanceError), translated():
        async for _ in suite.stub.Chat(pb.ChatRequest(sealed=SealedAction(action=pack(action())))):
            pass
    assert [(record.type, record.action.rpc, record.result.code) for record in writer.records] == (
        [] if is_away else [("rpc.denied", CHAT, "CLEARANCE_MISSING")]
    )
    assert llama.chats == []


async def test_a_chat_leaves_no_record_here(start: StartSuite, llama: FakeModelServer) -> None:
    writer = FakeWriter()
    await (await start(llamacpp_url=llama.url, writer=writer)).chat()
    assert writer.records == []


async def test_a_backends_test_is_recorded_as_administration(
    start: StartSuite, llama: FakeModelServer
) -> None:
    writer = FakeWriter()
    suite = await start(llamacpp_url=llama.url, writer=writer)
    await suite.stub.CheckBackend(pb.CheckBackendRequest(name="backends/llamacpp"))
    (record,) = writer.records
    assert (record.type, record.result.status) == ("admin", "ok")
    assert writer.policies == [AuditPolicy.FAIL_CLOSED]  # never only spooled
    assert [(item.key, item.value) for item in record.attributes] == [("peer", "local:gateway")]


async def test_what_cannot_be_recorded_is_not_administered(start: StartSuite, llama: FakeModelServer) -> None:
    suite = await start(llamacpp_url=llama.url, writer=FakeWriter(is_away=True))
    with pytest.raises(UnavailableError), translated():
        await suite.stub.CheckBackend(pb.CheckBackendRequest(name="backends/llamacpp"))


def test_the_administrative_calls_are_those_of_the_admin_scope() -> None:
    names = {method.rpartition("/")[2] for method in ADMINISTRATIVE}
    assert {"CheckBackend", "UnloadModel", "PullModel"} <= names
    assert not {"Chat", "ListModels", "ListBackends", "ExplainRoute"} & names
