"""Chooses which backends serve a request, in which order and with which model.  Pure: same input, same choice.

The chain is MLX, llama.cpp, LM Studio, Ollama, a configured Pythia, and what is remote where the request allows that.
The embedded demo is no link of it: it serves by name, or when no other backend was ever configured or found.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
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
    find_model,
)
from services.inference.leaving import REMOTE_NOT_ALLOWED, may_leave, refusal_to_leave

MAX_LISTED: Final = 12
"""Names listed in a message: enough to find the right one, few enough to read."""

LOADS_ON_DEMAND: Final = frozenset({Kind.OLLAMA, Kind.PYTHIA})
"""Kinds that load an installed model when it is asked for."""

MODEL_NOT_AVAILABLE: Final = "MODEL_NOT_AVAILABLE"

SERVER_STARTING: Final = "SERVER_STARTING"
"""Reason of a server that this service has started and that does not listen yet."""

UNNAMED_MODELS: Final = frozenset({"", AUTO_MODEL, LOCAL_MODEL})

DEFAULT_CHAIN: Final = tuple(Kind)

TASKS: Final = (Capability.EMBED, Capability.RERANK, Capability.COMPLETE)
"""What a model may be for instead of chat."""

_NOT_ASKED: Final = frozenset({"NOT_ASKED", "DEMO_ONLY_BY_NAME", "NOT_FOR_THIS"})
"""Reasons that say nothing about a backend's state."""

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
        return self.status.state in _ANSWERING and self.status.reason != SERVER_STARTING


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request says about where it wants to go."""

    model: str = ""
    provider: str = ""
    needs: frozenset[Capability] = frozenset()
    task: Capability = Capability.CHAT
    """What the model is for; one that is known to do other things is not taken for it."""
    allow_remote: bool = False
    """Whether data may leave the machines of whoever runs this."""
    context_tokens: int | None = None
    """Context that the model must be loaded with at least; None for any."""
    adapters: tuple[str, ...] = ()
    """Adapters that must be in service with the model."""

    @property
    def is_unnamed(self) -> bool:
        return self.model in UNNAMED_MODELS


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
    error: KalaError | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Route:
    """Candidates in the order of trying, and the backends passed over, in chain order."""

    candidates: tuple[Candidate, ...]
    passed_over: tuple[PassedOver, ...]


def chain_order(views: Iterable[View], chain: Sequence[Kind] = DEFAULT_CHAIN) -> list[View]:
    """Sort backends as `auto` prefers them: by kind, configured before found, kinds outside the chain last, then the demo."""
    places = {kind: place for place, kind in enumerate(chain)}
    return sorted(
        views,
        key=lambda view: (
            view.identity.is_demo,
            places.get(view.identity.kind, len(places) + DEFAULT_CHAIN.index(view.identity.kind)),
            view.identity.is_discovered,
            view.identity.number,
            view.name,
        ),
    )


def explain(wanted: Wanted, views: Sequence[View], chain: Sequence[Kind] = DEFAULT_CHAIN) -> Route:
    """Place every backend for this request; raises NotFoundError or InvalidArgumentError for a name nobody knows."""
    ordered = _of_provider(wanted, chain_order(views, chain))
    here = (model for view in ordered if not view.identity.is_remote for model in view.status.models)
    wanted = replace(wanted, allow_remote=may_leave(wanted.model, here, allow_remote=wanted.allow_remote))
    chosen: list[Candidate] = []
    passed: list[PassedOver] = []
    pick = _picker(wanted, ordered, frozenset(chain))
    for view in ordered:
        place = _placed(view, _allowed(view, wanted) or pick(view), wanted, first=not chosen)
        if isinstance(place, Candidate):
            chosen.append(place)
        else:
            passed.append(place)
    return Route(tuple(chosen), tuple(passed))


def choose(wanted: Wanted, views: Sequence[View], chain: Sequence[Kind] = DEFAULT_CHAIN) -> Route:
    """Give the route of a request; raises the KalaError that tells why nothing can serve it."""
    route = explain(wanted, views, chain)
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


def _allowed(view: View, wanted: Wanted) -> PassedOver | None:
    """Keep to the configuration, and data at home."""
    identity = view.identity
    only_for = identity.preferences.only_for
    if only_for and wanted.task not in only_for:
        tasks = _listed(sorted(capability.value for capability in only_for))
        return PassedOver(view.name, "NOT_FOR_THIS", f"is configured for {tasks} only")
    refused = refusal_to_leave(
        identity,
        view.status.models,
        model=wanted.model,
        provider=wanted.provider,
        allow_remote=wanted.allow_remote,
    )
    return None if refused is None else PassedOver(view.name, REMOTE_NOT_ALLOWED, *refused)


class _Unnamed:
    """Picks each backend's own model: the configured one, else the one that is loaded."""

    def __init__(self, wanted: Wanted, ordered: list[View], chain: frozenset[Kind]) -> None:
        self._wanted = wanted
        self._chain = chain
        # An API key in somebody's environment is no reason to keep the demo from answering.
        self._has_others = any(
            not view.identity.is_demo and (wanted.allow_remote or not view.identity.is_remote)
            for view in ordered
        )

    def __call__(self, view: View) -> _Pick:
        identity = view.identity
        if identity.is_demo and self._has_others:
            return PassedOver(
                view.name, "DEMO_ONLY_BY_NAME", "is the embedded demo, which serves only when it is named"
            )
        is_named = self._wanted.provider == identity.kind.value
        if not (is_named or identity.is_demo or identity.kind in self._chain):
            return PassedOver(
                view.name, "NOT_IN_CHAIN", "is left out of the chain; it serves when it is named"
            )
        return _own_model(view, self._wanted)


