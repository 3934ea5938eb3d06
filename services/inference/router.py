"""Chooses which backends serve a request, in which order and with which model.  Pure: same input, same choice.

The chain is MLX, llama.cpp, LM Studio, Ollama, a configured Pythia.  The embedded demo is no link of it: it serves by
name, or when no other backend was ever configured or found.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from kala.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    KalaError,
    ModelNotAvailable,
    NotFoundError,
    UnavailableError,
)
from services.inference.backend import (
    AUTO_MODEL,
    LOCAL_MODEL,
    Capability,
    Identity,
    Kind,
    LoadState,
    ModelInfo,
    State,
    Status,
)

MAX_LISTED: Final = 12
"""Names listed in a message: enough to find the right one, few enough to read."""

LOADS_ON_DEMAND: Final = frozenset({Kind.OLLAMA, Kind.PYTHIA})
"""Kinds that load an installed model when it is asked for."""

MODEL_NOT_AVAILABLE: Final = "MODEL_NOT_AVAILABLE"

UNNAMED_MODELS: Final = frozenset({"", AUTO_MODEL, LOCAL_MODEL})

_ANSWERING: Final = frozenset({State.READY, State.NO_MODEL, State.LOADING})


@dataclass(frozen=True, slots=True)
class View:
    """A backend as last seen."""

    identity: Identity
    status: Status

    @property
    def name(self) -> str:
        return self.identity.name

    @property
    def is_answering(self) -> bool:
        return self.status.state in _ANSWERING


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request says about where it wants to go."""

    model: str = ""
    provider: str = ""
    needs: frozenset[Capability] = frozenset()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend that may serve, and the model it would serve with."""

    backend: str
    model: ModelInfo
    reason: str


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A backend that may not serve; `reason` is stable, `detail` in words, `error` what to raise if nothing else is there."""

    backend: str
    reason: str
    detail: str
    error: KalaError | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Candidates in the order of trying, and the backends passed over, in chain order."""

    candidates: tuple[Candidate, ...]
    passed_over: tuple[PassedOver, ...]


def chain_order(views: Iterable[View]) -> list[View]:
    """Sort backends as `auto` prefers them: by kind, configured before found, the demo last."""
    return sorted(
        views,
        key=lambda view: (
            view.identity.is_demo,
            view.identity.kind.place,
            view.identity.is_discovered,
            view.name,
        ),
    )


def explain(wanted: Wanted, views: Sequence[View]) -> Route:
    """Place every backend for this request; raises NotFoundError or InvalidArgumentError for a name nobody knows."""
    chain = _of_provider(wanted, chain_order(views))
    chosen: list[Candidate] = []
    passed: list[PassedOver] = []
    pick = _picker(wanted.model, chain)
    for view in chain:
        place = _placed(view, pick(view), wanted.needs, first=not chosen)
        if isinstance(place, Candidate):
            chosen.append(place)
        else:
            passed.append(place)
    return Route(tuple(chosen), tuple(passed))


def choose(wanted: Wanted, views: Sequence[View]) -> Route:
    """Give the route of a request; raises the KalaError that tells why nothing can serve it."""
    route = explain(wanted, views)
    if route.candidates:
        return route
    raise _nothing_serves(wanted, route, views)


# What a picker says of one backend: the model to use, or why not.
_Pick = ModelInfo | PassedOver


def _of_provider(wanted: Wanted, chain: list[View]) -> list[View]:
    if not wanted.provider or wanted.provider == AUTO_MODEL:
        return chain
    kinds = [kind.value for kind in Kind]
    if wanted.provider not in kinds:
        raise InvalidArgumentError(
            "provider", f"{wanted.provider!r} is not served; choose one of {', '.join(kinds)}"
        )
    return [view for view in chain if view.identity.kind.value == wanted.provider]


class _Unnamed:
    """Picks each backend's own model: the configured one, else the one that is loaded."""

    def __init__(self, chain: list[View]) -> None:
        self._has_others = any(not view.identity.is_demo for view in chain)

    def __call__(self, view: View) -> _Pick:
        if view.identity.is_demo and self._has_others:
            return PassedOver(
                view.name, "DEMO_ONLY_BY_NAME", "is the embedded demo, which serves only when it is named"
            )
        return _own_model(view)


@dataclass(frozen=True, slots=True)
class _Named:
    """Picks the backends that have a model of this id, or the one that the prefix names."""

    backend: str
    model: str

    def __call__(self, view: View) -> _Pick:
        if self.backend and view.name != self.backend:
            return PassedOver(view.name, "NOT_ASKED", f"is not {self.backend}, which was asked for")
        if self.model in UNNAMED_MODELS:
            return _own_model(view)
        found = find_model(view.status.models, self.model)
        if found is None and not view.is_answering and view.identity.kind is not Kind.PYTHIA:
            # It may have the model. The model in process is known by name, whether its files are there or not.
            return _not_answering(view)
        if found is None:
            return PassedOver(view.name, "MODEL_NOT_FOUND", f"has no model {self.model!r}")
        if not found.can_chat:
            problem = f"{found.id!r} on {view.name} is no chat model"
            return PassedOver(view.name, "NOT_A_CHAT_MODEL", problem, InvalidArgumentError("model", problem))
        return found


