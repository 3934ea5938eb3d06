"""Adapters that a chat names by a header, up to the record that says which was applied."""

from __future__ import annotations

import pytest

from kala.common.v1.reference_pb2 import ContentReference
from tests.fakes.gateway_suite import Suite
from tests.fakes.scripted_inference import finish, route, text

pytestmark = pytest.mark.asyncio(loop_scope="session")

BODY = {"model": "auto", "messages": [{"role": "user", "content": "Tell."}]}
DIGEST = bytes(range(32))


async def test_a_header_names_the_adapters_that_are_judged_and_executed(suite: Suite) -> None:
    headers = {"x-kala-adapters": "adapters/tone@1, adapters/law@12"}
    await suite.post("/v1/chat/completions", BODY, headers=headers)
    assert list(suite.inference.chats[-1].adapters) == ["adapters/tone@1", "adapters/law@12"]
    await suite.post("/v1/chat/completions", BODY)
    assert not suite.inference.chats[-1].adapters


@pytest.mark.parametrize(
    ("named", "problem"),
    [
        ("tone", "'tone' is not adapters/<name>@<version>"),
        ("adapters/tone@1,", "'' is not adapters/<name>@<version>"),
        ("adapters/tone@1,adapters/tone@1", "must name at most 4, each once"),
        (",".join(f"adapters/a@{number}" for number in range(1, 6)), "must name at most 4, each once"),
    ],
)
async def test_what_is_no_adapter_names_the_header(suite: Suite, named: str, problem: str) -> None:
    response = await suite.post("/v1/chat/completions", BODY, headers={"x-kala-adapters": named})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == f"x-kala-adapters: {problem}"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings"])
async def test_only_chats_have_them(suite: Suite, path: str) -> None:
    body = (
        {"model": "auto", "prompt": "Tell."} if path == "/v1/completions" else {"model": "auto", "input": "a"}
    )
    response = await suite.post(path, body, headers={"x-kala-adapters": "adapters/tone@1"})
    assert (response.status_code, response.json()["error"]["message"]) == (
        400,
        "x-kala-adapters: is for chats only",
    )


async def test_the_record_says_which_was_applied(suite: Suite) -> None:
    applied = route()
    applied.route.adapters.append(ContentReference(name="adapters/tone@1", sha256=DIGEST))
    suite.inference.script = lambda _: [applied, text("Tuned."), finish()]
    await suite.post("/v1/chat/completions", BODY, headers={"x-kala-adapters": "adapters/tone@1"})
    (outcome,) = await suite.leaves(kind="chat.outcome")
    assert outcome["model"]["adapter"] == DIGEST.hex()
