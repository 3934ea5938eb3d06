"""`kala models`, `kala health lm` and `kala bench providers` against a scripted gateway."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import kala.client
import kala.offline_pull
from kala.cli import main
from kala.client import KalaClient
from kala.errors import UnavailableError
from kala.target import Target
from tests.fakes.gateway import FakeGateway, failure, stream

AT = ("--url", "http://127.0.0.1:8800", "--key", "kala_x")
Use = Callable[[FakeGateway], FakeGateway]
MODEL = {
    "id": "qwen/qwen3-4b",
    "backend": "backends/lmstudio",
    "backend_model": "qwen/qwen3-4b",
    "state": "LOAD_STATE_NOT_LOADED",
    "context_tokens": "4096",
    "max_context_tokens": "32768",
    "capabilities": ["CAPABILITY_CHAT", "CAPABILITY_TOOLS"],
    "quantization": "Q4_K_M",
}
READY = {
    "name": "backends/lmstudio",
    "kind": "lmstudio",
    "url": "http://127.0.0.1:1234",
    "state": "BACKEND_STATE_READY",
    "detail": "answers and has a model",
}
OFF = {
    **READY,
    "name": "backends/mlx",
    "kind": "mlx",
    "state": "BACKEND_STATE_OFF",
    "detail": "nothing listens",
}
DEMO = {**READY, "name": "backends/demo", "kind": "pythia", "url": ""}


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Let commands reach a scripted gateway instead of the network."""

    def install(gateway: FakeGateway) -> FakeGateway:
        def client(target: Target, **_: object) -> KalaClient:
            return KalaClient(target, gateway.transport, lambda _: None)

        monkeypatch.setattr(kala.client, "KalaClient", client)
        return gateway

    return install


def answers(*values: dict[str, Any]) -> FakeGateway:
    return FakeGateway([httpx.Response(200, json=value) for value in values])


def lines(*values: dict[str, Any]) -> httpx.Response:
    return httpx.Response(200, content="".join(json.dumps(value) + "\n" for value in values).encode())


