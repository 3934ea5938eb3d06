"""A promoted adapter in other layouts, and its merge as the base of the next stage; real processes, small models."""

from __future__ import annotations

from pathlib import Path

import pytest

from kala.common.v1.reference_pb2 import ContentReference
from kala.errors import FailedPreconditionError, InvalidArgumentError
from kala.trainer.v1 import registry_pb2
from kala.trainer.v1 import trainer_pb2 as pb
from services.common.file_set import file_set_digest
from services.trainer.registry.bases import base_files
from tests.fakes.served_trainer import ServedTrainer, served_trainer, small_spec
from tests.fakes.warm_process import WarmExecutor

pytestmark = pytest.mark.torch


async def promoted(served: ServedTrainer) -> registry_pb2.Adapter:
    """Trains a few steps, and marks the result as promoted: the gate is not what is tested here."""
    await served.dataset()
    ended = await served.ended(await served.create(await served.plan(small_spec())))
    assert ended.HasField("response"), ended.error
    adapter = (await served.ask("GetAdapter", pb.GetAdapterRequest(name="adapters/larger@1"))).adapter
    adapter.state = registry_pb2.ADAPTER_STATE_PROMOTED
    await served.store.put_adapter(adapter)
    return adapter


async def exported(served: ServedTrainer, name: str, **asked) -> registry_pb2.Export:
    request = pb.ExportAdapterRequest(
        name=name, request_id="export-" + "e" * 16 + str(asked["format"]), **asked
    )
    ended = await served.ended(await served.ask("ExportAdapter", request))
    export = registry_pb2.Export()
    assert ended.response.Unpack(export), ended.error
    return export


@pytest.mark.slow
async def test_a_merge_is_the_base_of_the_next_stage_which_names_its_parent(tmp_path: Path) -> None:
    async with served_trainer(tmp_path) as served:
        adapter = await promoted(served)
        export = await exported(served, adapter.name, format=registry_pb2.EXPORT_FORMAT_MERGED)
        merged = Path(export.location)
        assert merged.name == "larger-1-merged"
        assert export.model_digest == file_set_digest(base_files(merged))
        assert [check.passed for check in export.checks] == [True, True]
        (logged,) = served.logged("adapter.exported")
        assert ["adapter", adapter.name] in logged["attributes"]

        base = ContentReference(name=merged.name)
        hidden = await served.plan(small_spec(base=base, adapter="adapters/next"))
        refused = await served.ended(await served.create(hidden))
        assert "the base is the merge of adapters/larger@1" in refused.error.message

        spec = small_spec(base=base, adapter="adapters/next", parents=[adapter.reference])
        ended = await served.ended(await served.create(await served.plan(spec)))
        assert ended.HasField("response"), ended.error
        child = (await served.ask("GetAdapter", pb.GetAdapterRequest(name="adapters/next@1"))).adapter
        (ancestor,) = child.description.ancestors
        assert (ancestor.name, ancestor.merged_digest) == (adapter.name, export.model_digest)
        assert child.description.base.root_digest == adapter.description.base.digest

        revoked = await served.ask(
            "RevokeAdapter", pb.RevokeAdapterRequest(name=adapter.name, reason="it lies")
        )
        assert list(revoked.descendants) == [child.name]
        with pytest.raises(FailedPreconditionError, match="is revoked"):
            await exported(served, adapter.name, format=registry_pb2.EXPORT_FORMAT_PEFT)


async def test_only_what_may_serve_is_exported_and_a_wrong_wish_is_named(tmp_path: Path) -> None:
    async with served_trainer(tmp_path, executor=WarmExecutor()) as served:
        adapter = await promoted(served)
        copied = await exported(served, adapter.name, format=registry_pb2.EXPORT_FORMAT_PEFT)
        again = await exported(served, adapter.name, format=registry_pb2.EXPORT_FORMAT_PEFT)
        assert again == copied
        for asked, field in (
            ({"format": 0}, "format"),
            ({"format": registry_pb2.EXPORT_FORMAT_MLX, "weight_format": "q8_0"}, "weight_format"),
            ({"format": registry_pb2.EXPORT_FORMAT_PEFT, "weight_format": "f16"}, "weight_format"),
        ):
            with pytest.raises(InvalidArgumentError) as wrong:
                await exported(served, adapter.name, **asked)
            assert wrong.value.field == field
        adapter.state = registry_pb2.ADAPTER_STATE_CANDIDATE
        await served.store.put_adapter(adapter)
        with pytest.raises(FailedPreconditionError, match="evaluate and promote it first"):
            await exported(served, adapter.name, format=registry_pb2.EXPORT_FORMAT_MERGED)
