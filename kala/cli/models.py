"""`kala models`: what can be asked for, loading and unloading it in a backend, and getting it onto this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kala.cli.options import JsonOption, KeyOption, StateOption, UrlOption
from kala.cli.output import console, note, show, show_json, table
from kala.errors import InternalError, InvalidArgumentError, KalaError, NotFoundError

if TYPE_CHECKING:
    from kala.client import KalaClient

group = typer.Typer(help="List, load, unload and pull models.", no_args_is_help=True)

MODELS_PATH: Final = "/kala/v1/inference/models"
PREFIX: Final = "backends/"

_LOAD_SECONDS: Final = 900.0
"""A large model is read from a slow disk in minutes; no act lasts longer."""

BackendOption = Annotated[
    str | None,
    typer.Option(
        help="The backend, as `kala status` names it. Default: the one that has the model.",
        show_default=False,
    ),
]

# Any: JSON of the gateway.
Json = Mapping[str, Any]


@group.command("list")
def list_models(
    *,
    backend: Annotated[
        str | None, typer.Option(help="Only this backend. Default: all.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """List the models that can be asked for now, with their state and context."""
    with _client(url, key, state) as client:
        models = _models(client, backend)
    if as_json:
        show_json({"models": models})
        return
    table(None, ("model", "backend", "state", "context", "can", "quantization"), map(_row, models))


@group.command()
def load(
    model: Annotated[str, typer.Argument(help="The model's id, or <backend>/<id>.")],
    *,
    backend: BackendOption = None,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            "--context-length",
            help="Context to load with, in tokens. Default: the backend's own.",
            min=1,
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Load a model into a backend's memory; judged and recorded like every act."""
    with _client(url, key, state) as client:
        where, name = _place(client, model, backend)
        body: dict[str, Any] = {"backend": where, "model": name}
        if context is not None:
            body["context_tokens"] = context
        note(f"loading {name} into {where.removeprefix(PREFIX)} …")
        reply = client.call("POST", f"{MODELS_PATH}:load", body=body, timeout_seconds=_LOAD_SECONDS)
    if as_json:
        show_json(reply)
        return
    loaded = reply.get("model") or {}
    tokens = loaded.get("context_tokens")
    show(
        f"loaded {name} in {where.removeprefix(PREFIX)}"
        + (f" with {tokens} tokens of context" if tokens else "")
        + (f" in {reply['elapsed']}" if reply.get("elapsed") else "")
    )


