"""What is stored comes back to its tenant, in order, under versions that are never given twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import create_engine, inspect, text

from kala.common.v1.adapter_pb2 import SignedRevocationList
from kala.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError
from kala.trainer.v1 import dataset_pb2, job_pb2, registry_pb2
from services.trainer.store.engine import HEAD_REVISION, open_engine
from services.trainer.store.schema import METADATA
from services.trainer.store.store import Store


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "trainer.db")
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    opened = await Store.open(database)
    yield opened
    opened.close()


def adapter(name: str, at: int = 1, **fields: object) -> registry_pb2.Adapter:
    return registry_pb2.Adapter(
        name=name,
        tenant="acme",
        owner="keys/ann",
        adapter_digest=bytes(32),
        created_at=Timestamp(seconds=at),
        **fields,
    )


def dataset(name: str, at: int = 1) -> dataset_pb2.Dataset:
    return dataset_pb2.Dataset(name=name, tenant="acme", owner="keys/ann", created_at=Timestamp(seconds=at))


def test_the_migrations_make_exactly_the_schema(database: str) -> None:
    engine = open_engine(database)
    found = inspect(engine)
    assert set(found.get_table_names()) == {*METADATA.tables, "alembic_version"}
    for name, table in METADATA.tables.items():
        columns = {column["name"]: bool(column["nullable"]) for column in found.get_columns(name)}
        assert columns == {column.name: bool(column.nullable) for column in table.columns}, name
        assert {index["name"] for index in found.get_indexes(name)} >= {
            index.name for index in table.indexes
        }, name
    engine.dispose()


def test_services_that_start_together_make_one_schema(database: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        for engine in threads.map(open_engine, [database] * 4):
            engine.dispose()


def test_a_database_of_a_newer_release_is_left_alone(tmp_path: Path) -> None:
    open_engine(tmp_path / "trainer.db").dispose()
    engine = create_engine(f"sqlite:///{tmp_path}/trainer.db")
    with engine.begin() as sql:
        sql.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(FailedPreconditionError, match="newer release"):
        open_engine(tmp_path / "trainer.db")
    with engine.begin() as sql:
        sql.execute(text(f"UPDATE alembic_version SET version_num = '{HEAD_REVISION}'"))
    engine.dispose()


def test_the_file_is_private_and_a_place_that_is_none_is_named(tmp_path: Path) -> None:
    open_engine(tmp_path / "trainer.db").dispose()
    assert (tmp_path / "trainer.db").stat().st_mode & 0o077 == 0
    (tmp_path / "file").touch()
    with pytest.raises(FailedPreconditionError, match="cannot be opened"):
        open_engine(tmp_path / "file" / "trainer.db")


@pytest.mark.parametrize("url", ["nosuch+driver://user:secret@host/db", "://"])
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(FailedPreconditionError, match="KALA_TRAINER_DATABASE") as caught:
        open_engine(url)
    assert "secret" not in caught.value.message


async def test_another_tenants_things_do_not_exist(store: Store) -> None:
    await store.put_adapter(adapter("adapters/polite@1"))
    await store.put_dataset(dataset("datasets/rows@1"))
    assert (await store.get_adapter("adapters/polite@1", "acme")).owner == "keys/ann"
    for read in (
        store.get_adapter("adapters/polite@1", "other"),
        store.get_dataset("datasets/rows", "other"),
        store.get_job("trainingJobs/" + "0" * 32, "acme"),
        store.get_evaluation("evaluations/" + "0" * 32, "acme"),
    ):
        with pytest.raises(NotFoundError):
            await read
    assert not (await store.list_adapters("other", limit=10)).items
    assert not (await store.list_datasets("other", limit=10)).items


async def test_versions_are_never_given_twice_and_a_name_has_one_tenant(store: Store) -> None:
    given = await asyncio.gather(*(store.next_version("adapters/polite", "acme") for _ in range(8)))
    assert sorted(given) == [f"adapters/polite@{number}" for number in range(1, 9)]
    with pytest.raises(AlreadyExistsError, match="taken"):
        await store.next_version("adapters/polite", "other")
    await store.require_free("adapters/polite", "acme")
    await store.require_free("adapters/new", "other")
    with pytest.raises(AlreadyExistsError):
        await store.require_free("adapters/polite", "other")


async def test_a_name_without_version_is_the_newest_dataset_and_the_newest_promoted_adapter(
    store: Store,
) -> None:
    for version in (1, 2, 3):
        await store.put_dataset(dataset(f"datasets/rows@{version}", at=version))
        state = registry_pb2.ADAPTER_STATE_CANDIDATE if version == 3 else registry_pb2.ADAPTER_STATE_PROMOTED
        await store.put_adapter(adapter(f"adapters/polite@{version}", at=version, state=state))
    assert (await store.get_dataset("datasets/rows", "acme")).name == "datasets/rows@3"
    assert (await store.get_adapter("adapters/polite", "acme")).name == "adapters/polite@2"


async def test_lists_are_the_newest_first_and_go_on_after_a_position(store: Store) -> None:
    # Two of the same moment: the name decides, so that no page skips or repeats one.
    for number, at in enumerate((5, 5, 7, 6, 5), start=1):
        await store.put_adapter(adapter(f"adapters/a@{number}", at=at))
    seen: list[str] = []
    after = b""
    while True:
        part = await store.list_adapters("acme", limit=2, after=after)
        seen += [each.name for each in part.items]
        after = part.next_after
        if not after:
            break
    assert seen == ["adapters/a@3", "adapters/a@4", "adapters/a@5", "adapters/a@2", "adapters/a@1"]


async def test_writing_again_changes_all_but_whose_it_is(store: Store) -> None:
    job = job_pb2.TrainingJob(
        name="trainingJobs/" + "1" * 32, tenant="acme", owner="keys/ann", created_at=Timestamp(seconds=1)
    )
    await store.put_job(job, subject="s")
    job.progress.state = job_pb2.JOB_STATE_TRAINING
    await store.put_job(job)
    (found,) = (await store.list_jobs("acme", state=job_pb2.JOB_STATE_TRAINING, limit=5)).items
    assert found == job
    assert not (await store.list_jobs("acme", state=job_pb2.JOB_STATE_QUEUED, limit=5)).items


async def test_descent_is_followed_to_its_end(store: Store) -> None:
    await store.put_adapter(adapter("adapters/a@1"), parents=["datasets/rows@1"])
    await store.put_adapter(adapter("adapters/b@1"), parents=["adapters/a@1", "datasets/other@1"])
    await store.put_adapter(adapter("adapters/c@1"), parents=["adapters/b@1"])
    await store.put_adapter(adapter("adapters/d@1"), parents=["datasets/other@1"])
    # A second write adds what is new and keeps what was there.
    await store.put_adapter(adapter("adapters/c@1"), parents=["adapters/b@1", "datasets/more@1"])
    assert set(await store.adapters_on(["datasets/rows@1"])) == {
        "adapters/a@1",
        "adapters/b@1",
        "adapters/c@1",
    }
    assert await store.adapters_on(["datasets/more@1"]) == ["adapters/c@1"]
    assert await store.adapters_on([]) == []


async def test_a_person_is_found_in_the_datasets_that_hold_their_rows(store: Store) -> None:
    await store.put_dataset(dataset("datasets/rows@1"), subjects={"a" * 64: 3, "b" * 64: 1})
    assert await store.datasets_of_subject("acme", "a" * 64) == {"datasets/rows@1": 3}
    assert await store.datasets_of_subject("other", "a" * 64) == {}
    await store.remove_dataset("datasets/rows@1")
    assert await store.datasets_of_subject("acme", "a" * 64) == {}
    with pytest.raises(NotFoundError):
        await store.get_dataset("datasets/rows@1", "acme")


async def test_the_list_of_revocations_only_ever_grows_newer(store: Store) -> None:
    assert await store.revocations() is None
    await store.put_revocations(2, SignedRevocationList(list=b"two"))
    with pytest.raises(AlreadyExistsError):
        await store.put_revocations(2, SignedRevocationList(list=b"other"))
    await store.put_revocations(3, SignedRevocationList(list=b"three"))
    found = await store.revocations()
    assert found is not None
    assert found.list == b"three"
