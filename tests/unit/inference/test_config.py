"""Settings and the backends made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

import services.inference
from kala.errors import InvalidArgumentError
from services.common.settings import load, settings_table
from services.inference.backend import Capability, Kind
from services.inference.backends.make import ServerFactory, pythia_backends
from services.inference.chat import Sampling
from services.inference.config import SECTION, InferenceSettings
from services.inference.roles import Role


def settings(tmp_path: Path, **environ: str) -> InferenceSettings:
    return load(InferenceSettings, section=SECTION, argv=[], environ=environ, cwd=tmp_path)


def test_the_readme_lists_the_settings_as_they_are() -> None:
    readme = Path(services.inference.__file__).parent / "README.md"
    assert settings_table(InferenceSettings, section=SECTION) in readme.read_text()


async def made(given: InferenceSettings) -> dict[str, tuple[str, str]]:
    backends = ServerFactory(given).configured()
    identities = [backend.identity for backend in backends]
    for backend in backends:
        await backend.aclose()
    return {identity.name: (identity.url, identity.default_model) for identity in identities}


@pytest.mark.parametrize(
    "name", ["LM_STUDIO_BASE_URL", "LMSTUDIO_API_URL", "LMSTUDIO_HOST", "KALA_INFERENCE_LMSTUDIO_URL"]
)
async def test_the_seeds_names_for_lm_studio_are_known(tmp_path: Path, name: str) -> None:
    given = settings(tmp_path, **{name: "http://localhost:1234/v1", "LM_STUDIO_MODEL": "qwen"})
    assert await made(given) == {"lmstudio": ("http://localhost:1234", "qwen")}


async def test_local_model_is_no_model_name(tmp_path: Path) -> None:
    given = settings(tmp_path, LMSTUDIO_HOST="http://localhost:1234", LMSTUDIO_MODEL="local-model")
    assert await made(given) == {"lmstudio": ("http://localhost:1234", "")}


async def test_the_other_servers_names_are_known(tmp_path: Path) -> None:
    given = settings(
        tmp_path,
        LLAMACPP_SERVER_URL="http://localhost:8080",
        OLLAMA_HOST="0.0.0.0",
        OLLAMA_MODEL="llama3",
        MLX_ENABLED="true",
    )
    assert await made(given) == {
        "mlx": ("http://127.0.0.1:8080", ""),
        "llamacpp": ("http://localhost:8080", ""),
        "ollama": ("http://127.0.0.1:11434", "llama3"),
    }


@pytest.mark.parametrize("name", ["USE_LM_STUDIO", "LMSTUDIO_ENABLED"])
async def test_a_switched_off_kind_is_neither_used_nor_looked_for(tmp_path: Path, name: str) -> None:
    given = settings(tmp_path, LMSTUDIO_HOST="http://localhost:1234", **{name: "0"})
    assert await made(given) == {}
    assert Kind.LMSTUDIO not in ServerFactory(given).open_kinds()


def test_a_configured_kind_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    given = settings(tmp_path, LMSTUDIO_HOST="http://other:1234")
    assert ServerFactory(given).open_kinds() == {Kind.MLX, Kind.LLAMACPP, Kind.OLLAMA}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LLM_PROVIDER", "gpt"),
        ("LMSTUDIO_HOST", "http://169.254.169.254/v1"),
        ("OLLAMA_HOST", "ftp://x"),
        ("KALA_INFERENCE_MODEL_SIZE", "7b"),
        ("KALA_INFERENCE_MAX_ACT_SECONDS", "901"),
        ("KALA_INFERENCE_NO_SUCH", "1"),
    ],
)
def test_a_wrong_setting_stops_the_process(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(InvalidArgumentError):
        settings(tmp_path, **{name: value})


async def test_pythia_is_configured_by_size_and_the_demo_by_default(tmp_path: Path) -> None:
    given = settings(tmp_path, KALA_INFERENCE_MODEL_SIZE="6.9b", KALA_INFERENCE_MODELS_DIR=str(tmp_path))
    backends = pythia_backends(given)
    assert [(b.identity.name, b.identity.default_model) for b in backends] == [
        ("pythia", "pythia-6.9b"),
        ("demo", "kala-demo"),
    ]
    status = await backends[0].look()
    assert status.reason == "MODEL_NOT_AVAILABLE"
    for backend in backends:
        await backend.aclose()


def test_the_seeds_names_for_roles_and_contexts_are_known(tmp_path: Path) -> None:
    given = settings(
        tmp_path,
        LMSTUDIO_MODEL_RANK="qwen/qwen3-4b-2507",
        LMSTUDIO_MODEL_SIGMA="sigma-8b",
        LMSTUDIO_TEMPERATURE="0.0",
        LMSTUDIO_TOP_P="0.9",
        LMSTUDIO_SEED="42",
        LMSTUDIO_MAX_TOKENS="2048",
        LMSTUDIO_CONTEXT_LENGTH="32768",
        LMSTUDIO_CONTEXT_LENGTH_QWEN3_4B_2507="16384",
        LMSTUDIO_VISION_MODEL="qwen-vl",
        LMSTUDIO_EMBEDDING_MODEL="nomic",
    )
    assert {name: (role.model, role.provider) for name, role in given.routing.roles.items()} == {
        "rank": ("qwen/qwen3-4b-2507", "lmstudio"),
        "sigma": ("sigma-8b", "lmstudio"),
    }
    preferences = given.lmstudio_preferences
    assert preferences.sampling == Sampling(temperature=0.0, top_p=0.9, seed=42, max_output_tokens=2048)
    assert dict(preferences.models) == {Capability.VISION: "qwen-vl", Capability.EMBED: "nomic"}
    assert preferences.contexts.of("qwen/qwen3-4b-2507") == 16384
    assert preferences.contexts.of("another") == 32768


def test_kala_yaml_sets_roles_and_the_chain(tmp_path: Path) -> None:
    (tmp_path / "kala.yaml").write_text(
        "inference:\n"
        "  chain: [ollama, mlx]\n"
        "  roles:\n"
        "    rank: {model: qwen3-4b, temperature: 0, seed: 42, context_tokens: 16384}\n"
        "    code: {provider: llamacpp}\n"
    )
    routing = settings(tmp_path).routing
    assert routing.chain == (Kind.OLLAMA, Kind.MLX)
    assert routing.role("RANK") == Role("qwen3-4b", "", Sampling(temperature=0, seed=42), 16384)
    assert routing.role("code").provider == "llamacpp"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("chain: [mlx, mlx]", "each kind once"),
        ("chain: [vllm]", "'mlx'"),
        ("roles: {rank: {temprature: 0}}", "not permitted"),
        ("roles: {rank: {temperature: 3}}", "less than or equal to 2"),
        ("roles: {'a b': {model: x}}", "a-z 0-9"),
        (
            "{lmstudio_max_context: 4096, roles: {r: {provider: lmstudio, context_tokens: 8192}}}",
            "set to 4096",
        ),
        ("llamacpp_urls: ['http://a:1 weight=0']", "weight=N"),
        ("llamacpp_urls: ['http://a:1 heavy']", "weight=N"),
        ("llamacpp_urls: ['http://169.254.169.254']", "link-local"),
        ("fallback_hosts: ['169.254.169.254']", "link-local"),
        ("lmstudio_embedding_url: 'ftp://x'", "http"),
    ],
)
def test_a_wrong_routing_setting_stops_the_process(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "kala.yaml").write_text(f"inference:\n  {text}\n")
    with pytest.raises(InvalidArgumentError, match=problem):
        settings(tmp_path)


def test_a_role_that_is_set_twice_is_said(tmp_path: Path) -> None:
    (tmp_path / "kala.yaml").write_text("inference:\n  roles: {rank: {model: x}}\n")
    with pytest.raises(InvalidArgumentError, match="keep one"):
        settings(tmp_path, LMSTUDIO_MODEL_RANK="y")