def find_model(models: Iterable[ModelInfo], name: str) -> ModelInfo | None:
    """Give the model of this id, else the one with this alias."""
    listed = tuple(models)
    by_id = next((model for model in listed if model.id == name), None)
    return by_id or next((model for model in listed if name in model.aliases), None)


def _picker(model: str, chain: list[View]) -> _Unnamed | _Named:
    if model in UNNAMED_MODELS:
        return _Unnamed(chain)
    # A model's own id may hold a slash ("qwen/qwen3-4b"), so a whole id goes before a prefix.
    if any(find_model(view.status.models, model) for view in chain):
        return _Named("", model)
    prefix, slash, rest = model.partition("/")
    if slash and any(view.name == prefix for view in chain):
        return _Named(prefix, rest)
    return _Named("", model)


def _own_model(view: View) -> _Pick:
    models, wanted = view.status.models, view.identity.default_model
    if wanted and wanted not in UNNAMED_MODELS:
        found = find_model(models, wanted)
        if found is not None:
            return found
        if not view.is_answering:
            return _not_answering(view)
        problem = f"its configured model {wanted!r} is not there"
        return PassedOver(view.name, "MODEL_NOT_FOUND", problem, NotFoundError(f"{view.name}: {problem}"))
    chat_models = [model for model in models if model.can_chat]
    usable = [model for model in chat_models if model.state is LoadState.LOADED]
    usable = usable or [model for model in chat_models if model.state is LoadState.UNKNOWN]
    if not usable and view.identity.kind in LOADS_ON_DEMAND and len(chat_models) == 1:
        usable = chat_models
    if len(usable) == 1:
        return usable[0]
    if usable:
        problem = f"several models are loaded in {view.name}: {_listed(model.id for model in usable)}; name one of them"
        return PassedOver(
            view.name,
            "SEVERAL_MODELS_LOADED",
            problem,
            InvalidArgumentError("model", problem, reason="SEVERAL_MODELS_LOADED"),
        )
    return (
        _not_answering(view) if view.status.state is not State.READY else _no_model(view, "has no chat model")
    )


def _placed(view: View, pick: _Pick, needs: frozenset[Capability], *, first: bool) -> Candidate | PassedOver:
    if isinstance(pick, PassedOver):
        if pick.reason == "SEVERAL_MODELS_LOADED" and first and pick.error is not None:
            # Going on to a lesser backend here would be a silent fallback; the person can name the model instead.
            raise pick.error
        return pick
    if not view.is_answering:
        return _not_answering(view)
    missing = needs - pick.capabilities if pick.capabilities is not None else frozenset()
    if missing:
        names = _listed(sorted(capability.value for capability in missing))
        problem = f"{pick.id!r} on {view.name} cannot do {names}"
        return PassedOver(view.name, "NOT_CAPABLE", problem, InvalidArgumentError("model", problem))
    how = "configured" if pick.id == view.identity.default_model else pick.state.value
    return Candidate(view.name, pick, f"{view.status.state.value}; model {pick.id} is {how}")


def _not_answering(view: View) -> PassedOver:
    status = view.status
    error: KalaError | None = None
    if status.state is State.NO_MODEL:
        return _no_model(view, status.detail)
    if status.reason == MODEL_NOT_AVAILABLE:
        error = ModelNotAvailable(status.detail)
    return PassedOver(view.name, status.reason or status.state.name, status.detail, error)


def _no_model(view: View, detail: str) -> PassedOver:
    error = FailedPreconditionError(f"{view.name}: {detail}", reason="NO_MODEL_LOADED")
    return PassedOver(view.name, "NO_MODEL_LOADED", detail, error)


def _nothing_serves(wanted: Wanted, route: Route, views: Sequence[View]) -> KalaError:
    asked = [
        passed for passed in route.passed_over if passed.reason not in {"NOT_ASKED", "DEMO_ONLY_BY_NAME"}
    ]
    if not asked:
        provider = (
            f" of kind {wanted.provider!r}" if wanted.provider and wanted.provider != AUTO_MODEL else ""
        )
        return UnavailableError(
            f"no model server{provider} is configured or found; start LM Studio, llama-server, mlx_lm.server or Ollama",
            reason="NO_BACKEND",
        )
    errors = [passed.error for passed in asked if passed.error is not None]
    if errors:
        return errors[0]
    off = [passed for passed in asked if passed.reason != "MODEL_NOT_FOUND"]
    if wanted.model not in UNNAMED_MODELS and len(off) < len(asked):
        hint = f" ({_listed(f'{passed.backend} is away' for passed in off)})" if off else ""
        known = _listed(
            model.id for view in chain_order(views) for model in view.status.models if model.can_chat
        )
        return NotFoundError(
            f"model {wanted.model!r} is not known{hint}; there are: {known or 'none'}",
            reason="MODEL_NOT_FOUND",
        )
    reasons = "; ".join(f"{passed.backend}: {passed.detail}" for passed in asked)
    return UnavailableError(f"no backend can serve this: {reasons}", reason="ALL_BACKENDS_FAILED")


def _listed(names: Iterable[str]) -> str:
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - MAX_LISTED} more" if len(unique) > MAX_LISTED else ""
    return ", ".join(unique[:MAX_LISTED]) + more
