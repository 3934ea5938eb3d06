"""Settings: five layers in order, strict about every name, silent about every value."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, SecretStr, ValidationError

from kala.errors import InvalidArgumentError
from services.common.settings import (
    GrpcServerSettings,
    ServiceSettings,
    aliases,
    family,
    load,
    settings_table,
)
from services.common.settings_sources import is_service_link


class Nested(ServiceSettings):
    depth: int = 0


class Settings(GrpcServerSettings):
    """What a service's config.py looks like."""

    address: str = "127.0.0.1:50051"
    allowed_peers: tuple[str, ...] = ("gateway",)
    model: Annotated[str, Field(description="The model.")] = "default"
    timeout_seconds: Annotated[float, Field(gt=0)] = 1.0
    is_strict: bool = True
    limit: int | None = 7
    url: Annotated[str | None, aliases("LM_STUDIO_BASE_URL", "LMSTUDIO_API_URL", "LMSTUDIO_HOST")] = None
    api_key: Annotated[SecretStr | None, aliases("OPENAI_API_KEY")] = None
    weights: dict[str, int] = Field(default_factory=dict)
    nested: Nested = Nested()
    models: Annotated[dict[str, str], family("LMSTUDIO_MODEL_")] = Field(default_factory=dict)
    port: int = 1


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    return tmp_path


def loaded(
    cwd: Path, *argv: str, environ: dict[str, str] | None = None, yaml: str | None = None, env_file: str = ""
) -> Settings:
    if yaml is not None:
        (cwd / "kala.yaml").write_text(yaml)
    if env_file:
        (cwd / ".env").write_text(env_file)
    return load(Settings, section="ethics", argv=argv, environ=environ or {}, cwd=cwd)


def refusal(cwd: Path, *argv: str, **layers: object) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as caught:
        loaded(cwd, *argv, **layers)
    assert "\n" not in caught.value.message
    return caught.value


def test_each_layer_wins_over_the_one_before_it(cwd: Path) -> None:
    def model(*layers: str) -> str:
        for name in ("kala.yaml", ".env"):
            (cwd / name).unlink(missing_ok=True)
        return loaded(
            cwd,
            *(["--model", "flag"] if "flag" in layers else []),
            yaml="ethics:\n  model: yaml\n" if "yaml" in layers else None,
            env_file="KALA_ETHICS_MODEL=file\n" if "file" in layers else "",
            environ={"KALA_ETHICS_MODEL": "environment"} if "environment" in layers else {},
        ).model

    order = ["default", "yaml", "file", "environment", "flag"]
    for top in range(len(order)):
        assert model(*order[: top + 1]) == order[top]


