"""A real trainer's service in this process, in front of a real log; its executor may be scripted."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.longrunning.operations_pb2 import Operation
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from kala.common.v1 import adapter_pb2, options_pb2
from kala.common.v1.clearance_pb2 import PURPOSE_REQUEST, Principal, SealedAction
from kala.common.v1.reference_pb2 import ContentReference
from kala.trainer.v1 import dataset_pb2, job_pb2, trainer_pb2_grpc
from kala.trainer.v1 import trainer_pb2 as pb
from services.common.audit_client import AuditWriter
from services.common.channel import open_channel
from services.common.clearance import ClearanceVerifier
from services.common.file_set import file_set_digest
from services.common.keys import load_private_key, write_private_key
from services.common.principals import principal_metadata
from services.common.sealing import pack
from services.common.server import serving
from services.common.status import translated
from services.trainer.__main__ import call_policy
from services.trainer.assembly import Trainer, open_trainer
from services.trainer.config import TrainerSettings
from services.trainer.executors.model import LET_GO, Attached, Executor, Task
from services.trainer.records import Records
from services.trainer.running import LOCAL, RAY
from services.trainer.servicer import TrainerServicer
from services.trainer.store.store import Store
from services.trainer.work.ended import Ended
from services.trainer.work.events import EventWriter
from services.trainer.work.results import write_result
from tests.fakes.audit_server import ServedLog, served_log
from tests.fakes.clearances import FakeEthics
from tests.fakes.training_jobs import EMBEDDED, write_dataset

SERVICE = "/kala.trainer.v1.TrainerService/"
ANN = Principal(id="keys/ann", tenant="acme", subject="a" * 64, scopes=[options_pb2.SCOPE_TRAIN])
BEN = Principal(id="keys/ben", tenant="other", subject="b" * 64, scopes=[options_pb2.SCOPE_TRAIN])

Script = Callable[[Task], Awaitable[Ended]]


async def finishes(task: Task) -> Ended:
    """A process that takes one step and is done, with what a full fine-tuning leaves."""
    events = EventWriter(task.folder)
    events.write(
        job_pb2.TrainingProgress(state=job_pb2.JOB_STATE_TRAINING, step=1, total_steps=1, loss=0.5),
        force=True,
    )
    (task.folder / "base").mkdir(exist_ok=True)
    (task.folder / "base/config.json").write_text("{}")
    write_result(task.folder, {"steps": 1})
    return Ended(0)


@dataclass
class ScriptedExecutor:
    """Does what its script says instead of starting processes, and keeps what it was given."""

    script: Script = finishes
    elsewhere_id: str = ""
    tasks: list[Task] = field(default_factory=list)
    ended: list[Path] = field(default_factory=list)
    let_go: list[Path] = field(default_factory=list)

    async def run(self, task: Task, attached: Attached) -> Ended:
        self.tasks.append(task)
        try:
            if self.elsewhere_id:
                await attached(self.elsewhere_id)
            return await self.script(task)
        except asyncio.CancelledError as error:
            if error.args == (LET_GO,):
                self.let_go.append(task.folder)
            raise
        finally:
            self.ended.append(task.folder)


@dataclass
class ServedTrainer:
    """A trainer and its client."""

    stub: trainer_pb2_grpc.TrainerServiceAsyncStub
    ethics: FakeEthics
    log: ServedLog
    trainer: Trainer
    settings: TrainerSettings
    address: str

    @property
    def store(self) -> Store:
        return self.trainer.store

    def seal(self, action: Message, rpc: str, *, principal: Principal = ANN) -> SealedAction:
        """Clear an action as ethics would."""
        packed = pack(action)
        clearance = self.ethics.signer.mint(
            decision_id="d" * 32,
            audience=SERVICE + rpc,
            action=packed,
            constitution_digest=b"c" * 32,
            presenter="local:gateway",
            principal=principal,
            purpose=PURPOSE_REQUEST,
        )
        return SealedAction(action=packed, clearance=clearance)

    async def ask(self, rpc: str, request: Message, *, principal: Principal = ANN) -> Any:
        """Make a call on behalf of somebody."""
        with translated():
            return await getattr(self.stub, rpc)(request, metadata=principal_metadata(principal), timeout=60)

    async def create(
        self, spec: job_pb2.TrainingSpec, *, request_id: str = "", principal: Principal = ANN
    ) -> Operation:
        """Clear a job and start it."""
        action = pb.CreateTrainingJobAction(request_id=request_id or secrets.token_hex(16), spec=spec)
        sealed = self.seal(action, "CreateTrainingJob", principal=principal)
        operation: Operation = await self.ask("CreateTrainingJob", pb.CreateTrainingJobRequest(sealed=sealed))
        return operation

    async def plan(self, spec: job_pb2.TrainingSpec, *, principal: Principal = ANN) -> job_pb2.TrainingSpec:
        """Make a spec whole; fails with the plan's problems."""
        answer: pb.PlanJobResponse = await self.ask(
            "PlanJob", pb.PlanJobRequest(spec=spec), principal=principal
        )
        assert not answer.plan.problems, answer.plan.problems
        return answer.plan.spec

    async def job(self, operation: Operation) -> job_pb2.TrainingJob:
        """The job of an operation as it stands."""
        metadata = job_pb2.CreateTrainingJobMetadata()
        operation.metadata.Unpack(metadata)
        answer: pb.GetTrainingJobResponse = await self.ask(
            "GetTrainingJob", pb.GetTrainingJobRequest(name=metadata.job)
        )
        return answer.job

    async def ended(self, operation: Operation) -> Operation:
        """Wait for an operation's end."""
        for _ in range(4):
            operation = await self.ask("WaitOperation", pb.WaitOperationRequest(name=operation.name))
            if operation.done:
                return operation
        raise AssertionError(f"{operation.name} did not end")

    def logged(self, kind: str) -> list[dict[str, Any]]:
        """The log's entries of one type, in order."""
        reader = self.log.file.reader
        entries = [reader.entry(index) for index in range(reader.head().size)]
        leaves = [json.loads(entry.leaf) for entry in entries if entry is not None]
        return [leaf for leaf in leaves if leaf["type"] == kind]

    async def dataset(
        self, name: str = "datasets/larger@1", *, subjects: Mapping[str, int] | None = None, **rows: Any
    ) -> dataset_pb2.Dataset:
        """Put a small dataset into the store."""
        directory = write_dataset(
            self.settings.state_dir / "datasets" / name.removeprefix("datasets/"), **rows
        )
        return await put_dataset(self.store, directory, name, subjects=subjects)


