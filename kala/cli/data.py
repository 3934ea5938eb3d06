"""`kala data`: check, build and read datasets."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kala.cli.options import JsonOption, KeyOption, StateOption, UrlOption, layout_of
from kala.cli.output import note, show, show_json, table
from kala.cli.trainer_words import bar_of, hexadecimal, trainer_of, when
from kala.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from kala.trainer_calls import Trainer

group = typer.Typer(help="Check, build and read datasets.", no_args_is_help=True)

EXIT_NOT_BUILDABLE: Final = 1
MAX_PROBLEMS_SHOWN: Final = 20

# Any: JSON of the gateway.
Json = Mapping[str, Any]

FileArgument = Annotated[
    Path,
    typer.Argument(
        help="A dataset in YAML, or a job whose `build` describes some; see examples/train.", dir_okay=False
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Folder of the files that the datasets name, handed to the suite of this machine first. "
        "Default: the trainer's own data directory.",
        file_okay=False,
        show_default=False,
    ),
]


@group.command()
def check(
    file: FileArgument,
    *,
    rows: Annotated[int, typer.Option(help="Rows read of each source at most; 0 means 100,000.", min=0)] = 0,
    data: DataOption = None,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Read the sources and say what is wrong with them, row by row. Builds nothing."""
    specs = _specs(file, data, state=state, url=url)
    with trainer_of(url, key, state) as trainer:
        checked = [trainer.check_dataset(spec, max_rows=rows) for spec in specs]
    if as_json:
        show_json({"datasets": checked})
    else:
        for found in checked:
            show(str((found.get("spec") or {}).get("name")))
            _show_report(found.get("report") or {})
    if not all(found.get("buildable") for found in checked):
        note("as it stands it cannot be built")
        raise typer.Exit(EXIT_NOT_BUILDABLE)


