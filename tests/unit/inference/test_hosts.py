"""Which hosts the settings name."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.inference.backend import Capability, Identity, Kind
from services.inference.base_url import parse_base_url
from services.inference.config import InferenceSettings
from services.inference.hosts import hosts_of, other_places


def named(hosts: list[Identity]) -> list[tuple[str, str, float]]:
    return [(host.name, host.url, host.weight) for host in hosts]


def test_several_hosts_are_numbered_in_their_order_and_weighted() -> None:
    settings = InferenceSettings(
        llamacpp_url="http://a:8080/v1", llamacpp_urls=("http://b:9000 weight=2", "c", "http://a:8080")
    )
    assert named(hosts_of(settings, Kind.LLAMACPP)) == [
        ("llamacpp", "http://a:8080", 1.0),
        ("llamacpp-2", "http://b:9000", 2.0),
        ("llamacpp-3", "http://c:8080", 1.0),
    ]
    assert hosts_of(settings, Kind.MLX) == []


@pytest.mark.parametrize(
    ("enabled", "expected"),
    [(None, []), (True, [("mlx", "http://127.0.0.1:8080", 1.0)]), (False, [])],
)
def test_a_kind_that_is_switched_on_is_expected_where_it_usually_is(
    enabled: bool | None, expected: list[tuple[str, str, float]]
) -> None:
    assert named(hosts_of(InferenceSettings(mlx_enabled=enabled), Kind.MLX)) == expected


def test_a_switched_off_kind_has_no_host_whatever_is_set() -> None:
    settings = InferenceSettings(
        lmstudio_enabled=False, lmstudio_url="http://a:1", lmstudio_embedding_url="http://b:1"
    )
    assert hosts_of(settings, Kind.LMSTUDIO) == []


def test_the_seeds_template_switched_on_starts_the_model_and_keeps_the_url() -> None:
    settings = InferenceSettings(
        llamacpp_enabled=True, llamacpp_model_path=Path("models/x.gguf"), llamacpp_url="http://localhost:8080"
    )
    assert named(hosts_of(settings, Kind.LLAMACPP)) == [
        ("llamacpp", "", 1.0),
        ("llamacpp-2", "http://localhost:8080", 1.0),
    ]


def test_an_embedding_url_of_its_own_serves_embeddings_only() -> None:
    settings = InferenceSettings(
        lmstudio_url="http://a:1234/v1",
        lmstudio_embedding_url="http://b:1234/v1/embeddings",
        lmstudio_embedding_model="nomic",
    )
    embeds, chats = hosts_of(settings, Kind.LMSTUDIO)
    assert (embeds.url, embeds.preferences.only_for) == ("http://b:1234", {Capability.EMBED})
    assert (chats.url, chats.preferences.only_for) == ("http://a:1234", frozenset())
    assert embeds.model_for(Capability.EMBED) == chats.model_for(Capability.EMBED) == "nomic"


def test_an_embedding_url_of_the_same_server_is_no_second_one() -> None:
    settings = InferenceSettings(
        lmstudio_url="http://a:1234/v1", lmstudio_embedding_url="http://a:1234/v1/embeddings"
    )
    assert len(hosts_of(settings, Kind.LMSTUDIO)) == 1


@pytest.mark.parametrize(
    ("url", "has_key", "hosts"),
    [
        ("http://host.docker.internal:1234", False, ["localhost", "127.0.0.1"]),
        ("http://localhost:1234", True, ["127.0.0.1", "host.docker.internal"]),
        ("http://[::1]:1234", False, ["localhost", "127.0.0.1", "host.docker.internal"]),
        # Prompts for another machine would go to whoever answers under this machine's names.
        ("http://192.168.1.65:1234", False, []),
        ("http://192.168.1.65:1234", True, []),
        ("http://gpu1:1234", False, []),
        ("http://127.0.0.2:1234", False, []),
        ("https://localhost:1234", False, []),
        ("https://models.example", False, []),
    ],
)
def test_where_else_a_server_may_be(url: str, has_key: bool, hosts: list[str]) -> None:
    base = parse_base_url(url)
    places = other_places(InferenceSettings(), base, has_key=has_key)
    assert [place.host for place in places] == hosts
    assert {place.port for place in places} <= {base.port}


def test_a_key_goes_to_no_name_but_this_machines() -> None:
    settings = InferenceSettings(fallback_hosts=("gpu1", "127.0.0.1"))
    places = other_places(settings, parse_base_url("http://localhost:1234"), has_key=True)
    assert [place.host for place in places] == ["127.0.0.1"]