def test_nothing_is_read_behind_the_callers_back(cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", "stray")
    monkeypatch.setenv("KALA_ETHICS_MODEL", "stray")
    assert loaded(cwd).model == "default"
    assert Settings().model == "default"


def test_settings_cannot_change(cwd: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        loaded(cwd).model = "other"


UNKNOWN = {
    "environment": ({"environ": {"KALA_ETHICS_MODLE": "x"}}, "KALA_ETHICS_MODLE", "KALA_ETHICS_MODEL?"),
    "env-file": ({"env_file": "KALA_ETHICS_MODLE=x\n"}, "KALA_ETHICS_MODLE in .env", "KALA_ETHICS_MODEL?"),
    "yaml": ({"yaml": "ethics: {modle: x}"}, "kala.yaml: ethics.modle", "model?"),
    "yaml-section": ({"yaml": "ethcis: {model: x}"}, "kala.yaml: ethcis", "ethics?"),
}


@pytest.mark.parametrize(("layers", "origin", "hint"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_name_stops_the_process_and_hints_at_the_right_one(
    cwd: Path, layers: dict[str, object], origin: str, hint: str
) -> None:
    error = refusal(cwd, **layers)
    assert error.field == origin
    assert error.problem.endswith(f"did you mean {hint}")


def test_an_unknown_flag_stops_the_process(cwd: Path) -> None:
    assert refusal(cwd, "--modle", "x").field == "--modle"
    assert refusal(cwd, "model").field == "model"


def test_a_name_like_no_other_gets_no_hint(cwd: Path) -> None:
    assert "did you mean" not in refusal(cwd, environ={"KALA_ETHICS_QQQQQQ": "x"}).message


def test_other_sections_are_other_processes_business(cwd: Path) -> None:
    settings = loaded(
        cwd,
        environ={"KALA_AUDIT_ANYTHING": "x", "KALA_ETHICSX": "y"},
        yaml="audit: {anything: 1}\nethics:\n",
        env_file="KALA_TOOLS_THING=1\nUNRELATED=2\n",
    )
    assert settings == Settings()


@pytest.mark.parametrize(
    ("yaml", "problem"),
    [
        ("ethics: [", "not valid YAML"),
        ("- a", "one mapping per section"),
        ("ethics: 3", "mapping of settings"),
        ("1: 2", "not a setting of kala.yaml"),
        ("ethics: {}\naudit: {}\nethics: {}", "kala.yaml:3: repeats a key"),
        ("ethics:\n  name: a\n  name: b", "kala.yaml:3: repeats a key"),
    ],
)
def test_a_file_of_another_shape_is_refused(cwd: Path, yaml: str, problem: str) -> None:
    assert problem in refusal(cwd, yaml=yaml).message


@pytest.mark.parametrize("name", ["kala.yaml", ".env"])
def test_a_file_that_is_not_text_is_named(cwd: Path, name: str) -> None:
    (cwd / name).write_bytes(b"\xff\xfe\x00")
    assert refusal(cwd).field == str(cwd / name)


def test_an_empty_file_is_no_settings(cwd: Path) -> None:
    assert loaded(cwd, yaml="") == Settings()


def test_kala_config_names_another_file_which_must_exist(cwd: Path) -> None:
    (cwd / "other.yaml").write_text("ethics: {model: other}")
    assert loaded(cwd, environ={"KALA_CONFIG": "other.yaml"}, yaml="ethics: {model: x}").model == "other"
    assert refusal(cwd, environ={"KALA_CONFIG": "gone.yaml"}).field == "KALA_CONFIG"


def test_an_alias_sets_its_field(cwd: Path) -> None:
    assert loaded(cwd, environ={"LMSTUDIO_HOST": "http://a"}).url == "http://a"
    assert loaded(cwd, env_file="LM_STUDIO_BASE_URL=http://b\n").url == "http://b"


@pytest.mark.parametrize("other", ["LMSTUDIO_HOST", "KALA_ETHICS_URL"])
def test_two_names_of_one_setting_with_different_values_are_both_named(cwd: Path, other: str) -> None:
    error = refusal(cwd, environ={"LMSTUDIO_API_URL": "http://a", other: "http://b"})
    assert {"LMSTUDIO_API_URL", other} <= set(error.message.replace(",", " ").replace(":", " ").split())
    assert "http://" not in error.message


def test_two_names_with_the_same_value_agree(cwd: Path) -> None:
    assert (
        loaded(cwd, environ={"LMSTUDIO_API_URL": "http://a", "LMSTUDIO_HOST": "http://a"}).url == "http://a"
    )


def test_a_nearer_layer_overrules_an_alias_of_a_farther_one(cwd: Path) -> None:
    settings = loaded(
        cwd, env_file="LMSTUDIO_HOST=http://file\n", environ={"KALA_ETHICS_URL": "http://environment"}
    )
    assert settings.url == "http://environment"


@pytest.mark.parametrize("argv", [("--api-key", "hunter2"), ("--api-key=hunter2",)])
def test_a_secret_is_never_a_flag(cwd: Path, argv: tuple[str, ...]) -> None:
    error = refusal(cwd, *argv)
    assert error.field == "--api-key"
    assert "KALA_ETHICS_API_KEY" in error.message
    assert "hunter2" not in error.message


def test_a_secret_is_not_shown(cwd: Path) -> None:
    settings = loaded(cwd, environ={"OPENAI_API_KEY": "hunter2"})
    assert "hunter2" not in repr(settings)
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "hunter2"


FLAGS = {
    "two words": (("--timeout-seconds", "2.5"), ("timeout_seconds", 2.5)),
    "one word": (("--timeout-seconds=2.5",), ("timeout_seconds", 2.5)),
    "an equals sign in the value": (("--model=a=b",), ("model", "a=b")),
    "switch on": (("--is-strict",), ("is_strict", True)),
    "switch off": (("--no-is-strict",), ("is_strict", False)),
    "switch by value": (("--is-strict=false",), ("is_strict", False)),
    "none": (("--limit", "off"), ("limit", None)),
    "the last wins": (("--model", "a", "--model", "b"), ("model", "b")),
}


@pytest.mark.parametrize(("argv", "expected"), FLAGS.values(), ids=FLAGS)
def test_a_flag_sets_its_field(cwd: Path, argv: tuple[str, ...], expected: tuple[str, object]) -> None:
    assert getattr(loaded(cwd, *argv), expected[0]) == expected[1]


def test_a_flag_without_its_value_is_named(cwd: Path) -> None:
    assert refusal(cwd, "--model").message == "--model: needs a value"
    assert refusal(cwd, "--no-model").field == "--no-model"


TEXTS = {
    "list by commas": ("ALLOWED_PEERS", "gateway, trainer", "allowed_peers", ("gateway", "trainer")),
    "list as JSON": ("ALLOWED_PEERS", '["gateway"]', "allowed_peers", ("gateway",)),
    "empty list": ("ALLOWED_PEERS", "", "allowed_peers", ()),
    "mapping": ("WEIGHTS", '{"a": 1}', "weights", {"a": 1}),
    "model": ("NESTED", '{"depth": 3}', "nested", Nested(depth=3)),
    "number that may be off": ("METRICS_PORT", "9463", "metrics_port", 9463),
    "off": ("METRICS_PORT", "off", "metrics_port", None),
    "empty is off": ("METRICS_PORT", "", "metrics_port", None),
}


@pytest.mark.parametrize(("name", "text", "field", "value"), TEXTS.values(), ids=TEXTS)
def test_text_becomes_the_fields_type(cwd: Path, name: str, text: str, field: str, value: object) -> None:
    assert getattr(loaded(cwd, environ={f"KALA_ETHICS_{name}": text}), field) == value


@pytest.mark.parametrize(
    ("layers", "origin"),
    [
        ({"environ": {"KALA_ETHICS_TIMEOUT_SECONDS": "soon"}}, "KALA_ETHICS_TIMEOUT_SECONDS"),
        ({"environ": {"KALA_ETHICS_TIMEOUT_SECONDS": "inf"}}, "KALA_ETHICS_TIMEOUT_SECONDS"),
        ({"env_file": "KALA_ETHICS_TIMEOUT_SECONDS=-1\n"}, "KALA_ETHICS_TIMEOUT_SECONDS in .env"),
        ({"yaml": "ethics: {weights: {a: x}}"}, "kala.yaml: ethics.weights"),
        ({"environ": {"KALA_ETHICS_WEIGHTS": "{"}}, "KALA_ETHICS_WEIGHTS"),
    ],
)
def test_a_bad_value_names_where_it_came_from(cwd: Path, layers: dict[str, object], origin: str) -> None:
    assert refusal(cwd, **layers).field == origin


def test_a_bad_secret_is_not_repeated(cwd: Path) -> None:
    class Strict(ServiceSettings):
        token: Annotated[SecretStr, Field(min_length=20)]

    with pytest.raises(InvalidArgumentError) as caught:
        load(Strict, section="ethics", argv=[], environ={"KALA_ETHICS_TOKEN": "hunter2"}, cwd=cwd)
    assert caught.value.field == "KALA_ETHICS_TOKEN"
    assert "hunter2" not in caught.value.message


def test_a_required_setting_that_is_missing_is_named(cwd: Path) -> None:
    class Strict(ServiceSettings):
        token: SecretStr

    with pytest.raises(InvalidArgumentError, match="KALA_ETHICS_TOKEN: field required"):
        load(Strict, section="ethics", argv=[], environ={}, cwd=cwd)


# What kubelet injects for Services kala-ethics, kala-ethics-metrics and kala-ethics-judge in one namespace.
LINKS = {
    "KALA_ETHICS_SERVICE_HOST": "10.96.0.11",
    "KALA_ETHICS_SERVICE_PORT": "50051",
    "KALA_ETHICS_SERVICE_PORT_GRPC": "50051",
    "KALA_ETHICS_PORT": "tcp://10.96.0.11:50051",
    "KALA_ETHICS_PORT_50051_TCP": "tcp://10.96.0.11:50051",
    "KALA_ETHICS_PORT_50051_TCP_PROTO": "tcp",
    "KALA_ETHICS_PORT_50051_TCP_PORT": "50051",
    "KALA_ETHICS_PORT_50051_TCP_ADDR": "10.96.0.11",
    "KALA_ETHICS_METRICS_PORT": "tcp://10.96.0.12:9463",
    "KALA_ETHICS_METRICS_SERVICE_HOST": "fd00::12",
    "KALA_ETHICS_JUDGE_PORT_53_UDP": "udp://10.96.0.13:53",
}


def test_what_kubernetes_injects_is_ignored_even_under_a_fields_name(cwd: Path) -> None:
    assert loaded(cwd, environ=LINKS) == Settings()


def test_a_field_with_a_links_name_still_takes_a_plain_value(cwd: Path) -> None:
    settings = loaded(cwd, environ={**LINKS, "KALA_ETHICS_PORT": "7", "KALA_ETHICS_METRICS_PORT": "9463"})
    assert (settings.port, settings.metrics_port) == (7, 9463)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KALA_ETHICS_METRIC_PORT", "9463"),
        ("KALA_ETHICS_SERVICE_HOST", "example.org"),
        ("KALA_ETHICS_SERVICE_PORT", "grpc"),
        ("KALA_ETHICS_PORT_50051_TCP_PROTO", "http"),
    ],
)
def test_a_mistake_is_not_taken_for_a_link(cwd: Path, name: str, value: str) -> None:
    assert refusal(cwd, environ={name: value}).field == name


@given(st.from_regex(r"[A-Z0-9_]{1,20}", fullmatch=True), st.text(max_size=20))
def test_a_link_always_has_a_links_name_and_a_links_value(suffix: str, value: str) -> None:
    if is_service_link(suffix, value):
        assert "PORT" in suffix or suffix.endswith("SERVICE_HOST")
        assert any(character.isdigit() or character == ":" for character in value) or value in {
            "tcp",
            "udp",
            "sctp",
        }


@given(
    st.dictionaries(st.from_regex(r"[A-Z_]{1,12}", fullmatch=True), st.text("abc", max_size=4), max_size=4)
)
def test_every_variable_of_the_section_is_either_used_or_named(environ: dict[str, str]) -> None:
    known = {f"KALA_ETHICS_{name.upper()}" for name in Settings.model_fields}
    prefixed = {f"KALA_ETHICS_{name}": value for name, value in environ.items()}
    refused = True
    with contextlib.suppress(InvalidArgumentError):
        load(Settings, section="ethics", argv=[], environ=prefixed, cwd=Path("/nonexistent"))
        refused = False
    assert refused or set(prefixed) <= known


def test_a_family_of_variables_fills_a_mapping(cwd: Path) -> None:
    settings = loaded(
        cwd,
        env_file="LMSTUDIO_MODEL_RANK=a\nLMSTUDIO_MODEL_EXTRACT=b\n",
        environ={"LMSTUDIO_MODEL_RANK": "c", "LMSTUDIO_MODEL_SIGMA": "", "LMSTUDIO_MODEL": "not one of them"},
    )
    assert settings.models == {"rank": "c", "extract": "b"}


def test_a_mapping_is_set_as_a_whole_or_by_its_family_but_not_both(cwd: Path) -> None:
    environ = {"KALA_ETHICS_MODELS": '{"rank": "a"}', "LMSTUDIO_MODEL_RANK": "b"}
    refused = refusal(cwd, environ=environ)
    assert refused.field == "LMSTUDIO_MODEL_*"
    assert "KALA_ETHICS_MODELS" in refused.message


OPEN = ["0.0.0.0:50051", "[::]:50051", "10.0.0.7:50051", "kala-ethics:50051"]


@pytest.mark.parametrize("address", OPEN)
def test_an_address_that_other_machines_reach_needs_tls(cwd: Path, address: str) -> None:
    assert "tls_cert_file" in refusal(cwd, "--address", address).message


@pytest.mark.parametrize("address", [*OPEN, "127.0.0.1:50051"])
def test_with_all_three_files_any_address_will_do(cwd: Path, address: str) -> None:
    files = ("--tls-cert-file=a", "--tls-key-file=b", "--tls-ca-file=c")
    settings = loaded(cwd, "--address", address, *files)
    assert settings.tls is not None
    assert settings.tls.ca_file == Path("c")


@pytest.mark.parametrize(
    "given_files", [("cert",), ("key",), ("ca",), ("cert", "key"), ("cert", "ca"), ("key", "ca")]
)
def test_some_of_the_three_files_are_not_enough(cwd: Path, given_files: tuple[str, ...]) -> None:
    message = refusal(cwd, *(f"--tls-{name}-file=x" for name in given_files)).message
    assert "all three" in message
    assert not any(f"tls_{name}_file" in message for name in given_files)


@pytest.mark.parametrize("field", ["--address", "--audit-address"])
def test_an_address_that_is_none_is_refused(cwd: Path, field: str) -> None:
    assert "host:port" in refusal(cwd, field, "nowhere").message


def test_the_table_names_every_variable_and_no_secret() -> None:
    table = settings_table(Settings, section="ethics")
    assert "| `KALA_ETHICS_MODEL` | `default` | The model. |" in table
    assert "| `KALA_ETHICS_URL`, `LM_STUDIO_BASE_URL`, `LMSTUDIO_API_URL`, `LMSTUDIO_HOST` | unset |" in table
    assert "| `KALA_ETHICS_API_KEY`, `OPENAI_API_KEY` | secret |" in table
    assert "| `KALA_ETHICS_ALLOWED_PEERS` | `gateway` |" in table
    assert "| `KALA_ETHICS_MODELS`, `LMSTUDIO_MODEL_<NAME>` | unset |" in table


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_every_setting_and_ends_the_process(
    cwd: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        loaded(cwd, flag)
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert "  --model  [default]\n      The model.\n" in shown
    assert "KALA_ETHICS_API_KEY\n" in shown
    assert "--api-key" not in shown
