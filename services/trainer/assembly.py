"""Puts the parts of one trainer together; each domain's desk is opened here and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.timestamp_pb2 import Timestamp

from kala.errors import InvalidArgumentError, KalaError
from services.common.keys import load_private_key
from services.common.peers import LOCAL_PREFIX, TRAINER
from services.trainer.config import DAY_SECONDS, TrainerSettings
from services.trainer.cores import usable_cores
from services.trainer.datasets.desk import DatasetDesk
from services.trainer.datasets.desk import Site as DatasetSite
from services.trainer.desks import Desks
from services.trainer.evaluation.opening import open_evaluations
from services.trainer.evaluation.profiles import PACKAGED_SUITES
from services.trainer.executors.local import LocalExecutor
from services.trainer.executors.model import Executor
from services.trainer.executors.ray import RayExecutor
from services.trainer.export.desk import Exports
from services.trainer.jobs.desk import Bounds, Jobs
from services.trainer.jobs.resolving import Resolving
from services.trainer.jobs.retention import Retention
from services.trainer.jobs.supervisor import Parts, Rules, Supervisor
from services.trainer.operations import TRAIN, Lanes, Observer, Operations
from services.trainer.pages import PageTokens
from services.trainer.places import Places, lock_state
from services.trainer.planning.bases import Bases
from services.trainer.planning.catalogue import PACKAGED_PROFILES
from services.trainer.planning.make import make_bases, make_planner
from services.trainer.records import Records
from services.trainer.registry.desk import Adapters
from services.trainer.registry.opening import open_registry
from services.trainer.registry.publishing import Publisher, require_known
from services.trainer.registry.registry import Registry
from services.trainer.running import LOCAL, RAY
from services.trainer.store.store import Store
from services.trainer.work.order import ServicePlaces

SWEEP_SECONDS: Final = 300.0

log: Final = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ground:
    """What every domain stands on."""

    settings: TrainerSettings
    places: Places
    store: Store
    records: Records
    operations: Operations
    tokens: PageTokens
    bases: Bases
    signing_key: Ed25519PrivateKey
    rules: Rules

    @property
    def issuer(self) -> str:
        """How this trainer names itself where it signs, as its peers see it."""
        tls = self.settings.tls
        return LOCAL_PREFIX + TRAINER if tls is None else tls.own_name()


@dataclass(frozen=True, slots=True)
class Trainer:
    """A trainer that is ready to be served."""

    desks: Desks
    operations: Operations
    store: Store
    jobs: Jobs
    retention: Retention

    async def recover(self) -> None:
        """Take up what an earlier life of this service left."""
        await self.operations.recover({TRAIN: self.jobs.resume})

    async def sweep(self) -> None:
        """Forget what is over, for ever."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.jobs.sweep()
            try:
                await self.retention.sweep()
            except KalaError as error:
                log.warning("sweep_failed", problem=error.message)


async def open_trainer(
    settings: TrainerSettings,
    records: Records,
    stack: AsyncExitStack,
    *,
    executors: Mapping[str, Executor] | None = None,
    observe: Observer | None = None,
) -> Trainer:
    """Open a trainer; the stack closes it. Raises FailedPreconditionError where its state is another trainer's."""
    ground = await open_ground(settings, records, stack, executors or executors_of(settings), observe)
    planner = make_planner(settings, ground.store, ground.bases)
    desks = Desks(planner=planner)
    resolving = Resolving(ground.store, ground.places, ground.bases)
    await open_domains(desks, ground, resolving, stack)
    parts = Parts(
        resolving=resolving,
        adapters=desks.adapters,
        evaluations=desks.evaluations,
    )
    jobs = Jobs(
        store=ground.store,
        places=ground.places,
        operations=ground.operations,
        planner=planner,
        supervisor=Supervisor(parts, ground.rules),
        tokens=ground.tokens,
        bounds=Bounds(settings.max_seconds, settings.bases_dir),
    )
    desks.jobs = jobs
    retention = Retention(ground.store, ground.places, ground.operations)
    return Trainer(desks, ground.operations, ground.store, jobs, retention)


