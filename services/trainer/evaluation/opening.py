"""Opens the evaluations of a trainer: its profiles, and its ways to the services that count."""

from __future__ import annotations

from contextlib import AsyncExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from kala.common.v1.reference_pb2 import ContentReference
from kala.ethics.v1 import ethics_pb2_grpc
from kala.tools.v1 import tools_pb2_grpc
from services.common.channel import open_channel
from services.common.peers import TRAINER
from services.trainer.config import TrainerSettings
from services.trainer.evaluation.desk import Evaluations
from services.trainer.evaluation.evaluator import Evaluator
from services.trainer.evaluation.measuring import Measurers
from services.trainer.evaluation.profiles import Profiles
from services.trainer.jobs.resolving import Resolving
from services.trainer.operations import Operations
from services.trainer.places import Places
from services.trainer.records import Records
from services.trainer.store.store import Store

DISTRIBUTION: Final = "kala-suite"


async def open_evaluations(
    settings: TrainerSettings,
    stack: AsyncExitStack,
    *,
    operations: Operations,
    store: Store,
    places: Places,
    records: Records,
    resolving: Resolving,
) -> Evaluations:
    """The evaluations' desk; a service without an address is asked nothing, and profiles that need it are refused."""

    async def find_base(reference: ContentReference) -> Path:
        return (await resolving.base(reference)).directory

    return Evaluations(
        settings=settings,
        operations=operations,
        store=store,
        places=places,
        profiles=Profiles(_given(settings.profiles_dir), _given(settings.suites_dir)),
        evaluator=Evaluator(await open_measurers(settings, stack), records),
        find_base=find_base,
        version=_evaluator(),
    )


async def open_measurers(settings: TrainerSettings, stack: AsyncExitStack) -> Measurers:
    """Channels to ethics and tools, as far as they are configured."""
    ethics = tools = None
    if settings.ethics_address is not None:
        channel = await stack.enter_async_context(
            open_channel(settings.ethics_address, peer_name=TRAINER, tls=settings.tls)
        )
        ethics = ethics_pb2_grpc.EthicsServiceStub(channel)
    if settings.tools_address is not None:
        channel = await stack.enter_async_context(
            open_channel(settings.tools_address, peer_name=TRAINER, tls=settings.tls)
        )
        tools = tools_pb2_grpc.ToolsServiceStub(channel)
    return Measurers(ethics, tools)


def _given(directory: Path | None) -> tuple[Path, ...]:
    return () if directory is None else (directory,)


def _evaluator() -> str:
    """What ran it, for people."""
    try:
        return f"{DISTRIBUTION} {version(DISTRIBUTION)}"
    except PackageNotFoundError:
        return DISTRIBUTION
