"""Changed settings in the inference process: over file and environment, under flags, all or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kala.errors import FailedPreconditionError, InvalidArgumentError
from services.common.peers import Peer
from services.common.settings import load_with_sources
from services.inference.__main__ import follow_settings, make_registry
from services.inference.config import SECTION, InferenceSettings
from services.inference.live_settings import MUTABLE, LiveSettings
from services.inference.setting_rpc import APPLY_SETTINGS, may_call

ONE, OTHER = "http://127.0.0.1:1234", "http://10.0.0.9:1234"


def live(settings: InferenceSettings, **sources: Any) -> LiveSettings:
    return LiveSettings(settings, sources, lambda _: None)


def test_layers_say_where_a_setting_comes_from(tmp_path: Path) -> None:
    (tmp_path / "kala.yaml").write_text(
        "inference:\n  mlx_url: http://127.0.0.1:1\n  ollama_url: http://127.0.0.1:2\n"
    )
    settings, sources = load_with_sources(
        InferenceSettings,
        section=SECTION,
        argv=["--lmstudio-url", ONE],
        environ={"OLLAMA_HOST": "http://127.0.0.1:3"},
        cwd=tmp_path,
    )
    assert sources == {"mlx_url": "file", "ollama_url": "environment", "lmstudio_url": "flag"}
    shown = {one.name: one for one in live(settings, **sources).effective()}
    assert tuple(shown) == MUTABLE
    assert (shown["ollama_url"].value_json, shown["ollama_url"].source) == (
        '"http://127.0.0.1:3"',
        "environment",
    )
    assert shown["chain"].source == "default"


def test_changes_stand_over_the_environment_and_under_flags() -> None:
    settings = live(InferenceSettings(lmstudio_url=ONE), lmstudio_url="environment", mlx_url="flag")
    settings.apply(1, {"lmstudio_url": json.dumps(OTHER)})
    assert settings.settings.lmstudio_url == OTHER
    with pytest.raises(FailedPreconditionError, match="flag --mlx-url"):
        settings.apply(2, {"mlx_url": json.dumps(OTHER)})
    assert (settings.revision, settings.settings.lmstudio_url) == (1, OTHER)
    settings.apply(3, {})
    assert settings.settings.lmstudio_url == ONE


def test_an_older_revision_is_passed_over() -> None:
    settings = live(InferenceSettings())
    settings.apply(2, {"lmstudio_url": json.dumps(OTHER)})
    settings.apply(2, {})
    settings.apply(1, {"lmstudio_url": json.dumps(ONE)})
    assert settings.settings.lmstudio_url == OTHER


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("ethics_public_keys", "[]", "cannot change"),
        ("chain", "mlx", "not valid JSON"),
        ("chain", "[" * 100_000, "more than 65536"),
        ("chain", "[" * 60_000, "not valid JSON"),
        ("lmstudio_urls", '["ftp://x"]', "lmstudio_urls"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(name: str, text: str, says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        live(InferenceSettings()).apply(1, {name: text})


async def test_servers_that_stay_are_kept_and_those_that_leave_are_not_chosen() -> None:
    settings = InferenceSettings(lmstudio_url=ONE, ollama_url="http://127.0.0.1:11434", embedded=False)
    registry = make_registry(settings)
    kept, left = registry.get("lmstudio"), registry.get("ollama")
    assert kept is not None
    assert left is not None
    changed = settings.model_copy(update={"ollama_url": None, "mlx_url": OTHER, "chain": ("mlx", "lmstudio")})
    follow_settings(changed, registry)
    assert registry.get("lmstudio") is kept
    assert [entry.backend.identity.name for entry in registry.entries()] == ["mlx", "lmstudio"]
    moved = changed.model_copy(update={"lmstudio_url": OTHER})
    follow_settings(moved, registry)
    now = registry.get("lmstudio")
    assert now is not None
    assert now.backend.identity.url == OTHER
    await registry.aclose()


@pytest.mark.parametrize(("part", "may"), [("gateway", True), ("ethics", False), ("tools", False)])
def test_only_the_gateway_changes_settings(part: str, may: bool) -> None:
    assert may_call(APPLY_SETTINGS, Peer(part)) is may
    assert may_call("/kala.inference.v1.InferenceService/Chat", Peer(part))