@dataclass(frozen=True, slots=True)
class _Named:
    """Picks the backends that have a model of this id, or the one that the prefix names."""

    backend: str
    model: str
    wanted: Wanted

    def __call__(self, view: View) -> _Pick:
        if self.backend and view.name != self.backend:
            return PassedOver(view.name, "NOT_ASKED", f"is not {self.backend}, which was asked for")
        if self.model in UNNAMED_MODELS:
            return _own_model(view, self.wanted)
        found = find_model(view.status.models, self.model)
        if found is None and not view.is_answering and view.identity.kind is not Kind.PYTHIA:
            # It may have the model. The model in process is known by name, whether its files are there or not.
            return _not_answering(view)
        if found is None:
            return PassedOver(view.name, "MODEL_NOT_FOUND", f"has no model {self.model!r}")
        if not found.may(self.wanted.task):
            return _not_for(self.wanted.task, found, view)
        return found


def _not_for(task: Capability, model: ModelInfo, view: View) -> PassedOver:
    if task is Capability.CHAT:
        problem, reason = f"{model.id!r} on {view.name} is no chat model", "NOT_A_CHAT_MODEL"
    else:
        problem, reason = f"{model.id!r} on {view.name} is not for {task.value}", "NOT_CAPABLE"
    return PassedOver(view.name, reason, problem, InvalidArgumentError("model", problem))


def _picker(wanted: Wanted, ordered: list[View], chain: frozenset[Kind]) -> _Unnamed | _Named:
    model = wanted.model
    if wanted.is_unnamed:
        return _Unnamed(wanted, ordered, chain)
    # A model's own id may hold a slash ("qwen/qwen3-4b"), so a whole id goes before a prefix.
    if any(find_model(view.status.models, model) for view in ordered):
        return _Named("", model, wanted)
    prefix, slash, rest = model.partition("/")
    if slash and any(view.name == prefix for view in ordered):
        return _Named(prefix, rest, wanted)
    return _Named("", model, wanted)


def _own_model(view: View, wanted: Wanted) -> _Pick:
    task, configured = wanted.task, view.identity.model_for(wanted.task, wanted.needs)
    if configured and configured not in UNNAMED_MODELS:
        return _configured_model(view, configured, task)
    fitting = [model for model in view.status.models if model.may(task)]
    usable = [model for model in fitting if model.state is LoadState.LOADED]
    usable = usable or [model for model in fitting if model.state is LoadState.UNKNOWN]
    if not usable and view.identity.kind in LOADS_ON_DEMAND and len(fitting) == 1:
        usable = fitting
    if len(usable) == 1:
        return usable[0]
    if usable:
        return _several(view, usable)
    if view.status.state is not State.READY:
        return _not_answering(view)
    return _no_model(view, f"has no model for {task.value}")


