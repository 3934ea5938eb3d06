"""Several hosts of one kind: the work is shared by weight, and one that is gone is made up for by the others."""

from __future__ import annotations

from collections import Counter

from kala.inference.v1 import inference_pb2 as pb
from tests.fakes.model_server import FakeModelServer
from tests.service.inference.conftest import StartSuite


async def test_requests_are_shared_by_weight_and_named_by_host(
    start: StartSuite, llama: FakeModelServer
) -> None:
    async with FakeModelServer() as other:
        suite = await start(llamacpp_url=llama.url, llamacpp_urls=(f"{other.url} weight=2",))
        served = Counter([(await suite.chat()).route.backend for _ in range(9)])
        assert served == {"backends/llamacpp": 3, "backends/llamacpp-2": 6}
        listed = await suite.stub.ListBackends(pb.ListBackendsRequest())
        assert [(one.name, one.url) for one in listed.backends] == [
            ("backends/llamacpp", llama.url),
            ("backends/llamacpp-2", other.url),
        ]


async def test_a_host_that_is_gone_is_made_up_for_by_the_other(
    start: StartSuite, llama: FakeModelServer
) -> None:
    async with FakeModelServer() as other:
        suite = await start(llamacpp_url=llama.url, llamacpp_urls=(other.url,), fallback_hosts=())
        await suite.chat()
        await llama.stop()
        assert {(await suite.chat()).text for _ in range(4)} == {"Hello"}
        assert len(other.chats) >= 4
