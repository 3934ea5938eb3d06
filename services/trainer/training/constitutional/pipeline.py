"""From a job's datasets to the stages that it trains: drafts by this job's own workers, verdicts by ethics, rows on disk."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from google.protobuf.message import Message

from kala.errors import CancelledError, DeadlineExceededError, FailedPreconditionError
from kala.trainer.v1 import job_pb2
from services.trainer.evaluation.refusals import is_refusal
from services.trainer.training.constitutional.card import write_card
from services.trainer.training.constitutional.drafting import BATCH, Writer, measure, open_writer
from services.trainer.training.constitutional.journal import Journal, Outcome
from services.trainer.training.constitutional.judging import Bench, count_of
from services.trainer.training.constitutional.lessons import (
    Lessons,
    Shares,
    make_lessons,
    with_harmless,
    write_rows,
)
from services.trainer.training.constitutional.prompts import Prompt, read_material
from services.trainer.training.constitutional.revisions import Fits, ModelReviser, Reviser, TemplateReviser
from services.trainer.training.constitutional.verdicts import Judge, Law, open_judge
from services.trainer.training.recipe import DatasetFolder, Recipe, Stage, Work, recipe_of
from services.trainer.training.world import World
from services.trainer.work.order import Order

FOLDER: Final = "constitutional"
DEFAULT_DRAFTS: Final = 1
DEFAULT_NEW_TOKENS: Final = 256
DEFAULT_TEMPERATURE: Final = 0.7
DEFAULT_SFT_SHARE: Final = 0.5
DEFAULT_BENIGN_SHARE: Final = 0.3
DEFAULT_BETA: Final = 0.1

GIVEN_SHARE: Final = 2
"""An answer of the dataset takes a draft's place when it is at most half as long as a draft may be: a small model that is
to learn a long text by heart forgets what it knew."""

PREFERENCE_RATE: Final = 0.1
"""Learning rate of the preference stage as a share of the job's: it corrects what the answers have taught."""

PREFERENCE_STEPS: Final = 0.2
"""Of the steps of a job that names them, the most that preferences get."""

# Part of the journal's key: drafts of another release are not taken over.
_RELEASE: Final = "kala-constitutional-v1"
# Batches of one rank never have the seed of another's: a batch counts on from its number by this.
_SEED_STRIDE: Final = 1_000_003
REVISERS: Final = {job_pb2.REVISER_MODEL: "model", job_pb2.REVISER_TEMPLATE: "template"}


