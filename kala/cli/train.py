"""`kala train`: plan, submit, follow and end training jobs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kala.cli.options import JsonOption, KeyOption, StateOption, UrlOption
from kala.cli.output import note, show, show_json, table
from kala.cli.trainer_words import job_bar, job_words, number, trainer_of, when, word
from kala.errors import FailedPreconditionError

if TYPE_CHECKING:
    from kala.trainer_calls import Trainer

group = typer.Typer(help="Plan, submit, follow and end training jobs.", no_args_is_help=True)

EXIT_FAILED: Final = 1

_OF_DATASETS: Final = "datasets["
"""How the plan begins what it says of one dataset, such as one that is not built yet."""

# Any: JSON of the gateway.
Json = Mapping[str, Any]

FileArgument = Annotated[Path, typer.Argument(help="The job in YAML; see examples/train.", dir_okay=False)]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="As `kala train list` shows it.")]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Folder of the files that the job's datasets name, handed to the suite of this machine first. "
        "Default: the trainer's own data directory.",
        file_okay=False,
        show_default=False,
    ),
]


@group.command()
def plan(
    file: FileArgument,
    *,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Say what a job would do, with its memory and time. Starts nothing and needs no weights."""
    from kala.dataset_file import read_yaml

    text, _ = read_yaml(file)
    with trainer_of(url, key, state) as trainer:
        planned = trainer.plan(text=text)
    if as_json:
        show_json(planned)
    else:
        show(str(planned.get("text") or "").rstrip())
    if planned.get("problems"):
        raise typer.Exit(EXIT_FAILED)


@group.command()
def submit(
    file: FileArgument,
    *,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow it to its end; it fails when the job does.")
    ] = False,
    data: DataOption = None,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Build the datasets that the file describes, show the plan, and start the job."""
    from kala.cli.data import build_missing, hand_over
    from kala.dataset_file import datasets_in, read_yaml

    text, document = read_yaml(file)
    specs = datasets_in(document)
    if data is not None:
        hand_over(specs, data, state=state, url=url)
    with trainer_of(url, key, state) as trainer:
        if specs:
            # What no dataset will cure is said before the first one is built.
            _require_plan(trainer.plan(text=text), before_build=True)
        for spec in specs:
            build_missing(trainer, spec, quiet=as_json)
        planned = trainer.plan(text=text)
        note(str(planned.get("text") or "").rstrip())
        _require_plan(planned)
        operation = trainer.submit(planned["spec"])
        name = str((operation.get("metadata") or {}).get("job") or "")
        note(f"started {name}; `kala train watch {_short(name)}` follows it")
        job = _follow(trainer, name, quiet=as_json) if wait else trainer.job(name)
    if as_json:
        show_json(job)
    elif wait:
        _say_end(job)
    else:
        show(name)
    if wait:
        _require_success(job)


@group.command()
def watch(
    job: JobArgument,
    *,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Follow a job to its end: loss, tokens per second, time left, checkpoints and incidents. With --json one event a line."""
    with trainer_of(url, key, state) as trainer:
        if as_json:
            import json

            last: Json = {}
            for event in trainer.watch(job):
                show(json.dumps(event))
                last = event.get("job") or last
        else:
            last = _follow(trainer, job, quiet=False)
            _say_end(last)
    _require_success(last)


@group.command("list")
def list_jobs(
    *,
    adapter: Annotated[str, typer.Option(help="Only those for this adapter.", show_default=False)] = "",
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """List jobs, the newest first."""
    with trainer_of(url, key, state) as trainer:
        jobs = trainer.jobs(adapter=adapter)
    if as_json:
        show_json({"jobs": jobs})
        return
    table(None, ("job", "adapter", "base", "state", "steps", "loss", "created"), map(_row, jobs))


@group.command()
def cancel(
    job: JobArgument, *, state: StateOption = None, url: UrlOption = None, key: KeyOption = None
) -> None:
    """End a job; its checkpoints stay for a day."""
    with trainer_of(url, key, state) as trainer:
        now = trainer.cancel(job)
    show(f"{_short(str(now.get('name')))} {word((now.get('progress') or {}).get('state'), 'JOB_STATE_')}")


@group.command()
def logs(
    job: JobArgument,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait for new lines until the job ends.")
    ] = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Show what a job's processes wrote; no rows of datasets are in it."""
    with trainer_of(url, key, state) as trainer:
        for line in trainer.logs(job, follow=follow):
            show(f"{line.get('source', '')}: {line.get('text', '')}")


def _require_plan(planned: Json, *, before_build: bool = False) -> None:
    problems = [str(problem) for problem in planned.get("problems") or ()]
    if before_build:
        problems = [problem for problem in problems if not problem.startswith(_OF_DATASETS)]
    if problems:
        raise FailedPreconditionError("the plan has problems: " + "; ".join(problems))


def _follow(trainer: Trainer, name: str, *, quiet: bool) -> Json:
    """Draw a job until it has ended; Ctrl-C ends the drawing and not the job."""
    last: Json = {}
    try:
        with job_bar(quiet=quiet or not sys.stderr.isatty()) as draw:
            for event in trainer.watch(name):
                last = event.get("job") or last
                at = event.get("progress") or (event.get("job") or {}).get("progress")
                if at:
                    draw(at)
                for line in _happenings(event):
                    if not quiet:
                        note(line)
    except KeyboardInterrupt:
        note(f"{_short(name)} goes on; `kala train cancel {_short(name)}` ends it")
        raise
    return last


def _happenings(event: Json) -> Iterator[str]:
    """Say what happened besides numbers."""
    if incident := event.get("incident"):
        step = incident.get("resumes_from_step")
        yield f"{incident.get('kind')}: {incident.get('message')}" + (
            f"; it goes on from step {step}" if step is not None else ""
        )
    if checkpoint := event.get("checkpoint"):
        yield f"checkpoint at step {checkpoint.get('step')}"
    if draft := event.get("draft"):
        yield (
            f"{draft.get('drafts')} drafts, {draft.get('violations')} broke a law, {draft.get('kept')} revisions kept"
        )
    if (job := event.get("job")) and not sys.stderr.isatty():
        yield job_words(job.get("progress") or {})


def _say_end(job: Json) -> None:
    at: Json = job.get("progress") or {}
    show(f"{job.get('name')} {job_words({**at, 'tokens_per_second': 0, 'remaining': None})}")
    if job.get("error"):
        note(f"{job.get('error_reason')}: {job['error']}")
    if job.get("adapter"):
        show(f"adapter     {job['adapter']}")
    if job.get("evaluation"):
        show(f"evaluation  {job['evaluation']}")
        note(
            f"`kala adapters show {job['adapter']}` says whether it passed, `kala adapters promote` signs it"
        )


def _require_success(job: Json) -> None:
    if (job.get("progress") or {}).get("state") != "JOB_STATE_SUCCEEDED":
        raise typer.Exit(EXIT_FAILED)


def _row(job: Json) -> tuple[str, ...]:
    spec, at = job.get("spec") or {}, job.get("progress") or {}
    return (
        _short(str(job.get("name"))),
        str(job.get("adapter") or spec.get("adapter") or "").removeprefix("adapters/"),
        str((spec.get("base") or {}).get("name") or ""),
        word(at.get("state"), "JOB_STATE_"),
        f"{at.get('step') or 0} of {at.get('total_steps') or '?'}",
        number(at.get("loss")),
        when(job.get("created_at")),
    )


def _short(name: str) -> str:
    return name.removeprefix("trainingJobs/")