def test_models_are_listed_over_all_pages(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    other = {**MODEL, "id": "tiny", "context_tokens": None, "state": "LOAD_STATE_LOADED"}
    gateway = use(answers({"models": [MODEL], "next_page_token": "p2"}, {"models": [other]}))
    assert main(["models", "list", "--backend", "lmstudio", *AT]) == 0
    shown = capsys.readouterr().out
    assert "4096 of 32768" in shown
    assert "up to 32768" in shown
    assert "not loaded" in shown
    assert gateway.seen[0].url.params["backend"] == "backends/lmstudio"
    assert gateway.seen[1].url.params["page_token"] == "p2"


def test_models_as_json_are_one_object(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    use(answers({"models": [MODEL]}))
    assert main(["models", "list", "--json", *AT]) == 0
    assert json.loads(capsys.readouterr().out) == {"models": [MODEL]}


def test_a_model_is_loaded_where_it_is_listed(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = {"model": {**MODEL, "context_tokens": "16384"}, "elapsed": "1.5s"}
    gateway = use(answers({"models": [MODEL]}, loaded))
    assert main(["models", "load", "qwen/qwen3-4b", "--context", "16384", *AT]) == 0
    assert json.loads(gateway.seen[-1].content) == {
        "backend": "backends/lmstudio",
        "model": "qwen/qwen3-4b",
        "context_tokens": 16384,
    }
    assert "loaded qwen/qwen3-4b in lmstudio with 16384 tokens of context in 1.5s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["qwen", "--backend", "lmstudio"], {"backend": "backends/lmstudio", "model": "qwen"}),
        (["lmstudio/new-model"], {"backend": "backends/lmstudio", "model": "new-model"}),
    ],
    ids=["option", "prefix"],
)
def test_a_backend_may_be_named(use: Use, arguments: list[str], asked: dict[str, str]) -> None:
    gateway = use(answers(*([] if "--backend" in arguments else [{"models": []}]), {"model": MODEL}))
    gateway.backends = [READY]
    assert main(["models", "unload", *arguments, *AT]) == 0
    assert json.loads(gateway.seen[-1].content) == asked
    assert gateway.seen[-1].url.path.endswith("models:unload")


def test_a_model_in_two_places_must_be_placed(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    both = [
        {**MODEL, "id": f"{name}/qwen", "backend": f"backends/{name}", "backend_model": "qwen"}
        for name in ("lmstudio", "lmstudio-2")
    ]
    use(answers({"models": both}))
    assert main(["models", "load", "qwen", *AT]) == 1
    assert "is in several backends: lmstudio, lmstudio-2; name one of them" in capsys.readouterr().err


def test_a_model_that_nobody_lists_is_answered_with_those_that_are(
    use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    use(answers({"models": [MODEL]}))
    assert main(["models", "load", "nothing", *AT]) == 1
    assert (
        "no backend lists 'nothing'; name one with --backend, or choose of: qwen/qwen3-4b"
        in capsys.readouterr().err
    )


FILE = {"name": "config.json", "sha256": base64.b64encode(b"\1" * 32).decode(), "bytes": "2"}


def test_a_pull_by_the_suite_shows_its_files(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    progress = {"file": "config.json", "received_bytes": "1", "total_bytes": "2", "files": []}
    gateway = use(FakeGateway([lines(progress, {**progress, "files": [FILE]})]))
    assert main(["models", "pull", "org/tiny", "--revision", "main", *AT]) == 0
    assert "01" * 32 in capsys.readouterr().out
    assert json.loads(gateway.seen[-1].content) == {"source": "org/tiny", "revision": "main", "backend": ""}


def test_a_pull_that_fails_late_is_one_line(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    error = {
        "error": {
            "code": 503,
            "message": "this machine cannot reach the hub",
            "status": "UNAVAILABLE",
            "details": [],
        }
    }
    use(FakeGateway([lines({"file": "a"}, error)]))
    assert main(["models", "pull", "org/tiny", *AT]) == 1
    assert capsys.readouterr().err.strip().endswith("kala: this machine cannot reach the hub")


def test_a_pull_that_ends_without_files_is_no_success(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    use(FakeGateway([lines({"file": "a"})]))
    assert main(["models", "pull", "org/tiny", *AT]) == 1
    assert "ended without a list of its files" in capsys.readouterr().err


def test_without_a_suite_this_machine_pulls(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def pulled(source: str, *, revision: str, to: Path | None) -> Iterator[dict[str, Any]]:
        assert (source, revision, to) == ("org/tiny", "", None)
        yield {"files": [FILE]}

    for name in ("KALA_URL", "KALA_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KALA_STATE", str(tmp_path))
    monkeypatch.setattr(kala.offline_pull, "pull_offline", pulled)
    assert main(["models", "pull", "org/tiny", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"source": "org/tiny", "files": [FILE]}
    assert "no suite runs here" in printed.err


def test_a_backend_pulls_only_through_a_suite(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KALA_URL", raising=False)
    monkeypatch.setenv("KALA_STATE", str(tmp_path))
    assert main(["models", "pull", "org/tiny", "--backend", "ollama"]) == 1
    assert "no suite runs in" in capsys.readouterr().err


def test_health_is_json_on_one_side_and_words_on_the_other(
    use: Use, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("USE_LM_STUDIO", raising=False)
    failed = {"step": "connect", "passed": False, "detail": "nothing listens", "cure": "start it"}
    gateway = use(answers({"backend": {**READY, "state": "BACKEND_STATE_OFF"}, "checks": [failed]}))
    gateway.backends = [READY]
    assert main(["health", "lm", *AT]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["mode"] == "lm_off"
    assert printed.err == "lm_off: LM Studio at http://127.0.0.1:1234: nothing listens\ncure: start it\n"


def test_health_of_a_suite_that_is_away_is_an_error_with_exit_code_0(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["health", "lm", "--state", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["mode"] == "error"
    assert "start one with `kala up`" in printed.err


def test_a_benchmark_writes_its_three_reports(
    use: Use, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = [failure(503, "all_backends_failed", "gone") for _ in range(3)]
    gateway = use(FakeGateway([stream("OK"), stream("Hel", "lo."), *gone], backends=[READY, OFF, DEMO]))
    assert main(["bench", "providers", "--quick", "--out", str(tmp_path), *AT]) == 0
    shown = capsys.readouterr().out
    assert "1/2, 1 failed: gone" in shown
    assert "not measured: nothing listens" in shown
    assert "demo" not in shown
    (report,) = tmp_path.glob("llm_benchmark_results_*.json")
    (readable,) = tmp_path.glob("LLM_BENCHMARK_REPORT_*.md")
    measured = json.loads(report.read_text())
    assert [provider["name"] for provider in measured["providers"]] == ["lmstudio", "mlx"]
    assert measured["providers"][0]["summary"]["answered"] == 1
    assert measured["fastest"] == "lmstudio"
    assert "| lmstudio | tiny |" in readable.read_text()
    assert gateway.chats[0]["model"] == "lmstudio/auto"
    assert gateway.seen[-1].headers["x-kala-provider"] == "lmstudio"


def test_two_benchmarks_in_one_second_keep_both_reports(use: Use, tmp_path: Path) -> None:
    use(FakeGateway([stream("OK") for _ in range(6)], backends=[READY]))
    for _ in range(2):
        assert main(["bench", "providers", "--quick", "--out", str(tmp_path), *AT]) == 0
    assert len(list(tmp_path.iterdir())) == 4


def test_the_demo_is_measured_by_name_or_when_there_is_nothing_else(use: Use, tmp_path: Path) -> None:
    gateway = use(FakeGateway([stream("OK") for _ in range(6)], backends=[READY, DEMO]))
    assert main(["bench", "providers", "--quick", "--provider", "demo", "--out", str(tmp_path), *AT]) == 0
    assert gateway.chats[0]["model"] == "demo/auto"
    gateway.backends = [OFF, DEMO]
    assert main(["bench", "providers", "--quick", "--out", str(tmp_path), *AT]) == 0


REMOTE = {
    **READY,
    "name": "backends/openai",
    "kind": "openai",
    "url": "https://api.openai.com",
    "remote": True,
}


def test_nothing_leaves_this_machine_unless_the_provider_is_named(
    use: Use, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = use(FakeGateway([stream("OK") for _ in range(6)], backends=[READY, REMOTE]))
    assert main(["bench", "providers", "--quick", "--out", str(tmp_path), *AT]) == 0
    assert {asked["model"] for asked in gateway.chats} == {"lmstudio/auto"}
    assert "is remote; --provider openai" in capsys.readouterr().out
    assert main(["bench", "providers", "--quick", "--provider", "openai", "--out", str(tmp_path), *AT]) == 0
    assert gateway.chats[-1]["model"] == "openai/auto"
    assert gateway.seen[-1].headers["x-kala-provider"] == "openai"


@pytest.mark.parametrize(
    ("backends", "arguments", "says"),
    [
        ([READY], ["--provider", "nope"], "there is no provider 'nope' in this suite; there are: lmstudio"),
        ([OFF], [], "no provider answered"),
    ],
    ids=["unknown", "none answers"],
)
def test_a_benchmark_of_nothing_fails_and_says_why(
    use: Use,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    backends: list[Any],
    arguments: list[str],
    says: str,
) -> None:
    use(FakeGateway(backends=backends))
    assert main(["bench", "providers", "--out", str(tmp_path), *arguments, *AT]) == 1
    assert says in capsys.readouterr().err


def test_reports_that_cannot_be_written_are_said_before_anything_is_asked(
    use: Use, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    gateway = use(FakeGateway(backends=[READY]))
    assert main(["bench", "providers", "--out", str(tmp_path / "file"), *AT]) == 1
    assert "choose a writable directory with --out" in capsys.readouterr().err
    assert gateway.seen == []


def test_errors_of_the_offline_process_come_back_as_ours() -> None:
    line = json.dumps(
        {"error": {"kind": "UnavailableError", "reason": "HUB_UNREACHABLE", "message": "no way"}}
    )
    with pytest.raises(UnavailableError, match="no way"):
        kala.offline_pull.read_line(line.encode())