@group.command()
def unload(
    model: Annotated[str, typer.Argument(help="The model's id, or <backend>/<id>.")],
    *,
    backend: BackendOption = None,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Take a model out of a backend's memory."""
    with _client(url, key, state) as client:
        where, name = _place(client, model, backend)
        reply = client.call(
            "POST",
            f"{MODELS_PATH}:unload",
            body={"backend": where, "model": name},
            timeout_seconds=_LOAD_SECONDS,
        )
    if as_json:
        show_json(reply)
    else:
        show(f"unloaded {name} from {where.removeprefix(PREFIX)}")


@group.command()
def pull(
    source: Annotated[
        str,
        typer.Argument(
            help="A repository, e.g. EleutherAI/pythia-70m, or one file of it: org/repo/file.gguf."
        ),
    ],
    *,
    backend: Annotated[
        str | None,
        typer.Option(help="Let this backend get it. Default: the models directory.", show_default=False),
    ] = None,
    revision: Annotated[
        str, typer.Option(help="A commit, branch or tag. Default: the repository's own.", show_default=False)
    ] = "",
    to: Annotated[
        Path | None,
        typer.Option(
            help="Directory for models, without asking a suite. Default: the suite's.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
    state: StateOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Download a model, every file held against its checksum; by the suite, or without one into ~/.cache/kala/models."""
    with ExitStack() as stack:
        steps = _pulling(stack, source, backend, revision, to, (url, key, state))
        files = _show_progress(steps, quiet=as_json)
    if not files and backend is None:
        raise InternalError("the download ended without a list of its files", reason="STREAM_CUT")
    if as_json:
        show_json({"source": source, "files": files})
    elif files:
        table(None, ("file", "bytes", "sha256"), [_file_row(file) for file in files])
    else:
        # LM Studio gives no digests of what it got.
        show(f"{str(backend).removeprefix(PREFIX)} has {source}")


def _pulling(
    stack: ExitStack,
    source: str,
    backend: str | None,
    revision: str,
    to: Path | None,
    at: tuple[str | None, str | None, Path | None],
) -> Iterator[Json]:
    """Give the progress of a pull: of the suite's where one is named or runs, else of a process of this machine."""
    from kala.offline_pull import pull_offline

    client = None if to is not None else _suite_or_none(stack, at, is_needed=backend is not None)
    if client is None:
        return pull_offline(source, revision=revision, to=to)
    body = {"source": source, "revision": revision, "backend": _full(backend) if backend else ""}
    return stack.enter_context(client.lines(f"{MODELS_PATH}:pull", body=body))


def _suite_or_none(
    stack: ExitStack, at: tuple[str | None, str | None, Path | None], *, is_needed: bool
) -> KalaClient | None:
    url, key, state = at
    try:
        client = _client(url, key, state)
    except KalaError as error:
        if is_needed or error.reason != "SUITE_NOT_RUNNING" or state is not None:
            raise
        note("no suite runs here; this process gets it")
        return None
    return stack.enter_context(client)


def _show_progress(messages: Iterator[Json], *, quiet: bool) -> list[dict[str, Any]]:
    """Draw a pull on standard error; gives the files of its last message, if any."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(to_stderr=True), transient=True, disable=quiet) as progress:
        bar = progress.add_task("asking", total=None)
        for message in messages:
            total = message.get("total_bytes")
            progress.update(
                bar,
                description=str(message.get("file") or "ready"),
                completed=int(message.get("received_bytes") or 0),
                total=None if total is None else int(total),
            )
            if message.get("files"):
                return list(message["files"])
    return []


def _client(url: str | None, key: str | None, state: Path | None) -> KalaClient:
    from kala.client import KalaClient
    from kala.target import find_target

    return KalaClient(find_target(url=url, key=key, state=state))


def _models(client: KalaClient, backend: str | None) -> list[dict[str, Any]]:
    return client.pages(MODELS_PATH, "models", params={"backend": _full(backend)} if backend else None)


def _place(client: KalaClient, model: str, backend: str | None) -> tuple[str, str]:
    """Give the backend's full name and the model's id in it; NotFoundError lists what there is."""
    if backend is not None:
        return _full(backend), model
    models = _models(client, None)
    found = [each for each in models if model in {each["id"], each["backend_model"]}]
    if len(found) == 1:
        return str(found[0]["backend"]), str(found[0]["backend_model"])
    if found:
        names = ", ".join(str(each["backend"]).removeprefix(PREFIX) for each in found)
        raise InvalidArgumentError(
            "--backend", f"{model!r} is in several backends: {names}; name one of them"
        )
    prefix, slash, rest = model.partition("/")
    if slash and any(each.get("name") == PREFIX + prefix for each in client.backends()):
        return PREFIX + prefix, rest
    known = ", ".join(str(each["id"]) for each in models)
    raise NotFoundError(
        f"no backend lists {model!r}; name one with --backend, or choose of: {known or 'none'}"
    )


def _full(backend: str) -> str:
    return PREFIX + backend.removeprefix(PREFIX)


def _row(model: Json) -> tuple[str, ...]:
    context, longest = model.get("context_tokens"), model.get("max_context_tokens")
    tokens = " of ".join(str(number) for number in dict.fromkeys((context, longest)) if number)
    if longest and not context:
        tokens = f"up to {longest}"
    return (
        str(model["id"]),
        str(model["backend"]).removeprefix(PREFIX),
        str(model.get("state", "")).removeprefix("LOAD_STATE_").lower().replace("_", " "),
        tokens,
        ", ".join(str(each).removeprefix("CAPABILITY_").lower() for each in model.get("capabilities") or ()),
        str(model.get("quantization") or ""),
    )


def _file_row(file: Json) -> tuple[str, ...]:
    import base64

    return (
        str(file.get("name")),
        str(file.get("bytes")),
        base64.b64decode(str(file.get("sha256") or "")).hex(),
    )
