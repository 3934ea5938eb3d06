"""A person's erasure over a whole suite: what they said, what ran for them, what waits; and one certificate of it all."""

from __future__ import annotations

import base64
import secrets
import shutil
import uuid

import httpx
import pytest

from kala.audit.erasure import verify_certificate
from kala.audit.note import Verifier
from kala.client import KalaClient
from kala.suite.record import Condition
from kala.target import Target
from tests.e2e.suites import Suite
from tests.e2e.test_tools import PROGRAM
from tests.fakes.lm_studio import FakeLMStudio

REASON = "asked for by letter"


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_a_person_is_erased_in_every_part_that_runs(tool_suite: Suite, upstream: FakeLMStudio) -> None:
    suite, person = tool_suite, f"person-{uuid.uuid4()}"
    upstream.calls = [("code_execution", {"language": "python", "code": PROGRAM})]
    answer = httpx.post(
        f"{suite.url}/v1/chat/completions",
        json={
            "model": "auto",
            "user": person,
            "messages": [{"role": "user", "content": "What is the sum of the numbers below ten?"}],
            "kala_tools": "auto",
        },
        headers={"authorization": f"Bearer {suite.key}"},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    with KalaClient(Target(suite.url, suite.key)) as client:
        name = client.call("POST", "/kala/v1/gateway/subjects:name", body={"person": person})["name"]
        body = {"reason": REASON, "request_id": base64.b64encode(secrets.token_bytes(16)).decode()}
        reply = client.call("POST", f"/kala/v1/audit/{name}:erase", body=body)
        again = client.call("POST", f"/kala/v1/audit/{name}:erase", body=body)
        vkey = client.call("GET", "/kala/v1/audit/checkpoint")["verifier_key"]
    value = verify_certificate(
        base64.b64decode(reply["certificate"]), reply["signature"], [Verifier.parse(vkey)]
    )
    items = {store["store"]: store["items"] for store in value["stores"]}
    assert items["audit.keys"] == 1
    # The question, the answers, the call and its result.
    assert items["audit.payloads"] >= 4
    assert items["tools.runs"] == 1
    assert ("trainer.rows" in items) == (suite.record().parts["trainer"].condition is Condition.READY)
    assert again["certificate"] == reply["certificate"]
