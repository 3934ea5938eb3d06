"""The log through the gateway as a tlog client mirrors it: whose key may, and who is then in the log."""

from __future__ import annotations

import pytest

from kala.audit.checkpoint import open_checkpoint
from kala.audit.merkle import leaf_hash, root_of
from kala.audit.tile_paths import TilePath, bundles_of, tiles_of, unbundle
from tests.fakes.gateway_suite import Suite, signer

pytestmark = pytest.mark.asyncio(loop_scope="session")

LOG = "/kala/v1/audit/log"


async def test_a_plain_client_mirrors_the_log_with_a_key_in_its_url(suite: Suite) -> None:
    await suite.chat()
    auditor = ("auditor", suite.new_key("audit.read", "admin"))
    note = await suite.http.get(f"{LOG}/checkpoint", auth=auditor)
    assert (note.status_code, note.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    checkpoint = open_checkpoint(note.text, [signer().verifier])
    leaves: list[bytes] = []
    for path in bundles_of(checkpoint.size):
        answer = await suite.http.get(f"{LOG}/{path}", auth=auditor)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/octet-stream")
        leaves += unbundle(answer.content)
    assert root_of(map(leaf_hash, leaves)) == checkpoint.root
    tile = next(iter(tiles_of(checkpoint.size)))
    answer = await suite.http.get(f"{LOG}/{tile}", auth=auditor)
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert answer.content == b"".join(map(leaf_hash, leaves[: tile.width]))
    (said,) = await suite.leaves(kind="audit.tiles")
    assert said["actor"]
    assert dict(said["attributes"]) == {"peer": "local:gateway"}


@pytest.mark.parametrize(
    ("path", "scopes", "status"),
    [
        ("checkpoint", ["chat"], 200),
        ("tile/0/000.p/1", ["chat"], 403),
        ("tile/0/000.p/1", ["admin"], 403),
        ("tile/0/000.p/1", ["audit.read"], 200),
        ("tile/entries/000.p/1", ["audit.read"], 403),
        ("tile/entries/000.p/1", ["admin"], 403),
        ("tile/entries/000.p/1", ["audit.read", "admin"], 200),
    ],
)
async def test_hashes_need_audit_read_and_entries_of_all_tenants_admin_besides(
    suite: Suite, path: str, scopes: list[str], status: int
) -> None:
    answer = await suite.http.get(f"{LOG}/{path}", headers=suite.bearer(suite.new_key(*scopes)))
    assert answer.status_code == status, answer.text
    denied = await suite.leaves(kind="rpc.denied")
    assert len(denied) == (status == 403)


async def test_without_a_key_not_even_the_checkpoint_is_served(suite: Suite) -> None:
    for headers in ({}, {"authorization": "Basic !!!"}, {"authorization": "Basic YTpi"}):
        for path in ("checkpoint", "tile/0/000.p/1", "tile/entries/000.p/1"):
            answer = await suite.http.get(f"{LOG}/{path}", headers=headers)
            assert answer.status_code == 401


@pytest.mark.parametrize(
    "path",
    ["", "tile", "tile/0/0", "tile/0/999", "tile/entries/x001/000", "checkpoint/", "tile/0/%30%30%30x"],
)
async def test_what_the_log_does_not_have_is_not_found(suite: Suite, path: str) -> None:
    assert (await suite.get(f"{LOG}/{path}")).status_code == 404


async def test_only_reading_is_possible(suite: Suite) -> None:
    assert (await suite.post(f"{LOG}/checkpoint")).status_code == 405
    head = await suite.http.head(f"{LOG}/{TilePath(0, 0, 1)}", headers=suite.bearer())
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "32")


async def test_a_log_that_is_away_is_said_to_be(own_suite: Suite) -> None:
    await own_suite.audit.stop()
    answer = await own_suite.get(f"{LOG}/checkpoint")
    assert answer.status_code == 503
