"""How the parts are wired: the caller may change what is a default, never what holds the suite together."""

from __future__ import annotations

from pathlib import Path

import pytest

from kala.suite.ambient import named_in_files
from kala.suite.keyring import Keyring, make_keyring
from kala.suite.layout import StateLayout
from kala.suite.parts import Wiring, parts_of
from kala.suite.ports import PortClaims
from kala.suite.runtime_copy import Runtime
from kala.suite.supervisor import Part
from kala.suite.tools_home import ToolsHome
from kala.suite.trainer_home import TrainerHome

PROFILES = (Path("/profiles/a.json"), Path("/profiles/b.json"))


def wired(
    tmp_path: Path,
    ambient: dict[str, str],
    decided: frozenset[str] = frozenset(),
    *,
    uid: int | None = None,
    has_tools: bool = True,
    has_trainer: bool = True,
) -> dict[str, Part]:
    layout = StateLayout.at(tmp_path / "state")
    layout.create()
    keyring, _ = make_keyring(layout.keys, layout.trust)
    tools = home(tmp_path, keyring, uid) if has_tools else None
    trainer = TrainerHome(layout.data / "trainer", PROFILES, tmp_path / "model") if has_trainer else None
    wiring = Wiring(layout, layout.sockets(), keyring, "127.0.0.1", 8800, ambient, decided, tools, trainer)
    claims = PortClaims(tmp_path / "ports")
    try:
        return {part.name: part for part in parts_of(wiring, claims)}
    finally:
        claims.close()


def home(tmp_path: Path, keyring: Keyring, uid: int | None) -> ToolsHome:
    root = tmp_path / "home"
    return ToolsHome(
        root,
        Runtime(Path("/copied/python3")),
        root,
        keyring.ethics_public_key,
        keyring.tools_signing_key,
        {peer: root / f"{peer}.sock" for peer in ("audit", "inference")},
        uid,
    )


def test_the_caller_overrides_a_default(tmp_path: Path) -> None:
    assert wired(tmp_path, {})["inference"].environment["KALA_INFERENCE_DISCOVER"] == "true"
    parts = wired(tmp_path, {"KALA_INFERENCE_DISCOVER": "false", "KALA_ETHICS_TRUST": "pinned"})
    assert parts["inference"].environment["KALA_INFERENCE_DISCOVER"] == "false"
    assert parts["ethics"].environment["KALA_ETHICS_TRUST"] == "pinned"


def test_the_caller_cannot_cut_the_wires(tmp_path: Path) -> None:
    parts = wired(tmp_path, {"KALA_GATEWAY_ETHICS_ADDRESS": "10.0.0.1:1"})
    assert parts["gateway"].environment["KALA_GATEWAY_ETHICS_ADDRESS"].startswith("unix:")
    ethics = parts["ethics"].environment["KALA_ETHICS_ADDRESS"]
    assert parts["gateway"].environment["KALA_GATEWAY_ETHICS_ADDRESS"] == ethics


def test_every_part_has_its_own_metrics_port(tmp_path: Path) -> None:
    urls = [part.metrics_url for part in wired(tmp_path, {}).values()]
    assert len(set(urls)) == 6


def test_no_part_sees_the_private_keys_of_another(tmp_path: Path) -> None:
    parts = wired(tmp_path, {})
    owners = {
        "ethics.key": "ethics",
        "audit-log.key": "audit",
        "audit-kek.key": "audit",
        "audit-tiles.token": "audit",
        "gateway-pepper.key": "gateway",
        "gateway-store.key": "gateway",
        "tools.key": "tools",
        "trainer.key": "trainer",
    }
    for name, owner in owners.items():
        users = {
            part.name for part in parts.values() if any(name in value for value in part.environment.values())
        }
        assert users == {owner}


def test_the_first_key_is_made_only_where_it_is_missing(tmp_path: Path) -> None:
    assert wired(tmp_path, {})["gateway"].prelude[0] == "gateway.bootstrap"
    layout = StateLayout.at(tmp_path / "state")
    layout.cli_key_file.write_text("kala_x")
    layout.gateway_database.write_text("x")
    assert wired(tmp_path, {})["gateway"].prelude == ()


def test_what_the_users_files_say_is_not_overruled_by_a_default(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("# KALA_ETHICS_TRUST=x\nexport KALA_INFERENCE_DISCOVER=false\n")
    (tmp_path / "kala.yaml").write_text("ethics:\n  trust: pinned\n")
    decided = named_in_files({}, tmp_path)
    assert decided == {"KALA_INFERENCE_DISCOVER", "KALA_ETHICS_TRUST"}
    parts = wired(tmp_path, {}, decided)
    assert "KALA_INFERENCE_DISCOVER" not in parts["inference"].environment
    assert "KALA_ETHICS_TRUST" not in parts["ethics"].environment


@pytest.mark.parametrize(
    "text", ["{", "- a list", "42", "ethics: 1"], ids=["broken", "list", "number", "flat"]
)
def test_a_wrong_file_is_left_to_the_process_that_reads_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "kala.yaml").write_text(text)
    assert named_in_files({}, tmp_path) == frozenset()