async def put_dataset(
    store: Store, directory: Path, name: str, *, subjects: Mapping[str, int] | None = None
) -> dataset_pb2.Dataset:
    """Describe a folder as a built dataset."""
    assert await store.next_version(name.partition("@")[0], ANN.tenant) == name
    files = references(directory)
    manifest = reference(directory / "manifest.json", name)
    created = Timestamp()
    created.GetCurrentTime()
    dataset = dataset_pb2.Dataset(
        name=name,
        tenant=ANN.tenant,
        owner=ANN.id,
        files=files,
        digest=file_set_digest(files),
        reference=manifest,
        report=dataset_pb2.DatasetReport(train_rows=60, validation_rows=8, tokens=2_000),
        created_at=created,
    )
    await store.put_dataset(dataset, subject=ANN.subject, subjects=subjects)
    return dataset


def references(directory: Path) -> list[ContentReference]:
    return [reference(path, path.name) for path in sorted(directory.iterdir())]


def reference(path: Path, name: str) -> ContentReference:
    data = path.read_bytes()
    return ContentReference(name=name, sha256=hashlib.sha256(data).digest(), bytes=len(data))


def small_spec(dataset: str = "datasets/larger@1", **changes: Any) -> job_pb2.TrainingSpec:
    """A few steps on the embedded model."""
    given: dict[str, Any] = {
        "adapter": "adapters/larger",
        "base": ContentReference(name="kala-embedded"),
        "objective": job_pb2.TRAINING_OBJECTIVE_SFT,
        "stage": adapter_pb2.ADAPTER_STAGE_CUSTOM,
        "lora": job_pb2.LoraSpec(rank=4, target_modules=["query_key_value", "dense"]),
        "datasets": [
            job_pb2.DatasetShare(dataset=ContentReference(name=dataset), use=adapter_pb2.DATASET_USE_TRAIN)
        ],
        "hyperparameters": job_pb2.Hyperparameters(
            max_steps=4, batch_size=4, max_sequence_tokens=64, checkpoint_steps=2
        ),
    }
    return job_pb2.TrainingSpec(**given | changes)


@asynccontextmanager
async def served_trainer(
    folder: Path,
    *,
    executor: Executor | None = None,
    ethics: FakeEthics | None = None,
    log: ServedLog | None = None,
    **settings: Any,
) -> AsyncIterator[ServedTrainer]:
    """Serve one trainer until the context is left; a second one over the same folder takes up what the first left."""
    ethics = ethics or FakeEthics()
    async with AsyncExitStack() as stack:
        if log is None:
            log = await stack.enter_async_context(served_log(folder / "audit.db"))
        audit = await stack.enter_async_context(open_channel(log.address, peer_name="trainer"))
        writer = await stack.enter_async_context(AuditWriter(audit, producer_id="trainer"))
        found = trainer_settings(folder, ethics, **settings)
        records = Records(writer)
        executors = None if executor is None else {LOCAL: executor, RAY: executor}
        trainer = await open_trainer(found, records, stack, executors=executors)
        verifier = ClearanceVerifier({ethics.signer.key_id: ethics.signer.public_key})
        servicer = TrainerServicer(trainer.desks, trainer.operations, trainer.store)
        register = partial(trainer_pb2_grpc.add_TrainerServiceServicer_to_server, servicer)
        server = await stack.enter_async_context(
            serving(found, [register], policy=call_policy(verifier, records))
        )
        await trainer.recover()
        await server.set_serving()
        channel = await stack.enter_async_context(open_channel(server.address, peer_name="gateway"))
        yield ServedTrainer(
            trainer_pb2_grpc.TrainerServiceStub(channel), ethics, log, trainer, found, server.address
        )


def trainer_settings(folder: Path, ethics: FakeEthics, **settings: Any) -> TrainerSettings:
    """Settings of a trainer below a folder, with the shipped model as its base."""
    key = folder / "trainer.pem"
    if not key.exists():
        write_private_key(key, Ed25519PrivateKey.generate())
    given: dict[str, Any] = {
        "address": "127.0.0.1:0",
        "metrics_port": None,
        "drain_seconds": 0.2,
        "state_dir": folder / "state",
        "signing_key_file": key,
        "ethics_public_keys": (ethics.public_key_file(folder),),
        "embedded_dir": EMBEDDED,
        "bases_dir": folder / "bases",
        "threads": 1,
    }
    return TrainerSettings(**given | settings)


def trainer_key(folder: Path) -> Ed25519PrivateKey:
    """The key that signs below a folder."""
    return load_private_key(folder / "trainer.pem")
