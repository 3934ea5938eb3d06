"""`/v1/files` as OpenAI's clients use it, and what it keeps from everybody else."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai.types import FileDeleted, FileObject
from pydantic import TypeAdapter

from gateway.files import store
from gateway.files.store import FileStore
from tests.fakes.gateway_suite import Suite, running_suite

pytestmark = pytest.mark.asyncio(loop_scope="session")

LINES = b'{"custom_id":"1"}\n{"custom_id":"2"}\n'
QUOTA, LARGEST = 3 * 1024 * 1024, 2 * 1024 * 1024 + 5


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def file_suite(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Suite]:
    async with running_suite(
        tmp_path_factory.mktemp("files"), max_file_bytes=LARGEST, file_quota_bytes=QUOTA, batch_concurrency=0
    ) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def suite(file_suite: Suite) -> Suite:
    await file_suite.reset()
    return file_suite


@pytest_asyncio.fixture(loop_scope="session")
async def client(suite: Suite) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=suite.url + "/v1", api_key=suite.key, max_retries=0) as made:
        yield made


async def upload(suite: Suite, key: str | None = None, **form: Any) -> httpx.Response:
    file = form.pop("file", ("a.jsonl", LINES))
    return await suite.http.post(
        "/v1/files", data={"purpose": "batch", **form}, files={"file": file}, headers=suite.bearer(key)
    )


async def test_a_file_lives_as_openais_client_expects(suite: Suite, client: openai.AsyncOpenAI) -> None:
    files = client.files
    made = await files.create(file=("ünï.jsonl", LINES), purpose="batch")
    assert (made.bytes, made.filename, made.purpose, made.status) == (
        len(LINES),
        "ünï.jsonl",
        "batch",
        "processed",
    )
    assert made.expires_at is not None
    assert made.expires_at - made.created_at == 30 * 86_400
    raw = await suite.get(f"/v1/files/{made.id}")
    strict = TypeAdapter(FileObject).validate_json(raw.content, strict=True)
    assert strict.id == made.id
    assert raw.json()["kala"]["sha256"] == hashlib.sha256(LINES).hexdigest()
    assert (await files.content(made.id)).content == LINES
    assert made.id in [file.id async for file in files.list(purpose="batch")]
    gone = await suite.http.delete(f"/v1/files/{made.id}", headers=suite.bearer())
    assert TypeAdapter(FileDeleted).validate_json(gone.content, strict=True).deleted
    with pytest.raises(openai.NotFoundError):
        await files.retrieve(made.id)


async def test_a_large_file_comes_back_as_it_was(suite: Suite) -> None:
    data = bytes(range(256)) * (LARGEST // 256)
    made = (await upload(suite, file=("big", data))).json()
    assert (await suite.get(f"/v1/files/{made['id']}/content")).content == data
    await suite.http.delete(f"/v1/files/{made['id']}", headers=suite.bearer())


async def test_a_list_is_paged_in_either_order(suite: Suite, client: openai.AsyncOpenAI) -> None:
    ids = [(await upload(suite, purpose="user_data")).json()["id"] for _ in range(3)]
    listed = [file.id async for file in client.files.list(purpose="user_data", limit=1)]
    assert listed == ids[::-1]
    page = (
        await suite.get("/v1/files", params={"purpose": "user_data", "order": "asc", "limit": "2"})
    ).json()
    assert ([file["id"] for file in page["data"]], page["has_more"]) == (ids[:2], True)


async def test_no_file_of_another_tenant_exists(suite: Suite) -> None:
    file = (await upload(suite)).json()["id"]
    other = suite.new_key("chat", "train", tenant="elsewhere")
    for answer in (
        await suite.http.get(f"/v1/files/{file}", headers=suite.bearer(other)),
        await suite.http.get(f"/v1/files/{file}/content", headers=suite.bearer(other)),
        await suite.http.delete(f"/v1/files/{file}", headers=suite.bearer(other)),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "file_not_found")
    assert (await suite.http.get("/v1/files", headers=suite.bearer(other))).json()["data"] == []
    assert (await suite.get(f"/v1/files/{file}")).status_code == 200


async def test_each_purpose_needs_its_scope(suite: Suite) -> None:
    chat, train = suite.new_key("chat"), suite.new_key("train")
    assert (await upload(suite, chat, purpose="fine-tune")).status_code == 403
    assert (await upload(suite, train, purpose="batch")).status_code == 403
    tuned = (await upload(suite, train, purpose="fine-tune")).json()["id"]
    assert (await suite.http.get(f"/v1/files/{tuned}", headers=suite.bearer(chat))).status_code == 404
    listed = (await suite.http.get("/v1/files", headers=suite.bearer(chat))).json()["data"]
    assert tuned not in [file["id"] for file in listed]
    assert (await suite.http.post("/v1/files")).status_code == 401


async def test_a_key_that_may_put_no_file_at_all_takes_no_room(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*_: object, **__: object) -> None:
        raise AssertionError("a file was begun")

    monkeypatch.setattr(FileStore, "begin", begin)
    answer = await upload(suite, suite.new_key("audit.read"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_permissions")
    assert [leaf["type"] for leaf in await suite.leaves()] == ["rpc.denied"]


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({"purpose": "assistants"}, "purpose"),
        ({"purpose": "batch_output"}, "purpose"),
        ({"colour": "red"}, "colour"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "12"}, "expires_after.seconds"),
        ({"expires_after[anchor]": "never", "expires_after[seconds]": "3600"}, "expires_after.anchor"),
        ({"expires_after[anchor]": "created_at"}, "expires_after.seconds"),
        ({"file": ("a", b"")}, "file"),
        ({"file": ("a" * 256, b"x")}, "file"),
        ({"file": ("a", b"x" * (LARGEST + 1))}, "file"),
        ({"safety_identifier": "p" * 257}, "safety_identifier"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_a_wrong_form_names_the_field_and_leaves_nothing(
    suite: Suite, form: dict[str, Any], field: str
) -> None:
    before = taken(suite)
    answer = await upload(suite, **form)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), answer.text
    assert taken(suite) == before
    assert [leaf["type"] for leaf in await suite.leaves()] == ["file.invalid"]


async def test_what_is_no_form_is_refused(suite: Suite) -> None:
    answer = await suite.post("/v1/files", {"purpose": "batch"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_multipart")


async def test_a_tenants_files_have_a_bound_together(suite: Suite) -> None:
    key = suite.new_key("chat", tenant="full")
    half = b"x" * (QUOTA // 2)
    first = (await upload(suite, key, file=("a", half))).json()["id"]
    assert (await upload(suite, key, file=("b", half))).status_code == 200
    refused = await upload(suite, key, file=("c", b"x"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "file_quota_exceeded")
    await suite.http.delete(f"/v1/files/{first}", headers=suite.bearer(key))
    assert (await upload(suite, key, file=("c", b"x"))).status_code == 200


async def test_a_tenants_files_have_a_bound_in_number(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_FILES", 1)
    key = suite.new_key("chat", tenant="many")
    first = (await upload(suite, key)).json()["id"]
    refused = await upload(suite, key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "file_quota_exceeded")
    await suite.http.delete(f"/v1/files/{first}", headers=suite.bearer(key))
    assert (await upload(suite, key)).status_code == 200


async def test_neither_name_nor_content_lies_open_in_the_database(suite: Suite) -> None:
    await upload(suite, file=("secret-name.jsonl", b"secret-content"))
    for path in suite.directory.glob("gateway.db*"):
        stored = path.read_bytes()
        assert b"secret-name" not in stored
        assert b"secret-content" not in stored


async def test_a_damaged_file_is_not_given_out(suite: Suite) -> None:
    file = (await upload(suite)).json()["id"]
    with closing(sqlite3.connect(suite.directory / "gateway.db")) as connection:
        (sealed,) = connection.execute("SELECT sealed FROM file_part WHERE file_id = ?", (file,)).fetchone()
    run(
        suite.directory,
        "UPDATE file_part SET sealed = ? WHERE file_id = ?",
        sealed[:-1] + bytes([sealed[-1] ^ 1]),
        file,
    )
    assert (await suite.get(f"/v1/files/{file}/content")).status_code == 500


async def test_an_expired_file_is_gone(suite: Suite) -> None:
    file = (await upload(suite)).json()["id"]
    run(suite.directory, "UPDATE file SET expires_at = 1 WHERE id = ?", file)
    assert (await suite.get(f"/v1/files/{file}")).status_code == 404
    assert (await suite.get(f"/v1/files/{file}/content")).status_code == 404


async def test_an_erased_person_leaves_no_file(suite: Suite) -> None:
    theirs = (await upload(suite, safety_identifier="ada")).json()["id"]
    other = (await upload(suite)).json()["id"]
    name = (await suite.post("/kala/v1/gateway/subjects:name", {"person": "ada"})).json()["name"]
    erased = await suite.post(
        f"/kala/v1/audit/{name}:erase",
        {"reason": "she asked for it", "request_id": "AAECAwQFBgcICQoLDA0ODw=="},
    )
    assert erased.status_code == 200, erased.text
    assert '"gateway.files"' in erased.text
    assert (await suite.get(f"/v1/files/{theirs}")).status_code == 404
    assert (await suite.get(f"/v1/files/{other}")).status_code == 200


async def test_a_person_must_be_named_before_the_file(suite: Suite) -> None:
    parts = [("file", ("a", b"x")), ("purpose", (None, b"batch")), ("user", (None, b"ada"))]
    answer = await suite.http.post("/v1/files", files=parts, headers=suite.bearer())
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "user")


def taken(suite: Suite) -> int:
    with closing(sqlite3.connect(suite.directory / "gateway.db")) as connection:
        parts, room = connection.execute(
            "SELECT (SELECT count(*) FROM file_part), (SELECT coalesce(sum(bytes), 0) FROM file_room)"
        ).fetchone()
        return int(parts) + int(room)


def run(directory: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(directory / "gateway.db")) as connection:
        connection.execute(statement, values)
        connection.commit()
