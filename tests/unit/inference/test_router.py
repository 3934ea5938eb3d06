"""Which backend serves, as tables."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from kala.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    ModelNotAvailable,
    NotFoundError,
    UnavailableError,
)
from services.inference.backend import (
    Capability,
    Identity,
    Kind,
    LoadState,
    ModelInfo,
    Preferences,
    State,
    Status,
)
from services.inference.router import View, Wanted, choose, explain

LOADED, NOT_LOADED, UNKNOWN = LoadState.LOADED, LoadState.NOT_LOADED, LoadState.UNKNOWN
DEMO_MODEL = ModelInfo("kala-demo", NOT_LOADED, capabilities=frozenset({Capability.CHAT}), is_demo=True)


def view(
    kind: Kind,
    *models: ModelInfo | str,
    state: State = State.READY,
    name: str = "",
    default: str = "",
    found: bool = False,
    demo: bool = False,
) -> View:
    listed = tuple(ModelInfo(model, LOADED) if isinstance(model, str) else model for model in models)
    identity = Identity(name or kind.value, kind, default_model=default, is_discovered=found, is_demo=demo)
    detail = "" if state is State.READY else f"is {state.value}"
    return View(identity, Status(state, detail, listed, reason="" if state is State.READY else state.name))


MLX = view(Kind.MLX, "m-mlx")
LLAMA = view(Kind.LLAMACPP, "m-llama")
STUDIO = view(Kind.LMSTUDIO, "m-studio")
OLLAMA = view(Kind.OLLAMA, "m-ollama")
PYTHIA = view(Kind.PYTHIA, ModelInfo("pythia-1b", NOT_LOADED))
DEMO = view(Kind.PYTHIA, DEMO_MODEL, name="demo", default="kala-demo", demo=True)


def chosen(wanted: Wanted, *views: View) -> list[tuple[str, str]]:
    return [(candidate.backend, candidate.model.id) for candidate in choose(wanted, views).candidates]


@pytest.mark.parametrize("model", ["", "auto", "local-model"])
def test_an_unnamed_model_goes_down_the_chain_and_never_to_the_demo(model: str) -> None:
    chain = chosen(Wanted(model), DEMO, PYTHIA, OLLAMA, STUDIO, LLAMA, MLX)
    assert [backend for backend, _ in chain] == ["mlx", "llamacpp", "lmstudio", "ollama", "pythia"]


def test_the_choice_does_not_depend_on_the_order_of_the_backends() -> None:
    routes = {tuple(chosen(Wanted(), *views)) for views in itertools.permutations([MLX, LLAMA, STUDIO, DEMO])}
    assert len(routes) == 1


def test_the_demo_serves_when_there_was_never_anything_else() -> None:
    assert chosen(Wanted(), DEMO) == [("demo", "kala-demo")]


@pytest.mark.parametrize("state", [State.OFF, State.ERROR, State.NO_MODEL])
def test_the_demo_is_no_fallback_for_a_backend_that_is_away(state: State) -> None:
    with pytest.raises((UnavailableError, FailedPreconditionError)):
        choose(Wanted(), [view(Kind.LMSTUDIO, state=state), DEMO])


@pytest.mark.parametrize("wanted", [Wanted("kala-demo"), Wanted("demo/kala-demo"), Wanted("demo/auto")])
def test_the_demo_serves_by_name(wanted: Wanted) -> None:
    assert chosen(wanted, MLX, DEMO) == [("demo", "kala-demo")]


def test_naming_its_kind_reaches_the_demo_only_without_a_configured_pythia() -> None:
    assert chosen(Wanted(provider="pythia"), MLX, DEMO) == [("demo", "kala-demo")]
    assert chosen(Wanted(provider="pythia"), PYTHIA, DEMO) == [("pythia", "pythia-1b")]


def test_missing_weights_are_said_and_the_demo_does_not_stand_in() -> None:
    status = Status(
        State.ERROR,
        "the weights are not here; get them with `kala models pull x`",
        (ModelInfo("pythia-6.9b", NOT_LOADED),),
        reason="MODEL_NOT_AVAILABLE",
    )
    missing = View(Identity("pythia", Kind.PYTHIA, default_model="pythia-6.9b"), status)
    for wanted in (Wanted(), Wanted("pythia-6.9b"), Wanted(provider="pythia")):
        with pytest.raises(ModelNotAvailable, match="kala models pull"):
            choose(wanted, [missing, DEMO])


def test_missing_weights_do_not_stand_in_the_way_of_saying_that_a_model_is_unknown() -> None:
    missing = view(Kind.PYTHIA, ModelInfo("pythia-6.9b", NOT_LOADED), state=State.ERROR)
    with pytest.raises(NotFoundError, match="m-mlx"):
        choose(Wanted("gpt-4o"), [MLX, missing])


def test_a_named_model_goes_to_every_backend_that_has_it_in_chain_order() -> None:
    views = [view(Kind.LMSTUDIO, "shared", "x"), view(Kind.LLAMACPP, "shared"), MLX]
    assert chosen(Wanted("shared"), *views) == [("llamacpp", "shared"), ("lmstudio", "shared")]


def test_a_prefix_names_one_backend() -> None:
    views = [view(Kind.LMSTUDIO, "shared", "x"), view(Kind.LLAMACPP, "shared")]
    assert chosen(Wanted("lmstudio/shared"), *views) == [("lmstudio", "shared")]
    assert chosen(Wanted("llamacpp/local-model"), *views) == [("llamacpp", "shared")]


def test_a_slash_inside_an_id_is_not_a_prefix() -> None:
    views = [view(Kind.LMSTUDIO, "qwen/qwen3-4b"), view(Kind.OLLAMA, "mlx/thing"), MLX]
    assert chosen(Wanted("qwen/qwen3-4b"), *views) == [("lmstudio", "qwen/qwen3-4b")]
    assert chosen(Wanted("mlx/thing"), *views) == [("ollama", "mlx/thing")]


def test_an_alias_finds_its_model() -> None:
    assert chosen(Wanted("m:2"), view(Kind.LMSTUDIO, ModelInfo("m", LOADED, aliases=("m:2",)))) == [
        ("lmstudio", "m")
    ]


def test_an_unknown_model_is_not_found_and_the_known_ones_are_listed() -> None:
    with pytest.raises(NotFoundError, match="m-mlx, m-studio, kala-demo") as caught:
        choose(Wanted("gpt-4o"), [STUDIO, MLX, DEMO])
    assert caught.value.reason == "MODEL_NOT_FOUND"


def test_a_backend_that_is_away_is_mentioned_with_an_unknown_model() -> None:
    with pytest.raises(NotFoundError, match="lmstudio is away"):
        choose(Wanted("m-studio"), [view(Kind.LMSTUDIO, state=State.OFF), MLX])


def test_several_loaded_models_are_an_error_that_lists_them() -> None:
    with pytest.raises(InvalidArgumentError, match="a, b; name one") as caught:
        choose(Wanted("local-model"), [view(Kind.LMSTUDIO, "a", "b"), OLLAMA])
    assert caught.value.reason == "SEVERAL_MODELS_LOADED"


def test_several_models_further_down_do_not_stop_the_first_choice() -> None:
    assert chosen(Wanted(), MLX, view(Kind.LMSTUDIO, "a", "b")) == [("mlx", "m-mlx")]


def test_an_embedding_model_does_not_count_as_loaded_for_chat() -> None:
    embedder = ModelInfo("nomic", LOADED, capabilities=frozenset({Capability.EMBED}))
    assert chosen(Wanted(), view(Kind.LMSTUDIO, "chat", embedder)) == [("lmstudio", "chat")]
    with pytest.raises(InvalidArgumentError, match="no chat model"):
        choose(Wanted("nomic"), [view(Kind.LMSTUDIO, "chat", embedder)])


def test_the_configured_model_goes_before_the_loaded_ones() -> None:
    assert chosen(Wanted(), view(Kind.LMSTUDIO, "a", "b", default="b")) == [("lmstudio", "b")]


def test_a_configured_model_that_is_not_there_is_said() -> None:
    with pytest.raises(NotFoundError, match="'gone'"):
        choose(Wanted(), [view(Kind.LMSTUDIO, "a", default="gone")])


def test_nothing_loaded_is_a_failed_precondition_with_the_cure() -> None:
    status = Status(
        State.NO_MODEL, "no model is loaded; run `lms load <model>`", (), reason="NO_MODEL_LOADED"
    )
    with pytest.raises(FailedPreconditionError, match="lms load") as caught:
        choose(Wanted(), [View(Identity("lmstudio", Kind.LMSTUDIO), status)])
    assert caught.value.reason == "NO_MODEL_LOADED"


def test_ollama_may_be_asked_for_its_only_installed_model() -> None:
    idle = view(Kind.OLLAMA, ModelInfo("one", NOT_LOADED), state=State.NO_MODEL)
    assert chosen(Wanted(), idle) == [("ollama", "one")]
    several = view(
        Kind.OLLAMA, ModelInfo("one", NOT_LOADED), ModelInfo("two", NOT_LOADED), state=State.NO_MODEL
    )
    assert chosen(Wanted("two"), several) == [("ollama", "two")]
    with pytest.raises(FailedPreconditionError):
        choose(Wanted(), [several])


def test_an_image_passes_over_models_that_are_known_not_to_see() -> None:
    blind = view(Kind.MLX, ModelInfo("blind", LOADED, capabilities=frozenset({Capability.CHAT})))
    needs = frozenset({Capability.VISION})
    assert chosen(Wanted(needs=needs), blind, LLAMA) == [("llamacpp", "m-llama")]
    with pytest.raises(InvalidArgumentError, match="cannot do vision"):
        choose(Wanted(needs=needs), [blind])


def test_a_provider_restricts_the_chain() -> None:
    assert chosen(Wanted(provider="ollama"), MLX, OLLAMA) == [("ollama", "m-ollama")]
    with pytest.raises(InvalidArgumentError, match="choose one of mlx, llamacpp"):
        choose(Wanted(provider="gpt"), [MLX])
    with pytest.raises(UnavailableError, match="of kind 'lmstudio'"):
        choose(Wanted(provider="lmstudio"), [MLX])


def test_when_all_are_away_each_has_its_reason() -> None:
    with pytest.raises(UnavailableError, match="mlx: is off; lmstudio: is error") as caught:
        choose(Wanted(), [view(Kind.MLX, state=State.OFF), view(Kind.LMSTUDIO, state=State.ERROR)])
    assert caught.value.reason == "ALL_BACKENDS_FAILED"


@pytest.mark.parametrize(
    ("provider", "cure"),
    [("", "start LM Studio"), ("mlx", "MLX_MODEL_PATH"), ("openai", "set OPENAI_API_KEY for inference")],
)
def test_nothing_at_all_says_what_to_start(provider: str, cure: str) -> None:
    with pytest.raises(UnavailableError, match=cure):
        choose(Wanted(provider=provider), [])


def test_an_explanation_places_every_backend() -> None:
    route = explain(Wanted("m-studio"), [MLX, STUDIO, DEMO])
    assert [candidate.backend for candidate in route.candidates] == ["lmstudio"]
    assert {passed.backend: passed.reason for passed in route.passed_over} == {
        "mlx": "MODEL_NOT_FOUND",
        "demo": "MODEL_NOT_FOUND",
    }


def test_a_long_list_of_models_is_cut() -> None:
    with pytest.raises(NotFoundError, match="and 88 more"):
        choose(Wanted("x"), [view(Kind.LMSTUDIO, *(f"m{n}" for n in range(100)))])


def test_a_model_of_unknown_state_serves_when_nothing_is_known_to_be_loaded() -> None:
    assert chosen(Wanted(), view(Kind.LMSTUDIO, ModelInfo("a", UNKNOWN))) == [("lmstudio", "a")]


OPENAI = view(Kind.OPENAI, ModelInfo("gpt-4o", UNKNOWN), default="gpt-4o")


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(),
        Wanted("local-model"),
        Wanted("gpt-4o"),
        Wanted("openai/gpt-4o"),
        Wanted(provider="openai"),
        Wanted(task=Capability.EMBED),
    ],
)
def test_no_data_leaves_without_permission_however_it_is_asked_for(wanted: Wanted) -> None:
    off = view(Kind.LMSTUDIO, "gpt-4o", state=State.OFF)
    with pytest.raises((FailedPreconditionError, UnavailableError)):
        choose(wanted, [off, OPENAI])


@pytest.mark.parametrize("wanted", [Wanted("gpt-4o"), Wanted("openai/gpt-4o"), Wanted(provider="openai")])
def test_a_remote_backend_that_is_meant_says_what_allows_it(wanted: Wanted) -> None:
    with pytest.raises(FailedPreconditionError, match="name it as the provider") as caught:
        choose(wanted, [OPENAI])
    assert caught.value.reason == "REMOTE_NOT_ALLOWED"


def test_with_permission_the_remote_one_comes_after_every_local_one() -> None:
    assert chosen(Wanted(allow_remote=True), OPENAI, DEMO, PYTHIA, MLX) == [
        ("mlx", "m-mlx"),
        ("pythia", "pythia-1b"),
        ("openai", "gpt-4o"),
    ]


def test_a_local_models_own_id_is_no_leave_for_data_to_go() -> None:
    studio = view(Kind.LMSTUDIO, "openai/gpt-oss-20b")
    remote = view(Kind.OPENAI, "openai/gpt-oss-20b", "gpt-4o")
    assert chosen(Wanted("openai/gpt-oss-20b", allow_remote=True), studio, remote) == [
        ("lmstudio", "openai/gpt-oss-20b")
    ]
    assert chosen(Wanted("openai/gpt-4o", allow_remote=True), studio, remote) == [("openai", "gpt-4o")]


def test_a_key_of_a_remote_provider_does_not_keep_the_demo_from_answering() -> None:
    assert chosen(Wanted(), OPENAI, DEMO) == [("demo", "kala-demo")]
    assert chosen(Wanted(allow_remote=True), OPENAI, DEMO) == [("openai", "gpt-4o")]


def test_models_of_a_remote_backend_are_not_offered_to_who_may_not_use_it() -> None:
    with pytest.raises(NotFoundError, match=r"there are: m-mlx$"):
        choose(Wanted("nobody-has-this"), [MLX, OPENAI])


def test_the_chain_is_configurable_and_what_is_left_out_serves_by_name() -> None:
    chain = (Kind.OLLAMA, Kind.MLX)
    route = choose(Wanted(), [MLX, LLAMA, OLLAMA], chain)
    assert [candidate.backend for candidate in route.candidates] == ["ollama", "mlx"]
    assert [passed.reason for passed in route.passed_over] == ["NOT_IN_CHAIN"]
    for named in (Wanted("m-llama"), Wanted(provider="llamacpp"), Wanted("llamacpp/auto")):
        assert choose(named, [MLX, LLAMA, OLLAMA], chain).candidates[0].backend == "llamacpp"


def test_hosts_of_a_kind_come_in_their_configured_order() -> None:
    hosts = [View(Identity(f"llamacpp-{n}", Kind.LLAMACPP, number=n), LLAMA.status) for n in (10, 2, 3)]
    assert [backend for backend, _ in chosen(Wanted(), *hosts)] == ["llamacpp-2", "llamacpp-3", "llamacpp-10"]


def test_a_task_takes_only_models_made_for_it() -> None:
    embedder = ModelInfo("nomic", LOADED, capabilities=frozenset({Capability.EMBED}))
    chat = ModelInfo("chat", LOADED, capabilities=frozenset({Capability.CHAT}))
    both = view(Kind.LMSTUDIO, chat, embedder)
    assert chosen(Wanted(task=Capability.EMBED), both) == [("lmstudio", "nomic")]
    assert chosen(Wanted(), both) == [("lmstudio", "chat")]
    with pytest.raises(InvalidArgumentError, match="'chat' on lmstudio is not for embeddings"):
        choose(Wanted("chat", task=Capability.EMBED), [both])


def test_a_context_that_is_too_small_for_the_role_is_said_with_both_numbers() -> None:
    small = view(Kind.LMSTUDIO, ModelInfo("m", LOADED, context_tokens=4096))
    unknown = view(Kind.MLX, ModelInfo("m", LOADED))
    assert chosen(Wanted(context_tokens=16384), small, unknown) == [("mlx", "m")]
    with pytest.raises(
        FailedPreconditionError, match=r"4096 tokens .* 16384 are asked for; load it with more"
    ):
        choose(Wanted(context_tokens=16384), [small])


def with_preferences(seen: View, **preferences: object) -> View:
    return replace(seen, identity=replace(seen.identity, preferences=Preferences(**preferences)))


def test_images_go_to_the_configured_vision_model_and_texts_do_not() -> None:
    studio = view(Kind.LMSTUDIO, "text", "sees", default="text")
    studio = with_preferences(studio, models=((Capability.VISION, "sees"),))
    assert chosen(Wanted(needs=frozenset({Capability.VISION})), studio) == [("lmstudio", "sees")]
    assert chosen(Wanted(), studio) == [("lmstudio", "text")]


def test_the_model_for_chat_is_not_taken_to_embed() -> None:
    embedder = ModelInfo("nomic", LOADED, capabilities=frozenset({Capability.EMBED}))
    chat = ModelInfo("chat", LOADED, capabilities=frozenset({Capability.CHAT}))
    studio = view(Kind.LMSTUDIO, chat, embedder, default="chat")
    assert chosen(Wanted(task=Capability.EMBED), studio) == [("lmstudio", "nomic")]


def test_a_host_for_embeddings_comes_first_for_them_and_never_for_chat() -> None:
    embeds = view(Kind.LMSTUDIO, "nomic", name="lmstudio-embeddings")
    embeds = with_preferences(embeds, only_for=frozenset({Capability.EMBED}))
    embeds = replace(embeds, identity=replace(embeds.identity, number=0))
    both = view(Kind.LMSTUDIO, "nomic")
    assert chosen(Wanted(task=Capability.EMBED), both, embeds) == [
        ("lmstudio-embeddings", "nomic"),
        ("lmstudio", "nomic"),
    ]
    assert chosen(Wanted("nomic"), both, embeds) == [("lmstudio", "nomic")]
    with pytest.raises(UnavailableError):
        choose(Wanted(), [embeds])


def test_a_server_that_is_being_started_is_passed_over_and_waited_for_in_words() -> None:
    model = ModelInfo("tiny", LoadState.LOADING)
    status = Status(State.LOADING, "is being started with tiny; wait for it", (model,), "SERVER_STARTING")
    starting = View(Identity("mlx", Kind.MLX, default_model="tiny"), status)
    for wanted in (Wanted(), Wanted("tiny"), Wanted(provider="mlx")):
        with pytest.raises(UnavailableError, match="wait for it"):
            choose(wanted, [starting])
    assert chosen(Wanted(), starting, LLAMA) == [("llamacpp", "m-llama")]
