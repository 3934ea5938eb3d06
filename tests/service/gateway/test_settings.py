"""Settings that change while the suite runs: checked, logged, kept, and at every replica within five seconds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import Engine

from gateway.database import open_database
from gateway.live_settings.store import SettingStore
from services.inference.config import InferenceSettings
from services.inference.live_settings import LiveSettings
from tests.fakes.gateway_suite import Suite, eventually, running_suite

pytestmark = pytest.mark.asyncio(loop_scope="session")

SETTINGS = "/kala/v1/gateway/settings"
CHAIN = "/kala/v1/gateway/settings/inference.chain"


@pytest_asyncio.fixture(loop_scope="session")
async def own(tmp_path: Path) -> AsyncIterator[Suite]:
    async with running_suite(tmp_path) as running:
        yield running


async def change(suite: Suite, path: str, value: object, key: str | None = None) -> httpx.Response:
    text = "" if value is None else json.dumps(value)
    return await suite.http.patch(path, json={"value_json": text}, headers=suite.bearer(key))


async def listed(suite: Suite) -> dict[str, dict[str, str]]:
    answer = await suite.get(SETTINGS)
    assert answer.status_code == 200, answer.text
    return {one["name"].removeprefix("settings/inference."): one for one in answer.json()["settings"]}


async def test_a_change_is_logged_before_and_in_force_after(own: Suite) -> None:
    before = (await listed(own))["chain"]
    assert before["source"] == "default"
    assert "changed_at" not in before
    answer = await change(own, CHAIN, ["ollama", "mlx"])
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-kala-receipt"]
    (record,) = await own.leaves(kind="admin")
    facts = dict(record["attributes"])
    assert facts["args.setting"] == "settings/inference.chain"
    assert facts["args.value"] == '["ollama", "mlx"]'
    assert own.inference.live.settings.chain == ("ollama", "mlx")
    after = (await listed(own))["chain"]
    assert (json.loads(after["value_json"]), after["source"]) == (["ollama", "mlx"], "database")
    returned = await change(own, CHAIN, None)
    assert returned.json()["setting"]["source"] == "default"
    assert own.inference.live.settings.chain == InferenceSettings().chain


async def test_a_replica_that_starts_anew_or_a_change_elsewhere_follows_within_five_seconds(
    own: Suite,
) -> None:
    assert (await change(own, CHAIN, ["pythia"])).status_code == 200
    own.inference.live = LiveSettings(InferenceSettings(), {}, lambda _: None)  # as a restart does

    async def is_told() -> bool:
        return own.inference.live.settings.chain == ("pythia",)

    assert await eventually(is_told, seconds=5)
    engine = open_database(own.settings.database)
    SettingStore(engine).write("lmstudio_url", '"http://10.0.0.9:1234"', datetime.now(UTC))
    engine.dispose()

    async def is_told_elsewhere() -> bool:
        return own.inference.live.settings.lmstudio_url == "http://10.0.0.9:1234"

    assert await eventually(is_told_elsewhere, seconds=5)


async def test_of_two_changes_at_once_that_do_not_go_together_one_is_made(own: Suite) -> None:
    # Each was good alone; both together no replica would have taken, nor any change after them.
    answers = await asyncio.gather(
        change(own, f"{SETTINGS}/inference.roles", {"rank": {"temperature": 1}}),
        change(own, f"{SETTINGS}/inference.lmstudio_role_models", {"rank": "m"}),
    )
    first, second = sorted(answer.status_code for answer in answers)
    assert first == 200
    assert second in {400, 409}  # read after the other one was kept, or before
    assert [one["source"] for one in (await listed(own)).values()].count("database") == 1


async def test_a_change_that_inference_takes_no_longer_can_be_returned(own: Suite) -> None:
    # It once stood in the way of its own return.
    assert (await change(own, CHAIN, ["pythia"])).status_code == 200
    own.inference.live = LiveSettings(InferenceSettings(), {"chain": "flag"}, lambda _: None)
    assert (await own.get(SETTINGS)).status_code == 400
    returned = await change(own, CHAIN, None)
    assert returned.status_code == 200, returned.text
    assert (await listed(own))["chain"]["source"] == "flag"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("inference.chain", ["nobody"], "chain"),
        ("inference.chain", ["mlx", "mlx"], "each kind once"),
        ("inference.lmstudio_url", 5, "lmstudio_url"),
        ("inference.roles", {"rank": {"temprature": 1}}, "temprature"),
        ("inference.max_in_flight", 5, "cannot change"),
        ("inference.max_in_flight", None, "cannot change"),
        ("audit.database", "x", "settings/inference."),
        ("inference.mlx_url", "http://127.0.0.1:1", "flag --mlx-url"),
        ("inference.lmstudio_url", "http://169.254.169.254", "metadata"),
        ("inference.lmstudio_url", "http://[::ffff:169.254.169.254]", "metadata"),
        ("inference.ollama_urls", ["http://[fd00:ec2::254] weight=2"], "metadata"),
        ("inference.llamacpp_url", "http://somebody:secret@10.0.0.1", "credentials"),
    ],
)
async def test_what_inference_does_not_take_changes_nothing(
    suite: Suite, name: str, value: object, says: str
) -> None:
    answer = await change(suite, f"{SETTINGS}/{name}", value)
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["error"]["message"]
    assert all(one["source"] != "database" for one in (await listed(suite)).values())
    assert await suite.leaves(kind="admin") == []


async def test_only_administrators_change_settings(suite: Suite) -> None:
    key = suite.new_key("chat", "tools", "train", "audit.read")
    assert (await change(suite, CHAIN, ["mlx"], key)).status_code == 403
    assert (await suite.http.get(SETTINGS, headers=suite.bearer(key))).status_code == 403


async def test_pages_follow_each_other(suite: Suite) -> None:
    names: list[str] = []
    token = ""
    while True:
        page = (await suite.get(SETTINGS, params={"page_size": 4, "page_token": token})).json()
        names += [one["name"] for one in page["settings"]]
        token = page.get("next_page_token", "")
        if not token:
            break
    assert names == sorted(names) == [f"settings/inference.{name}" for name in sorted(await listed(suite))]


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    made = open_database(
        tmp_path / "g.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    )
    yield made
    made.dispose()


async def test_every_change_has_a_newer_revision_also_where_a_clock_goes_back(engine: Engine) -> None:
    store = SettingStore(engine)
    assert store.read().revision == 0
    first = store.write("chain", "[]", datetime(2026, 1, 2, tzinfo=UTC))
    second = store.write("roles", "{}", datetime(2026, 1, 1, tzinfo=UTC))
    assert second.revision == first.revision + 1
    assert second.values == {"chain": "[]", "roles": "{}"}
    returned = store.write("chain", "", datetime(2026, 1, 3, tzinfo=UTC))
    assert returned.values == {"roles": "{}"}
