"""API keys over REST: made once, listed without secrets, ended at once."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gateway.key_store import KeyStore
from tests.fakes.gateway_suite import Suite, eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

KEYS = "/kala/v1/gateway/keys"


async def test_a_key_is_shown_once_and_works(suite: Suite) -> None:
    made = await suite.post(KEYS, {"display_name": "ci", "scopes": ["SCOPE_CHAT"], "ttl": "3600s"})
    assert made.status_code == 200, made.text
    secret, key = made.json()["secret"], made.json()["key"]
    assert secret.startswith("kala_")
    assert len(secret) == 48
    assert key["prefix"] == secret[:12]
    assert key["scopes"] == ["SCOPE_CHAT"]
    assert key["expires_at"] > key["created_at"]
    assert (await suite.http.get("/v1/models", headers=suite.bearer(secret))).status_code == 200
    listed = await suite.get(KEYS)
    assert secret not in listed.text
    assert key["name"] in [each["name"] for each in listed.json()["keys"]]


async def test_making_and_ending_a_key_is_logged_as_administration(suite: Suite) -> None:
    made = (await suite.post(KEYS, {"display_name": "x", "scopes": ["SCOPE_CHAT"]})).json()
    ended = await suite.post(f"/kala/v1/gateway/{made['key']['name']}:revoke", {})
    assert ended.headers["x-kala-receipt"]
    create, revoke = await suite.leaves(kind="admin")
    assert dict(create["attributes"])["args.key"] == made["key"]["name"]
    assert revoke["action"]["rpc"].endswith("/RevokeKey")


async def test_a_revoked_key_is_refused_at_once(suite: Suite) -> None:
    made = (await suite.post(KEYS, {"display_name": "x", "scopes": ["SCOPE_CHAT"]})).json()
    headers = suite.bearer(made["secret"])
    assert (await suite.http.get("/v1/models", headers=headers)).status_code == 200
    first = await suite.post(f"/kala/v1/gateway/{made['key']['name']}:revoke", {})
    assert (await suite.http.get("/v1/models", headers=headers)).status_code == 401
    again = await suite.post(f"/kala/v1/gateway/{made['key']['name']}:revoke", {})
    assert again.json()["key"]["revoked_at"] == first.json()["key"]["revoked_at"]


async def test_a_key_revoked_by_another_process_is_refused_within_five_seconds(suite: Suite) -> None:
    made = (await suite.post(KEYS, {"display_name": "x", "scopes": ["SCOPE_CHAT"]})).json()
    headers = suite.bearer(made["secret"])
    assert (await suite.http.get("/v1/models", headers=headers)).status_code == 200
    store = KeyStore(suite.settings.database)
    store.revoke(made["key"]["name"].removeprefix("keys/"), datetime.now(UTC))
    store.close()

    async def is_refused() -> bool:
        return (await suite.http.get("/v1/models", headers=headers)).status_code == 401

    assert await eventually(is_refused, seconds=5)


async def test_a_key_gives_only_scopes_that_it_holds(suite: Suite) -> None:
    admin = suite.new_key("admin", "chat")
    body = {"display_name": "auditor", "scopes": ["SCOPE_AUDIT_READ"]}
    response = await suite.http.post(KEYS, json=body, headers=suite.bearer(admin))
    assert response.status_code == 403
    assert "audit.read" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"display_name": "", "scopes": ["SCOPE_CHAT"]}, "display_name"),
        ({"display_name": "x", "scopes": []}, "scopes"),
        ({"display_name": "x", "scopes": ["SCOPE_INTERNAL"]}, "scopes"),
        ({"display_name": "x", "scopes": ["SCOPE_CHAT"], "tenant": "No Spaces"}, "tenant"),
        ({"display_name": "x", "scopes": ["SCOPE_CHAT"], "ttl": "0.5s"}, "ttl"),
    ],
)
async def test_a_wrong_key_names_the_field(suite: Suite, body: dict[str, object], field: str) -> None:
    response = await suite.post(KEYS, body)
    assert response.status_code == 400
    details = response.json()["error"]["details"]
    assert any(field in str(detail) for detail in details)


async def test_pages_follow_each_other_and_tokens_belong_to_their_query(suite: Suite) -> None:
    for number in range(5):
        await suite.post(KEYS, {"display_name": f"page-{number}", "scopes": ["SCOPE_CHAT"]})
    names: list[str] = []
    token = ""
    while True:
        page = (await suite.get(KEYS, params={"page_size": 2, "page_token": token})).json()
        names += [key["name"] for key in page["keys"]]
        token = page["next_page_token"]
        if not token:
            break
        assert len(page["keys"]) == 2
        last_token = token
    assert len(names) == len(set(names)) >= 5
    for params in (
        {"page_token": last_token, "include_ended": "true"},
        {"page_token": last_token[:-4] + "AAA="},
        {"page_token": "???"},
        {"page_size": "1001"},
    ):
        assert (await suite.get(KEYS, params=params)).status_code == 400
