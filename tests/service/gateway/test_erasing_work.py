"""Erasing a person for whom something is still to be done: no part is told of them again once it has forgotten them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.batches.store import BatchStore
from gateway.fine_tuning.store import FineTuningStore
from tests.fakes.gateway_suite import Suite, running_suite
from tests.fakes.scripted_tools import ScriptedTools
from tests.fakes.scripted_trainer import ScriptedTrainer
from tests.service.gateway.test_batches import chat, create, ended, rows
from tests.service.gateway.test_erasure import certificate_in, erase, name_of, scripted_trainer

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def stores_of(suite: Suite, person: str) -> dict[str, int]:
    certificate = certificate_in(await erase(suite, await name_of(suite, person)))
    return {one["store"]: one["items"] for one in certificate["stores"]}


async def test_a_batch_that_no_worker_has_read_is_erased_with_whom_its_lines_name(tmp_path: Path) -> None:
    async with running_suite(tmp_path, batch_concurrency=0) as suite:
        hers = await create(suite, rows(chat("one"), chat("two", user="ada")))
        cancelled = await create(suite, rows(chat("three", safety_identifier="ada")))
        await suite.post(f"/v1/batches/{cancelled['id']}/cancel")
        kept = await create(suite, rows(chat("four", user="bob")))
        erased = await stores_of(suite, "ada")
        assert (erased["gateway.batches"], erased["gateway.batch_files"]) == (2, 2)
        for batch, status in ((hers, 404), (cancelled, 404), (kept, 200)):
            assert (await suite.get(f"/v1/batches/{batch['id']}")).status_code == status
            assert (await suite.get(f"/v1/files/{batch['input_file_id']}")).status_code == status


async def test_a_batch_that_was_rejected_is_erased_with_whom_its_lines_name(tmp_path: Path) -> None:
    async with running_suite(tmp_path) as suite:
        batch = await ended(suite, await create(suite, rows(chat("one", user="ada")) + b"{\n"))
        assert batch["status"] == "failed"
        gone = (await ended(suite, await create(suite, b"{\n")))["input_file_id"]
        assert (await suite.http.delete(f"/v1/files/{gone}", headers=suite.bearer())).status_code == 200
        assert (await stores_of(suite, "ada"))["gateway.batches"] == 1
        assert (await suite.get(f"/v1/files/{batch['input_file_id']}")).status_code == 404


async def test_parts_on_which_the_gateways_work_acts_are_asked_after_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def noted(owner: type, name: str) -> None:
        erase = getattr(owner, name)

        def note_and_erase(*args: Any, **options: Any) -> Any:  # Any: as the method's own
            order.append(owner.__name__)
            return erase(*args, **options)

        monkeypatch.setattr(owner, name, note_and_erase)

    noted(BatchStore, "erase")
    noted(FineTuningStore, "erase")
    noted(ScriptedTools, "EraseSubject")
    noted(ScriptedTrainer, "EraseSubject")
    async with running_suite(tmp_path, has_tools=True, trainer=scripted_trainer()) as suite:
        await stores_of(suite, "ada")
    assert order == ["BatchStore", "FineTuningStore", "ScriptedTools", "ScriptedTrainer"]