@group.command()
def build(
    file: FileArgument,
    *,
    data: DataOption = None,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Build the datasets of a file; each build is judged, recorded and gets a version of its own."""
    specs = _specs(file, data, state=state, url=url)
    with trainer_of(url, key, state) as trainer:
        built = [build_new(trainer, spec, quiet=as_json) for spec in specs]
    if as_json:
        show_json({"datasets": built})
        return
    for dataset in built:
        show(f"{dataset.get('name')}  {hexadecimal(dataset.get('digest'))}")
        _show_report(dataset.get("report") or {})


@group.command()
def card(
    name: Annotated[str, typer.Argument(help="datasets/<name>@<version>, or <name> for the newest.")],
    *,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Show a dataset's card: sources, licences, counts, how it was checked, and its digests."""
    with trainer_of(url, key, state) as trainer:
        dataset = trainer.dataset(name)
    if as_json:
        show_json(dataset)
    else:
        show(str(dataset.get("card") or "").rstrip())


@group.command("list")
def list_datasets(
    *, as_json: JsonOption = False, state: StateOption = None, url: UrlOption = None, key: KeyOption = None
) -> None:
    """List datasets, the newest first."""
    with trainer_of(url, key, state) as trainer:
        datasets = trainer.datasets()
    if as_json:
        show_json({"datasets": datasets})
        return
    table(None, ("dataset", "rows", "validation", "tokens", "digest", "created"), map(_row, datasets))


def build_missing(trainer: Trainer, spec: Json, *, quiet: bool) -> Json:
    """Build a dataset unless its newest version was built from exactly the same."""
    checked = _checked(trainer, spec)
    try:
        newest = trainer.dataset(str(spec["name"]))
    except NotFoundError:
        newest = {}
    if newest and newest.get("spec") == checked:
        note(f"{newest['name']} is built already")
        return newest
    return _build(trainer, checked, quiet=quiet)


def build_new(trainer: Trainer, spec: Json, *, quiet: bool) -> Json:
    """Build a new version of a dataset."""
    return _build(trainer, _checked(trainer, spec), quiet=quiet)


def hand_over(specs: Iterable[Json], folder: Path, *, state: Path | None, url: str | None) -> None:
    """Copy the files that datasets name from a folder into the data directory of this machine's suite."""
    if url is not None:
        raise InvalidArgumentError(
            "--data", "reaches a suite of this machine only; put the files into that trainer's data directory"
        )
    target = layout_of(state).data / "trainer" / "data"
    if not target.is_dir():
        raise FailedPreconditionError(f"{target} is missing: start the suite with `kala up` first")
    for name in _file_names(specs):
        source, place = folder / name, target / name
        if not source.is_file():
            raise InvalidArgumentError("--data", f"{folder} holds no file {name}")
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copyfile(source, place)


def _file_names(specs: Iterable[Json]) -> list[str]:
    named = [
        str(file.get("name"))
        for spec in specs
        for source in spec["sources"]
        for file in (source.get("files") or {}).get("files") or ()
    ]
    named += [str(file.get("name")) for spec in specs for file in spec.get("evaluation_files") or ()]
    for name in named:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InvalidArgumentError("--data", f"takes names below the folder, not {name!r}")
    return [name for name in dict.fromkeys(named) if "://" not in name]


def _specs(file: Path, data: Path | None, *, state: Path | None, url: str | None) -> list[dict[str, Any]]:
    from kala.dataset_file import datasets_in, read_yaml

    specs = datasets_in(read_yaml(file)[1])
    if not specs:
        raise InvalidArgumentError(str(file), "describes no dataset: it has neither `sources` nor `build`")
    if data is not None:
        hand_over(specs, data, state=state, url=url)
    return specs


def _checked(trainer: Trainer, spec: Json) -> Json:
    """Give the spec with its digests; refuses what cannot be built, with the first rows that are wrong."""
    found = trainer.check_dataset(spec)
    if not found.get("buildable"):
        _show_report(found.get("report") or {}, to_stderr=True)
        raise FailedPreconditionError(f"{spec['name']} cannot be built as it stands; the rows above say why")
    checked: Json = found["spec"]
    return checked


def _build(trainer: Trainer, spec: Json, *, quiet: bool) -> Json:
    with bar_of(_build_words, quiet=quiet) as show_metadata:
        dataset = trainer.build_dataset(spec, show_metadata)
    note(f"built {dataset.get('name')}")
    return dataset


def _build_words(metadata: Json) -> tuple[str, int, int | None]:
    total = metadata.get("total_bytes")
    words = f"building {metadata.get('dataset') or ''} {metadata.get('source') or ''}: {metadata.get('kept') or 0} rows kept"
    return words, int(metadata.get("read_bytes") or 0), None if total is None else int(total)


def _show_report(report: Json, *, to_stderr: bool = False) -> None:
    columns = ("source", "read", "wrong", "duplicates", "contaminated", "too long", "kept", "licence")
    keys = ("source", "read", "wrong", "duplicates", "contaminated", "too_long", "kept", "licence")
    rows = [[str(source.get(key, "")) for key in keys] for source in report.get("sources") or ()]
    table(None, columns, rows, to_stderr=to_stderr)
    problems: Sequence[Json] = report.get("problems") or ()
    for problem in problems[:MAX_PROBLEMS_SHOWN]:
        place = ":".join(str(problem[key]) for key in ("source", "file", "row") if problem.get(key))
        note(f"{place}: {problem.get('kind')}: {problem.get('message')}")
    more = int(report.get("problem_count") or 0) - min(len(problems), MAX_PROBLEMS_SHOWN)
    if more > 0:
        note(f"and {more} more rows are wrong; --json lists the first 1,000")
    if report.get("partial"):
        note("it was not read to its end; --rows sets how far")


def _row(dataset: Json) -> tuple[str, ...]:
    report = dataset.get("report") or {}
    return (
        str(dataset.get("name")).removeprefix("datasets/"),
        str(report.get("train_rows") or 0),
        str(report.get("validation_rows") or 0),
        str(report.get("tokens") or ""),
        hexadecimal(dataset.get("digest"))[:16],
        when(dataset.get("created_at")),
    )