class Events(Protocol):
    """Where drafts are told; see services.trainer.work.events."""

    def write(self, message: Message, *, force: bool = False) -> None: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """A job's constitutional settings with every default filled in."""

    reviser: str
    drafts: int
    max_new_tokens: int
    temperature: float
    shares: Shares
    beta: float

    @classmethod
    def of(cls, spec: job_pb2.TrainingSpec) -> Settings:
        """Reads them; raises FailedPreconditionError for a job that names no reviser."""
        given = spec.constitutional
        if given.reviser not in REVISERS:
            raise FailedPreconditionError("constitutional.reviser: must be model or template")
        return cls(
            REVISERS[given.reviser],
            given.drafts or DEFAULT_DRAFTS,
            given.max_new_tokens or DEFAULT_NEW_TOKENS,
            given.temperature if given.HasField("temperature") else DEFAULT_TEMPERATURE,
            Shares(
                given.sft_share if given.HasField("sft_share") else DEFAULT_SFT_SHARE,
                given.benign_share if given.HasField("benign_share") else DEFAULT_BENIGN_SHARE,
            ),
            given.dpo_beta if given.HasField("dpo_beta") else DEFAULT_BETA,
        )


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a constitutional job trains, and what came of its drafts."""

    stages: tuple[Stage, ...]
    counts: Mapping[str, int]


def prepare(
    order: Order,
    spec: job_pb2.TrainingSpec,
    work: Work,
    datasets: Sequence[DatasetFolder],
    events: Events,
    *,
    world: World,
    should_stop: Callable[[], bool] = lambda: False,
) -> Prepared:
    """Drafts what is not drafted yet and returns the stages; each worker drafts its part, and all get the same stages.

    `work` says how the base is held. Raises KalaError when ethics gives no verdicts, when nothing can be learned, when the
    deadline is over or when the job is ended; what was drafted until then is kept.
    """
    settings = Settings.of(spec)
    sources = [dataset for dataset in datasets if dataset.use == "train"]
    fits = measure(work.base, settings.max_new_tokens // GIVEN_SHARE)
    materials = [read_material(source.directory, fits) for source in sources]
    if not any(material.prompts for material in materials):
        raise FailedPreconditionError(
            "constitutional training found no prompt to draft for; give it a dataset with rows of laws 0 to 4, conflicts, "
            "conversations or harmless requests",
            reason="NO_PROMPTS",
        )
    prompts = list({each.id: each for material in materials for each in material.prompts}.values())
    run = _Run(order, spec, work, settings, events, world, should_stop, fits)
    outcomes = run.outcomes(prompts)
    lessons = [
        make_lessons(
            material,
            outcomes,
            settings.shares,
            seed=work.seed,
            model_digest=order.base.digest if order.base else b"",
            reviser=settings.reviser,
            fits=fits,
        )
        for material in materials
    ]
    lessons = with_harmless(lessons, settings.shares.benign, seed=work.seed)
    folder = order.folder / FOLDER
    learned = _folders(folder, sources, lessons)
    preferences = tuple(row for each in lessons for row in each.preferences)
    if world.leads:
        for place, each in zip(learned, lessons, strict=True):
            write_rows(place.directory, each.learned)
        write_rows(folder / "preferences", preferences)
        write_card(order, settings.reviser, materials, lessons, outcomes)
    world.wait()
    others = [dataset for dataset in datasets if dataset.use != "train"]
    used = [place for place, each in zip(learned, lessons, strict=True) if each.learned]
    preferred = DatasetFolder("preferences", folder / "preferences")
    stages = make_stages(
        recipe_of(spec, objective="sft"), (*used, *others), preferred, len(preferences), settings.beta
    )
    return Prepared(stages, dict(count_of(outcomes)))


def make_stages(
    recipe: Recipe,
    datasets: tuple[DatasetFolder, ...],
    preferred: DatasetFolder,
    pairs: int,
    beta: float,
) -> tuple[Stage, ...]:
    """Returns the answers' stage, and that of the preferences where there are any; steps that a job names are divided."""
    has_answers = any(dataset.use == "train" for dataset in datasets)
    if not has_answers and not pairs:
        raise FailedPreconditionError(
            "no draft gave anything to learn; look at constitutional.md among the job's reports",
            reason="NOTHING_TO_LEARN",
        )
    steps = math.ceil(pairs / recipe.batch_size)
    if recipe.max_steps and has_answers:
        steps = min(steps, round(recipe.max_steps * PREFERENCE_STEPS))
    preferring = replace(
        recipe,
        objective="dpo",
        learning_rate=recipe.learning_rate * PREFERENCE_RATE,
        max_steps=steps,
        packing=False,
        micro_batch_size=max(1, recipe.micro_batch_size // 2),
        validation_steps=0,
        dpo_beta=beta,
    )
    stages = []
    if has_answers:
        answering = replace(recipe, max_steps=recipe.max_steps - steps) if recipe.max_steps else recipe
        stages.append(Stage(answering, datasets))
    if steps:
        stages.append(Stage(preferring, (preferred,)))
    return tuple(stages)


def _folders(
    folder: Path, sources: Sequence[DatasetFolder], lessons: Sequence[Lessons]
) -> list[DatasetFolder]:
    return [
        DatasetFolder(source.name, folder / f"learned-{number}", "train", source.weight)
        for number, (source, _) in enumerate(zip(sources, lessons, strict=True), start=1)
    ]


class _Run:
    """The drafting of one job in this worker."""

    def __init__(
        self,
        order: Order,
        spec: job_pb2.TrainingSpec,
        work: Work,
        settings: Settings,
        events: Events,
        world: World,
        should_stop: Callable[[], bool],
        fits: Fits,
    ) -> None:
        self._order = order
        self._fits = fits
        self._work = work
        self._settings = settings
        self._events = events
        self._world = world
        self._should_stop = should_stop
        self._key = _key(order, spec)
        self._counts: Counter[str] = Counter()

    def outcomes(self, prompts: Sequence[Prompt]) -> list[Outcome]:
        """Returns what became of every prompt, in order, drafting this worker's batches where that is still to do."""
        batches = [list(prompts[first : first + BATCH]) for first in range(0, len(prompts), BATCH)]
        mine = Journal(self._path(self._world.rank), key=self._key)
        self._counts = count_of([each for batch in mine.batches.values() for each in batch])
        # What an earlier run with other workers drafted counts as well.
        done = self._done()
        left = [
            number
            for number in range(len(batches))
            if number not in done and number % self._world.size == self._world.rank
        ]
        # Nobody begins to write before all have read: the parts would not be the same.
        self._world.wait()
        self._tell()
        if left:
            with ExitStack() as stack:
                writer = stack.enter_context(
                    open_writer(
                        self._work,
                        self._world.torch_device(),
                        max_new_tokens=self._settings.max_new_tokens,
                        temperature=self._settings.temperature,
                    )
                )
                asyncio.run(self._draft([(number, batches[number]) for number in left], writer, mine))
        self._world.wait()
        done = self._done()
        outcomes = [each for number in range(len(batches)) for each in done[number]]
        self._counts = count_of(outcomes)
        self._tell()
        return outcomes

    async def _draft(
        self, batches: Sequence[tuple[int, list[Prompt]]], writer: Writer, journal: Journal
    ) -> None:
        constitution = self._order.constitution_digest.hex()
        async with open_judge(self._order.services, constitution=constitution) as judge:
            bench = make_bench(judge, await judge.laws(), writer, self._settings, self._fits)
            for number, prompts in batches:
                self._leave_if_asked()
                outcomes = await bench.outcomes(prompts, self._work.seed + number * _SEED_STRIDE)
                journal.add(number, outcomes)
                self._counts += count_of(outcomes)
                self._tell()

    def _done(self) -> dict[int, list[Outcome]]:
        found: dict[int, list[Outcome]] = {}
        for path in sorted((self._order.folder / FOLDER).glob("drafts-*.jsonl")):
            found |= Journal(path, key=self._key).batches
        return found

    def _path(self, rank: int) -> Path:
        return self._order.folder / FOLDER / f"drafts-{rank:03}.jsonl"

    def _leave_if_asked(self) -> None:
        if self._should_stop():
            raise CancelledError("ended as asked while drafting", reason="STOPPED")
        if self._order.deadline and time.time() > self._order.deadline:
            raise DeadlineExceededError(
                "the job's deadline was over while drafting; ask for a later deadline or fewer prompts"
            )

    def _tell(self) -> None:
        if not self._world.leads:
            return
        self._events.write(
            job_pb2.TrainingProgress(state=job_pb2.JOB_STATE_DRAFTING, workers=self._world.size)
        )
        self._events.write(
            job_pb2.DraftEvent(
                drafts=self._counts["drafts"],
                violations=self._counts["violations"],
                kept=self._counts["kept"],
            )
        )


def make_bench(
    judge: Judge, laws: Mapping[int, Law], writer: Writer, settings: Settings, fits: Fits
) -> Bench:
    """Puts together who drafts, judges and revises."""
    reviser: Reviser = (
        ModelReviser(laws, writer.write) if settings.reviser == "model" else TemplateReviser(laws, fits)
    )
    return Bench(judge, writer.write, reviser, drafts=settings.drafts, declines=is_refusal, fits=fits)


def _key(order: Order, spec: job_pb2.TrainingSpec) -> str:
    """Names all that drafts depend on: the job as it was cleared, which names base and datasets by digest."""
    cleared = order.action.value if order.action is not None else spec.SerializeToString(deterministic=True)
    return hashlib.sha256(_RELEASE.encode() + b"\0" + cleared).hexdigest()