def test_ethics_finds_inference_and_the_guard_that_the_caller_wants(tmp_path: Path) -> None:
    parts = wired(
        tmp_path, {"KALA_ETHICS_GUARD_MODEL": "lmstudio/guard", "KALA_ETHICS_INFERENCE_ADDRESS": "10.0.0.1:1"}
    )
    environment = parts["ethics"].environment
    assert (
        environment["KALA_ETHICS_INFERENCE_ADDRESS"]
        == parts["inference"].environment["KALA_INFERENCE_ADDRESS"]
    )
    assert environment["KALA_ETHICS_GUARD_MODEL"] == "lmstudio/guard"


def test_tools_runs_as_its_own_user_in_its_own_folder(tmp_path: Path) -> None:
    part = wired(tmp_path, {}, uid=65532)["tools"]
    assert (part.user, part.folder) == (65532, tmp_path / "home")
    assert part.python[0] == "/copied/python3"
    assert part.is_optional
    assert not any(str(tmp_path / "state/keys") in value for value in wired_values(part, "KALA_TOOLS_AUDIT"))


def wired_values(part: Part, prefix: str) -> list[str]:
    return [value for name, value in part.environment.items() if name.startswith(prefix)]


def test_tools_learns_nothing_of_the_other_parts_secrets(tmp_path: Path) -> None:
    ambient = {"OPENAI_API_KEY": "sk-1", "KALA_API_KEY": "kala_1", "KALA_TOOLS_MAX_RUNS": "3", "PATH": "/bin"}
    environment = wired(tmp_path, ambient, uid=65532)["tools"].environment
    assert environment["KALA_TOOLS_MAX_RUNS"] == "3"
    assert not {"OPENAI_API_KEY", "KALA_API_KEY"} & set(environment)


def test_the_gateway_and_inference_know_the_tools_service(tmp_path: Path) -> None:
    parts = wired(tmp_path, {})
    address = parts["tools"].environment["KALA_TOOLS_ADDRESS"]
    assert parts["gateway"].environment["KALA_GATEWAY_TOOLS_ADDRESS"] == address
    assert parts["inference"].environment["KALA_INFERENCE_TOOLS_PUBLIC_KEYS"].endswith("tools.pub")


def test_without_tools_the_gateway_says_that_they_are_not_deployed(tmp_path: Path) -> None:
    parts = wired(tmp_path, {}, has_tools=False)
    assert "tools" not in parts
    assert "KALA_GATEWAY_TOOLS_ADDRESS" not in parts["gateway"].environment


def test_inference_serves_what_this_suites_trainer_signs(tmp_path: Path) -> None:
    parts = wired(tmp_path, {})
    inference, trainer = parts["inference"].environment, parts["trainer"].environment
    assert parts["trainer"].is_optional
    assert inference["KALA_INFERENCE_TRAINER_PUBLIC_KEYS"].endswith("trainer.pub")
    assert inference["KALA_INFERENCE_GATE_PROFILES"] == "/profiles/a.json,/profiles/b.json"
    assert inference["KALA_INFERENCE_ADAPTERS_DIR"] == f"{trainer['KALA_TRAINER_STATE_DIR']}/adapters"
    assert parts["gateway"].environment["KALA_GATEWAY_TRAINER_ADDRESS"] == trainer["KALA_TRAINER_ADDRESS"]
    assert trainer["KALA_TRAINER_EMBEDDED_DIR"] == str(tmp_path / "model")


@pytest.mark.parametrize("own", ["", "/theirs"], ids=["of the suite", "of the caller"])
def test_files_to_train_on_are_laid_where_the_trainer_reads(tmp_path: Path, own: str) -> None:
    parts = wired(tmp_path, {"KALA_TRAINER_DATA_DIR": own} if own else {})
    read = parts["trainer"].environment["KALA_TRAINER_DATA_DIR"]
    assert parts["gateway"].environment["KALA_GATEWAY_TRAINING_DATA_DIR"] == read
    assert read == own or not own


@pytest.mark.parametrize("decided", [True, False], ids=["in a file", "in the environment"])
def test_another_trainer_that_the_caller_pinned_keeps_its_own_list_and_folder(
    tmp_path: Path, decided: bool
) -> None:
    name = "KALA_INFERENCE_TRAINER_PUBLIC_KEYS"
    parts = wired(tmp_path, {} if decided else {name: "/theirs.pub"}, frozenset({name} if decided else ()))
    environment = parts["inference"].environment
    assert environment.get(name) == (None if decided else "/theirs.pub")
    assert not {"KALA_INFERENCE_ADAPTER_REVOCATIONS", "KALA_INFERENCE_ADAPTERS_DIR"} & set(environment)


def test_without_a_trainer_the_gateway_says_that_it_is_not_deployed(tmp_path: Path) -> None:
    parts = wired(tmp_path, {}, has_trainer=False)
    assert "trainer" not in parts
    assert "KALA_GATEWAY_TRAINER_ADDRESS" not in parts["gateway"].environment
    assert "KALA_INFERENCE_ADAPTER_REVOCATIONS" not in parts["inference"].environment
