"""What holds of every route, whatever backends there are and whatever is asked for."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from kala.errors import KalaError
from services.inference.backend import Capability, Identity, Kind, LoadState, ModelInfo, State, Status
from services.inference.router import Route, View, Wanted, choose, explain

NAMES = ["a", "b", "openai/a", "mlx/a"]

MODELS = st.builds(
    ModelInfo,
    st.sampled_from(NAMES),
    st.sampled_from(LoadState),
    aliases=st.lists(st.sampled_from(NAMES), max_size=1).map(tuple),
    context_tokens=st.none() | st.integers(1, 9),
    capabilities=st.none() | st.frozensets(st.sampled_from(Capability)),
)


@st.composite
def views(draw: st.DrawFn) -> list[View]:
    seen: list[View] = []
    for kind in draw(st.lists(st.sampled_from(Kind), max_size=6)):
        number = 1 + sum(view.identity.kind is kind for view in seen)
        identity = Identity(
            kind.value if number == 1 else f"{kind.value}-{number}",
            kind,
            default_model=draw(st.sampled_from(["", *NAMES])),
            is_discovered=draw(st.booleans()),
            is_demo=kind is Kind.PYTHIA and draw(st.booleans()),
            number=number,
        )
        models = tuple(draw(st.lists(MODELS, max_size=3, unique_by=lambda model: model.id)))
        state = draw(st.sampled_from(State))
        seen.append(View(identity, Status(state, state.value, models, reason=state.name)))
    return seen


WANTED = st.builds(
    Wanted,
    st.sampled_from(["", "auto", "local-model", *NAMES, "ollama/a", "gone"]),
    st.sampled_from(["", "auto", *(kind.value for kind in Kind)]),
    st.frozensets(st.sampled_from([Capability.VISION, Capability.TOOLS])),
    st.sampled_from([Capability.CHAT, Capability.EMBED]),
    allow_remote=st.booleans(),
    context_tokens=st.none() | st.integers(1, 9),
)
CHAINS = st.lists(st.sampled_from(Kind), unique=True, min_size=1).map(tuple)


def decided(wanted: Wanted, seen: list[View], chain: tuple[Kind, ...]) -> Route | str:
    try:
        return choose(wanted, seen, chain)
    except KalaError as error:
        return f"{type(error).__name__} {error.reason}: {error.message}"


@given(wanted=WANTED, seen=views(), chain=CHAINS, data=st.data())
def test_equal_input_in_any_order_gives_the_same_decision(
    wanted: Wanted, seen: list[View], chain: tuple[Kind, ...], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(seen))
    assert decided(wanted, seen, chain) == decided(wanted, shuffled, chain)


@given(wanted=WANTED, seen=views(), chain=CHAINS)
def test_nothing_goes_where_it_must_not(wanted: Wanted, seen: list[View], chain: tuple[Kind, ...]) -> None:
    route = decided(wanted, seen, chain)
    if isinstance(route, str):
        return
    by_name = {view.name: view for view in seen}
    for candidate in route.candidates:
        view = by_name[candidate.backend]
        assert wanted.allow_remote or not view.identity.is_remote
        assert wanted.provider in {"", "auto", view.identity.kind.value}
        assert view.is_answering
        assert candidate.model in view.status.models
        assert candidate.model.may(wanted.task)
        assert all(candidate.model.may(need) for need in wanted.needs)


@given(wanted=WANTED, seen=views(), chain=CHAINS)
def test_permission_for_data_to_leave_only_ever_adds_remote_backends(
    wanted: Wanted, seen: list[View], chain: tuple[Kind, ...]
) -> None:
    here = decided(replace(wanted, allow_remote=False), seen, chain)
    anywhere = decided(replace(wanted, allow_remote=True), seen, chain)
    if isinstance(here, str) or isinstance(anywhere, str):
        return
    remote = {view.name for view in seen if view.identity.is_remote}
    demos = {view.name for view in seen if view.identity.is_demo}
    local = [one for one in anywhere.candidates if one.backend not in remote]
    # The demo stands back where a remote backend may serve.
    assert local == [one for one in here.candidates if one.backend not in demos or one in local]


@given(wanted=WANTED, seen=views(), chain=CHAINS)
def test_every_backend_of_the_kind_has_its_place_or_its_reason(
    wanted: Wanted, seen: list[View], chain: tuple[Kind, ...]
) -> None:
    try:
        route = explain(wanted, seen, chain)
    except KalaError:
        return
    placed = [one.backend for one in route.candidates] + [one.backend for one in route.passed_over]
    meant = [view.name for view in seen if wanted.provider in {"", "auto", view.identity.kind.value}]
    assert sorted(placed) == sorted(meant)
    assert all(one.reason and one.detail for one in route.passed_over)
