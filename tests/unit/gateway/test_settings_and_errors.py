"""Settings that would open the edge by mistake are refused; every error has its place in the table."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.chat_action import build_action, request_text
from gateway.chat_schema import parse_chat_request
from gateway.config import SECTION, GatewaySettings
from gateway.errors import google_body, http_status, openai_body
from gateway.identity import Pseudonyms
from gateway.keys import make_key
from kala import errors
from services.common.settings import settings_table

README = Path(__file__).parents[3] / "gateway" / "README.md"


def test_every_setting_has_a_working_default() -> None:
    assert GatewaySettings().port == 8800


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"host": "0.0.0.0"}, "http_cert_file"),
        ({"host": "kala.example"}, "http_cert_file"),
        ({"http_cert_file": "a.pem"}, "together"),
        ({"tls_cert_file": "a.pem"}, "all three"),
        ({"ethics_address": "nonsense"}, "ethics_address"),
        ({"key_cache_seconds": 5}, "less than or equal to 4"),
    ],
)
def test_an_unsafe_setting_stops_the_process(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        GatewaySettings(**fields)


def test_beyond_this_machine_with_certificates_is_fine() -> None:
    settings = GatewaySettings(host="0.0.0.0", http_cert_file=Path("a"), http_key_file=Path("b"))
    assert settings.scheme == "https"


def test_the_readme_lists_the_settings_as_they_are() -> None:
    table = settings_table(GatewaySettings, section=SECTION).replace(str(Path.home()), "~")
    assert table in README.read_text()


@pytest.mark.parametrize(
    "kind",
    [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.KalaError)],
)
def test_every_error_has_a_status_and_openais_shape(kind: type[errors.KalaError]) -> None:
    error = kind("field", "is wrong") if issubclass(kind, errors.InvalidArgumentError) else kind("is wrong")
    assert 400 <= http_status(error) < 600
    body = openai_body(error)["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert body["code"] == body["code"].lower()
    assert google_body(error)["error"]["code"] == http_status(error)


def test_a_pseudonym_depends_on_person_tenant_and_pepper() -> None:
    def key(tenant: str) -> object:
        return make_key(
            display_name="a",
            scopes=[1],
            tenant=tenant,
            now=__import__("datetime").datetime.now(),
            randomness=lambda n: b"i" * n,
        ).key

    one, two = Pseudonyms(b"p" * 32), Pseudonyms(b"q" * 32)
    names = {
        pseudonyms.caller(key(tenant), person).subject
        for pseudonyms in (one, two)
        for tenant in ("a", "b")
        for person in ("", "ann", "bob")
    }
    assert len(names) == 12
    assert one.caller(key("a"), "ann").actor == one.caller(key("a"), "bob").actor
    assert all(len(name) == 64 for name in names)
    with pytest.raises(errors.FailedPreconditionError):
        Pseudonyms(b"short")


def test_the_request_text_is_the_last_user_text_with_its_tail() -> None:
    request = parse_chat_request(
        {"messages": [{"role": "user", "content": "first"}, {"role": "user", "content": "é" * 40_000 + "end"},
                      {"role": "assistant", "content": "x"}]}
    )  # fmt: skip
    text = request_text(build_action(request))
    assert text.endswith("end")
    assert len(text.encode()) <= 64 * 1024


def test_a_schema_that_is_too_large_is_named() -> None:
    parameters = {"type": "object", "description": "x" * 70_000}
    request = parse_chat_request(
        {"messages": [{"role": "user", "content": "x"}],
         "tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}]}
    )  # fmt: skip
    with pytest.raises(
        errors.InvalidArgumentError, match=r"tools\[0\].function.parameters: must have at most 65536"
    ):
        build_action(request)