async def open_domains(desks: Desks, ground: Ground, resolving: Resolving, stack: AsyncExitStack) -> None:
    """Open the desks of datasets, evaluation, registry and export."""
    registry = await open_registry(
        ground.settings,
        places=ground.places,
        store=ground.store,
        private_key=ground.signing_key,
        issuer=ground.issuer,
        profile_dirs=profile_directories(ground.settings),
        now=_now,
    )
    desks.adapters = open_adapters(registry, ground)
    desks.exports = Exports(
        registry=registry,
        operations=ground.operations,
        places=ground.places,
        bases=ground.bases,
        records=ground.records,
        now=_now,
        threads=ground.settings.threads or usable_cores(),
    )
    desks.evaluations = await open_evaluations(
        ground.settings,
        stack,
        operations=ground.operations,
        store=ground.store,
        places=ground.places,
        records=ground.records,
        resolving=resolving,
    )
    desks.datasets = DatasetDesk(
        store=ground.store,
        operations=ground.operations,
        places=ground.places,
        executor=ground.operations.executors[LOCAL],
        tokens=ground.tokens,
        bases=ground.bases,
        site=dataset_site(ground.settings),
    )


def open_adapters(registry: Registry, ground: Ground) -> Adapters:
    """Open the registry's desk, which copies promoted adapters to where the operator wants them."""
    url = ground.settings.publish_url
    if url is None:
        return Adapters(registry, ground.records, ground.tokens)
    require_known(url)
    return Adapters(registry, ground.records, ground.tokens, Publisher(url, registry.shelf).publish)


async def open_ground(
    settings: TrainerSettings,
    records: Records,
    stack: AsyncExitStack,
    executors: Mapping[str, Executor],
    observe: Observer | None,
) -> Ground:
    """Open what every domain stands on."""
    if settings.signing_key_file is None:
        raise InvalidArgumentError(
            "KALA_TRAINER_SIGNING_KEY_FILE",
            "must name the trainer's key: an adapter that nobody signed is loaded nowhere",
        )
    signing_key = load_private_key(settings.signing_key_file)
    places = Places(settings.state_dir)
    places.make()
    lock = lock_state(places)
    stack.callback(lock.close)
    store = await Store.open(settings.database or places.database)
    stack.callback(store.close)
    operations = Operations(
        store=store,
        records=records,
        places=places,
        executors=executors,
        lanes=Lanes(settings.max_jobs, settings.max_tasks, settings.max_queued),
        observe=observe,
    )
    stack.push_async_callback(operations.aclose)
    return Ground(
        settings=settings,
        places=places,
        store=store,
        records=records,
        operations=operations,
        tokens=PageTokens(),
        bases=make_bases(settings),
        signing_key=signing_key,
        rules=rules_of(settings),
    )


def executors_of(settings: TrainerSettings) -> Mapping[str, Executor]:
    """Where work may run."""
    return {
        LOCAL: LocalExecutor(),
        RAY: RayExecutor(address=settings.ray_address, token_file=settings.ray_token_file),
    }


def rules_of(settings: TrainerSettings) -> Rules:
    """How work is run on this machine."""
    return Rules(
        public_keys=settings.ethics_public_keys,
        services=ServicePlaces(
            peer_name=TRAINER,
            ethics_address=settings.ethics_address or "",
            tools_address=settings.tools_address or "",
            tls=settings.tls,
        ),
        threads=settings.threads,
        memory_bytes=settings.memory_bytes,
        max_restarts=settings.max_restarts,
        bases_dir=settings.bases_dir,
        settings={"mlflow_uri": settings.mlflow_uri or ""},
    )


def dataset_site(settings: TrainerSettings) -> DatasetSite:
    """What datasets may be made of, and how much their builds may use."""
    return DatasetSite(
        data_dir=settings.data_dir,
        remote_data=settings.remote_data,
        hub_url=settings.hub_url,
        evaluation_dirs=[
            PACKAGED_SUITES,
            *([settings.suites_dir] if settings.suites_dir is not None else []),
        ],
        public_keys=settings.ethics_public_keys,
        memory_bytes=settings.memory_bytes,
        max_seconds=min(settings.max_seconds, DAY_SECONDS),
    )


def profile_directories(settings: TrainerSettings) -> list[Path]:
    """Where gate profiles are; the operator's own come last and win."""
    return [PACKAGED_PROFILES, *([settings.profiles_dir] if settings.profiles_dir is not None else [])]


def _now() -> Timestamp:
    now = Timestamp()
    now.GetCurrentTime()
    return now
