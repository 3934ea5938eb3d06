"""One erasure at the gateway: every part is asked, the log certifies what they said, and nothing false is certified."""

from __future__ import annotations

import base64
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.identity import Pseudonyms
from gateway.part_erasers import Server, replicas_of
from kala.audit.erasure import verify_certificate
from kala.errors import UnavailableError
from tests.fakes.audit_log import signer
from tests.fakes.gateway_suite import Suite, eventually, running_suite
from tests.fakes.scripted_trainer import ScriptedTrainer

pytestmark = pytest.mark.asyncio(loop_scope="session")

TRUSTED = [signer().verifier]
REASON = "asked for by letter"


def scripted_trainer() -> ScriptedTrainer:
    return ScriptedTrainer()  # type: ignore[abstract] # the rest is UNIMPLEMENTED


async def name_of(suite: Suite, person: str = "alice@example.com") -> str:
    answer = await suite.post("/kala/v1/gateway/subjects:name", {"person": person})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["name"])


async def erase(suite: Suite, name: str, request_id: bytes = b"r" * 16, **fields: Any) -> httpx.Response:
    body = {"reason": REASON, "request_id": base64.b64encode(request_id).decode(), **fields}
    return await suite.post(f"/kala/v1/audit/{name}:erase", body)


def certificate_in(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return dict(verify_certificate(base64.b64decode(body["certificate"]), body["signature"], TRUSTED))


async def test_one_call_erases_in_every_part_and_the_certificate_names_each(tmp_path: Path) -> None:
    async with running_suite(tmp_path, has_tools=True, trainer=scripted_trainer()) as suite:
        await suite.chat("My name is Alice.", user="alice@example.com")
        name = await name_of(suite)
        erased = certificate_in(await erase(suite, name))
        stores = {one["store"]: one["items"] for one in erased["stores"]}
        assert (
            stores.items()
            >= {
                "audit.keys": 1,
                "audit.payloads": 3,
                "gateway.spool": 0,
                "gateway.files": 0,
                "tools.workspaces": 2,
                "tools.runs": 3,
                "tools.approvals": 0,
                "trainer.datasets": 1,
                "trainer.rows": 7,
                "trainer.jobs": 1,
                "trainer.adapters": 0,
            }.items()
        )
        assert [one["remaining"] for one in erased["stores"] if one["store"] == "trainer.adapters"] == [
            ["adapters/a@1"]
        ]
        assert suite.tools.erased == [("default", name.removeprefix("subjects/"))]


async def test_a_part_that_is_away_leaves_the_erasure_unfinished_and_named(tmp_path: Path) -> None:
    trainer = scripted_trainer()
    trainer.erase_failure = UnavailableError("the trainer restarts")
    async with running_suite(tmp_path, has_tools=True, trainer=trainer) as suite:
        await suite.chat("My name is Alice.", user="alice@example.com")
        name = await name_of(suite)
        failed = await erase(suite, name)
        assert failed.status_code == 503
        error = failed.json()["error"]
        assert error["details"][0]["reason"] == "ERASURE_UNFINISHED"
        assert "trainer: UNAVAILABLE, the trainer restarts" in error["message"]
        assert (b"r" * 16).hex() in error["message"]
        assert "certificate" not in failed.json()
        kinds = [leaf["type"] for leaf in await suite.leaves() if leaf["type"].startswith("erasure.")]
        assert kinds == ["erasure.intent"]
        trainer.erase_failure = None
        erased = certificate_in(await erase(suite, name))
        # What the tools erased the first time is counted, though the second time they had nothing left.
        assert {one["store"]: one["items"] for one in erased["stores"]}["tools.workspaces"] == 2
        assert certificate_in(await erase(suite, name)) == erased
        assert len(suite.tools.erased) == 2


async def test_a_held_person_is_erased_nowhere(tmp_path: Path) -> None:
    async with running_suite(tmp_path, has_tools=True) as suite:
        name = await name_of(suite)
        held = await suite.post(f"/kala/v1/audit/{name}:hold", {"reason": "a court asked for it"})
        assert held.status_code == 200, held.text
        refused = await erase(suite, name)
        assert refused.json()["error"]["status"] == "FAILED_PRECONDITION"
        assert held.json()["hold"] in refused.json()["error"]["message"]
        assert suite.tools.erased == []
        released = await suite.post(
            f"/kala/v1/audit/{held.json()['hold']}:release", {"reason": "the case is closed"}
        )
        assert released.status_code == 200, released.text
        certificate_in(await erase(suite, name))
        assert len(suite.tools.erased) == 1


async def test_what_waits_in_the_spool_is_erased_before_it_reaches_the_log(tmp_path: Path) -> None:
    """The log is away while Alice speaks; her words wait on disk, and must not come back after her erasure."""
    async with running_suite(tmp_path) as suite:
        await suite.audit.stop()
        answer = await suite.chat("My name is Alice.", user="alice@example.com")
        assert answer.status_code == 200, answer.text
        name = await name_of(suite)
        assert (await erase(suite, name)).status_code == 503
        await suite.audit.start()

        async def is_erased() -> bool:
            answer = await erase(suite, name)
            return answer.status_code == 200 and bool(certificate_in(answer))

        async def has_drained() -> bool:
            return bool(await suite.leaves(kind="chat.outcome"))

        assert await eventually(is_erased)
        assert await eventually(has_drained)
        with closing(sqlite3.connect(suite.directory / "audit.db")) as connection:
            kept = connection.execute(
                "SELECT count(*) FROM payload JOIN subject_key USING (key_id) WHERE subject = ? AND ciphertext IS NOT NULL",
                (name.removeprefix("subjects/"),),
            ).fetchone()
        assert kept == (0,)


async def test_nothing_is_erased_while_the_log_is_away(tmp_path: Path) -> None:
    async with running_suite(tmp_path, has_tools=True) as suite:
        name = await name_of(suite)
        await suite.audit.stop()
        assert (await erase(suite, name)).status_code == 503
        assert suite.tools.erased == []


async def test_a_client_cannot_report_what_others_erased(suite: Suite) -> None:
    name = await name_of(suite)
    for field, value in (("elsewhere", [{"store": "tools.runs", "items": "9"}]), ("awaited", ["tools"])):
        refused = await erase(suite, name, **{field: value})  # type: ignore[arg-type] # fields of the body
        assert refused.status_code == 400
        assert field in refused.text


async def test_only_a_key_with_the_scope_erases_holds_and_names(suite: Suite) -> None:
    name = await name_of(suite)
    headers = suite.bearer(suite.new_key("chat", "audit.read", "admin"))
    for path in (
        f"/kala/v1/audit/{name}:erase",
        f"/kala/v1/audit/{name}:hold",
        "/kala/v1/gateway/subjects:name",
    ):
        refused = await suite.http.post(path, json={"reason": REASON}, headers=headers)
        assert refused.status_code == 403


async def test_another_tenants_key_finds_nobody(suite: Suite) -> None:
    await suite.chat("My name is Carol.", user="carol")
    name = await name_of(suite, "carol")
    headers = suite.bearer(suite.new_key("audit.erase", tenant="other"))
    body = {"reason": REASON, "request_id": base64.b64encode(b"o" * 16).decode()}
    refused = await suite.http.post(f"/kala/v1/audit/{name}:erase", json=body, headers=headers)
    assert refused.status_code == 404


async def test_a_person_has_one_name_per_tenant_and_a_key_has_one_too(suite: Suite) -> None:
    pepper = Pseudonyms((suite.directory / "pepper").read_bytes())
    assert await name_of(suite, "alice") == f"subjects/{pepper.person('default', 'alice')}"
    key = await suite.post("/kala/v1/gateway/subjects:name", {"key": "keys/abc"})
    assert key.json()["name"] == f"subjects/{pepper.key('default', 'abc')}"
    for body in ({}, {"person": ""}, {"person": "x" * 513}, {"key": "abc"}):
        assert (await suite.post("/kala/v1/gateway/subjects:name", body)).status_code == 400


async def test_the_leaves_of_an_erasure_hold_no_name(suite: Suite) -> None:
    await suite.chat("Hello.", user="dora@example.com")
    certificate_in(await erase(suite, await name_of(suite, "dora@example.com"), b"d" * 16))
    assert "dora" not in json.dumps(await suite.leaves())


async def test_every_replica_of_a_headless_service_is_found() -> None:
    async def two(host: str, port: int) -> list[str]:
        assert (host, port) == ("tools", 50053)
        return ["10.0.0.1", "10.0.0.2"]

    found = [Server("10.0.0.1:50053", "tools"), Server("10.0.0.2:50053", "tools")]
    assert await replicas_of("dns:///tools:50053", two) == found
    assert await replicas_of("tools:50053", two) == found
    assert await replicas_of("ipv4:10.0.0.3:1,10.0.0.4:2") == [
        Server("ipv4:10.0.0.3:1"),
        Server("ipv4:10.0.0.4:2"),
    ]
    assert await replicas_of("unix:/run/tools.sock") == [Server("unix:/run/tools.sock")]