def _configured_model(view: View, configured: str, task: Capability) -> _Pick:
    found = find_model(view.status.models, configured)
    if found is not None:
        return found if found.may(task) else _not_for(task, found, view)
    if not view.is_answering:
        return _not_answering(view)
    problem = f"its configured model {configured!r} is not there"
    return PassedOver(view.name, "MODEL_NOT_FOUND", problem, NotFoundError(f"{view.name}: {problem}"))


def _several(view: View, usable: list[ModelInfo]) -> PassedOver:
    names = _listed(model.id for model in usable)
    problem = f"several models are loaded in {view.name}: {names}; name one of them"
    error = InvalidArgumentError("model", problem, reason="SEVERAL_MODELS_LOADED")
    return PassedOver(view.name, "SEVERAL_MODELS_LOADED", problem, error)


def _placed(view: View, pick: _Pick, wanted: Wanted, *, first: bool) -> Candidate | PassedOver:
    if isinstance(pick, PassedOver):
        if pick.reason == "SEVERAL_MODELS_LOADED" and first and pick.error is not None:
            # Going on to a lesser backend here would be a silent fallback; the person can name the model instead.
            raise pick.error
        return pick
    if not view.is_answering:
        return _not_answering(view)
    missing = [capability for capability in wanted.needs if not pick.may(capability)]
    if missing:
        names = _listed(sorted(capability.value for capability in missing))
        problem = f"{pick.id!r} on {view.name} cannot do {names}"
        return PassedOver(view.name, "NOT_CAPABLE", problem, InvalidArgumentError("model", problem))
    context, least = pick.context_tokens, wanted.context_tokens
    if context is not None and least is not None and context < least:
        problem = f"{pick.id!r} on {view.name} is loaded with {context} tokens of context, and {least} are asked for"
        error = FailedPreconditionError(f"{problem}; load it with more", reason="CONTEXT_TOO_SMALL")
        return PassedOver(view.name, "CONTEXT_TOO_SMALL", problem, error)
    absent = sorted(set(wanted.adapters) - {adapter.name for adapter in pick.adapters})
    if absent:
        problem = f"{pick.id!r} on {view.name} has no {_listed(absent)} in service"
        error = FailedPreconditionError(f"{problem}; load it with LoadAdapter", reason="ADAPTER_NOT_LOADED")
        return PassedOver(view.name, "ADAPTER_NOT_LOADED", problem, error)
    is_configured = pick.id == view.identity.model_for(wanted.task, wanted.needs)
    how = "configured" if is_configured else pick.state.value
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


_ANY_CURE: Final = "start LM Studio, llama-server, mlx_lm.server or Ollama"
_CURES: Final = {
    Kind.MLX: "start mlx_lm.server, or set MLX_MODEL_PATH",
    Kind.LLAMACPP: "start llama-server, or set LLAMACPP_MODEL_PATH",
    Kind.LMSTUDIO: "start LM Studio's local server",
    Kind.OLLAMA: "start it with `ollama serve`",
    Kind.PYTHIA: "set KALA_INFERENCE_MODEL_SIZE",
    Kind.OPENAI: "set OPENAI_API_KEY for inference",
    Kind.ANTHROPIC: "set ANTHROPIC_API_KEY for inference",
}


def _nothing_serves(wanted: Wanted, route: Route, views: Sequence[View]) -> KalaError:
    asked = [passed for passed in route.passed_over if passed.reason not in _NOT_ASKED]
    if not asked:
        is_named = wanted.provider and wanted.provider != AUTO_MODEL
        provider = f" of kind {wanted.provider!r}" if is_named else ""
        cure = _CURES[Kind(wanted.provider)] if is_named else _ANY_CURE
        return UnavailableError(
            f"no model server{provider} is configured or found; {cure}", reason="NO_BACKEND"
        )
    errors = [passed.error for passed in asked if passed.error is not None]
    if errors:
        return errors[0]
    off = [passed for passed in asked if passed.reason not in {"MODEL_NOT_FOUND", REMOTE_NOT_ALLOWED}]
    if not wanted.is_unnamed and len(off) < len(asked):
        hint = f" ({_listed(f'{passed.backend} is away' for passed in off)})" if off else ""
        known = _listed(
            model.id
            for view in chain_order(views)
            if wanted.allow_remote or not view.identity.is_remote
            for model in view.status.models
            if model.may(wanted.task)
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
