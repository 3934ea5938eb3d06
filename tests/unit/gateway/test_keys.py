"""Keys: how they are made, recognised and ended."""

from __future__ import annotations

import secrets
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway import bootstrap, key_ring
from gateway.bootstrap import create_key, ensure_admin_key, main
from gateway.database import MIGRATIONS
from gateway.gate import ANONYMOUS_BURST, AnonymousBudget
from gateway.key_ring import KeyRing
from gateway.key_store import KeyStore
from gateway.keys import SCOPES, ApiKey, hash_secret, make_key, require_good, scope_numbers
from kala.errors import FailedPreconditionError, InvalidArgumentError, UnauthenticatedError

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "g.db")
    url: str = request.getfixturevalue("postgres_url")
    return url


def test_a_secret_has_256_random_bits_and_only_its_digest_is_stored(tmp_path: Path) -> None:
    created = create_key(tmp_path / "g.db", display_name="a")
    assert created.secret.startswith("kala_")
    assert len(created.secret) == len("kala_") + 43
    with closing(sqlite3.connect(tmp_path / "g.db")) as connection:
        rows = str(connection.execute("SELECT * FROM api_key").fetchall())
    assert created.secret not in rows
    assert created.secret[12:] not in rows


@pytest.mark.parametrize("secret", ["", "kala_", "sk-" + "x" * 43, "kala_" + "é" * 43, "kala_" + "x" * 44])
def test_what_cannot_be_a_secret_has_no_digest(secret: str) -> None:
    assert hash_secret(secret) is None


def test_a_stored_key_comes_back_as_it_was(database: str) -> None:
    made = make_key(
        display_name="ünï",
        scopes=[1, 6],
        tenant="t-1",
        ttl=timedelta(hours=1),
        now=NOW,
        randomness=secrets.token_bytes,
    )
    store = KeyStore(database)
    digest = hash_secret(made.secret)
    assert digest is not None
    store.insert(made.key, digest)
    assert store.find_by_secret(digest) == made.key == store.find(made.id)
    store.mark_used(made.id, NOW)
    assert store.find(made.id) == ApiKey(
        **{f: getattr(made.key, f) for f in made.key.__slots__} | {"last_used_at": NOW}
    )
    store.close()


def test_an_end_is_exact_and_says_what_it_is() -> None:
    key = make_key(
        display_name="a", scopes=[1], ttl=timedelta(seconds=5), now=NOW, randomness=secrets.token_bytes
    ).key
    assert require_good(key, NOW + timedelta(seconds=4)) is key
    with pytest.raises(UnauthenticatedError, match="expired on 2026-01-02 03:04:10"):
        require_good(key, NOW + timedelta(seconds=5))
    with pytest.raises(UnauthenticatedError, match="revoked"):
        require_good(replace(key, revoked_at=NOW), NOW)
    with pytest.raises(UnauthenticatedError, match="not known"):
        require_good(None, NOW)


def test_a_ttl_beyond_the_calendar_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="9999"):
        make_key(
            display_name="a",
            scopes=[1],
            ttl=timedelta(days=9_999_999),
            now=NOW,
            randomness=secrets.token_bytes,
        )


def test_scopes_are_read_by_name() -> None:
    assert scope_numbers(["chat", "admin"]) == {SCOPES["chat"], SCOPES["admin"]}
    with pytest.raises(InvalidArgumentError, match="'root' is not one of chat"):
        scope_numbers(["root"])


def test_the_first_administrator_is_made_once(database: str) -> None:
    assert ensure_admin_key(database) is not None
    assert ensure_admin_key(database) is None
    store = KeyStore(database)
    (key,) = store.list(limit=5)
    store.revoke(key.id, datetime.now(UTC))
    store.close()
    assert ensure_admin_key(database) is not None


def test_the_first_administrator_stays_the_only_one_behind_many_newer_keys(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Behind a thousand newer keys it was not found, and each run of the Job made another administrator.
    monkeypatch.setattr(bootstrap, "_PAGE", 2)
    assert ensure_admin_key(database) is not None
    for _ in range(5):
        create_key(database, display_name="user", scopes=("chat",))
    assert ensure_admin_key(database) is None


def test_gateways_that_start_together_make_one_schema(database: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        for store in threads.map(KeyStore, [database] * 4):
            store.close()


def test_the_job_writes_the_secret_to_a_private_new_file(tmp_path: Path) -> None:
    arguments = ["--database", str(tmp_path / "g.db"), "--secret-file", str(tmp_path / "secret")]
    assert main(arguments) == 0
    assert (tmp_path / "secret").stat().st_mode & 0o077 == 0
    assert hash_secret((tmp_path / "secret").read_text().strip()) is not None
    assert main(arguments) == 2
    assert main([*arguments[:-1], str(tmp_path / "other")]) == 0
    assert not (tmp_path / "other").exists()


def test_a_database_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    KeyStore(tmp_path / "g.db").close()
    with closing(sqlite3.connect(tmp_path / "g.db")) as connection:
        connection.execute("UPDATE gateway_schema SET version = ?", (len(MIGRATIONS) + 1,))
        connection.commit()
    with pytest.raises(FailedPreconditionError, match="upgrade KALA"):
        KeyStore(tmp_path / "g.db")


class _CountingStore(KeyStore):
    look_ups = 0

    def find_by_secret(self, secret_sha256: bytes) -> ApiKey | None:
        self.look_ups += 1
        return super().find_by_secret(secret_sha256)


async def test_a_key_is_looked_up_once_until_its_memory_ends(database: str) -> None:
    created = create_key(database, display_name="a")
    store, time = _CountingStore(database), [0.0]
    ring = KeyRing(store, cache_seconds=4, clock=lambda: time[0], now=lambda: datetime.now(UTC))
    for _ in range(3):
        assert (await ring.authenticate(f"bearer {created.secret}")).id == created.id
    assert store.look_ups == 1
    time[0] = 4.0
    await ring.authenticate(f"Bearer {created.secret}")
    assert store.look_ups == 2
    store.revoke(created.id, datetime.now(UTC))
    ring.forget(created.id)
    with pytest.raises(UnauthenticatedError, match="revoked"):
        await ring.authenticate(f"Bearer {created.secret}")
    store.close()


async def test_random_secrets_do_not_make_a_good_key_be_looked_up_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A flood of them once put the database on the way of every good request.
    monkeypatch.setattr(key_ring, "MAX_REMEMBERED", 2)
    created = create_key(tmp_path / "g.db", display_name="a")
    store = _CountingStore(tmp_path / "g.db")
    ring = KeyRing(store, cache_seconds=4, clock=lambda: 0.0, now=lambda: datetime.now(UTC))
    await ring.authenticate(f"Bearer {created.secret}")
    for number in range(5):
        with pytest.raises(UnauthenticatedError, match="not known"):
            await ring.authenticate(f"Bearer kala_{number:043}")
    assert store.look_ups == 6
    await ring.authenticate(f"Bearer {created.secret}")
    with pytest.raises(UnauthenticatedError, match="not known"):
        await ring.authenticate(f"Bearer kala_{4:043}")
    assert store.look_ups == 6
    store.close()


def test_strangers_are_counted_when_their_records_run_out() -> None:
    time = [0.0]
    budget = AnonymousBudget(lambda: time[0])
    assert [budget.take() for _ in range(int(ANONYMOUS_BURST))] == [0] * int(ANONYMOUS_BURST)
    assert budget.take() is None
    assert budget.take() is None
    time[0] = 0.1
    assert budget.take() == 2
