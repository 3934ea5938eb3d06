"""`kala train`, `kala data`, `kala eval` and `kala adapters` against a scripted gateway."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import kala.client
from kala.cli import main
from kala.cli.data import hand_over
from kala.client import KalaClient
from kala.errors import KalaError
from kala.target import Target
from tests.fakes.gateway import FakeGateway

AT = ("--url", "http://127.0.0.1:8800", "--key", "kala_x")
Use = Callable[..., FakeGateway]
JOB = "trainingJobs/" + "a" * 32
OPERATION = "operations/" + "b" * 32
EVALUATION = "evaluations/" + "c" * 32
REFERENCE = {"name": "adapters/tone@1", "sha256": base64.b64encode(b"d" * 32).decode(), "bytes": "9"}
BASE_DIGEST = base64.b64encode(b"e" * 32).decode()
ADAPTER = {
    "name": "adapters/tone@1",
    "state": "ADAPTER_STATE_CANDIDATE",
    "reference": REFERENCE,
    "manifest": {"manifest": "AA==", "signatures": []},
    "location": "tone@1",
    "base": "kala-embedded",
    "stage": "ADAPTER_STAGE_CUSTOM",
    "bytes": "150000",
    "evaluations": [EVALUATION],
    "description": {
        "base": {
            "name": "kala-embedded",
            "digest": BASE_DIGEST,
            "files": [{"name": "config.json", "bytes": "5"}, {"name": "model.safetensors", "bytes": "7"}],
        },
        "datasets": [
            {"name": "datasets/tone@1", "digest": BASE_DIGEST, "rows": "10", "use": "DATASET_USE_TRAIN"}
        ],
    },
}
RESULT = b"the exact bytes"
PASSED = {
    "name": EVALUATION,
    "profile": "embedded",
    "outcome": "GATE_OUTCOME_PASSED",
    "receipt": "rcpt_1",
    "evidence": {"result": base64.b64encode(RESULT).decode(), "proof": "p"},
    "result": {
        "metrics": [
            {"metric": "law_correct", "suite": "law", "hits": "19", "total": "20", "passed": True,
             "comparison": "GATE_COMPARISON_VALUE_AT_LEAST", "threshold_micros": "900000"},
            {"metric": "perplexity", "suite": "text", "value_micros": "7500000", "base_value_micros": "7000000"},
        ]
    },
}  # fmt: skip
JOB_FILE = """
adapter: tone
base_model: kala-embedded
build:
  - name: tone
    sources:
      - generator: {category: law-0, rows: 10}
datasets:
  - dataset: tone
"""


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Let commands reach a scripted gateway instead of the network."""

    def install(*answers: dict[str, Any] | httpx.Response) -> FakeGateway:
        script = [
            each if isinstance(each, httpx.Response) else httpx.Response(200, json=each) for each in answers
        ]
        gateway = FakeGateway(list(script), backends=[
            {"name": "backends/demo", "kind": "pythia"}, {"name": "backends/pythia", "kind": "pythia"},
            {"name": "backends/lmstudio", "kind": "lmstudio"},
        ])  # fmt: skip

        def client(target: Target, **_: object) -> KalaClient:
            return KalaClient(target, gateway.transport, lambda _: None)

        monkeypatch.setattr(kala.client, "KalaClient", client)
        return gateway

    return install


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB_FILE)
    return path


def lines(*values: dict[str, Any]) -> httpx.Response:
    return httpx.Response(200, content="".join(json.dumps(value) + "\n" for value in values).encode())


def bodies(gateway: FakeGateway, ending: str) -> list[dict[str, Any]]:
    return [json.loads(r.content) for r in gateway.seen if r.url.path.endswith(ending) and r.method == "POST"]


def ended(state: str, **more: Any) -> dict[str, Any]:
    return {"name": JOB, "progress": {"state": state, "step": "3", "total_steps": "3", "loss": 0.25}, **more}


NOT_THERE = httpx.Response(
    404, json={"error": {"code": 404, "status": "NOT_FOUND", "message": "no", "details": []}}
)
SPEC = {"name": "datasets/tone", "sources": [{"name": "x"}]}
CHECKED = {"spec": SPEC, "buildable": True, "report": {}}
PLAN = {"plan": {"text": "the plan", "spec": {"adapter": "adapters/tone"}, "problems": []}}
UNBUILT = {"plan": {"problems": ["datasets[0]: there is no datasets/tone; it is in build"]}}
STARTED = {"name": OPERATION, "done": False, "metadata": {"job": JOB}}


def test_submit_builds_what_the_file_describes_then_plans_and_starts(
    use: Use, job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    building = {"name": OPERATION, "done": False, "metadata": {"dataset": "datasets/tone"}}
    built = {"name": OPERATION, "done": True, "response": {"name": "datasets/tone@1"}}
    done = ended("JOB_STATE_SUCCEEDED", adapter="adapters/tone@1", evaluation=EVALUATION)
    gateway = use(
        UNBUILT, CHECKED, NOT_THERE, building, built, PLAN, STARTED,
        lines({"sequence": "1", "progress": {"state": "JOB_STATE_TRAINING", "step": "1", "loss": 2.5}},
              {"sequence": "2", "incident": {"kind": "WORKER_LOST", "message": "gone", "resumes_from_step": "2"}},
              {"sequence": "3", "job": done}),
    )  # fmt: skip
    assert main(["train", "submit", str(job_file), "--wait", *AT]) == 0
    (source,) = bodies(gateway, "datasets:check")[0]["spec"]["sources"]
    assert source == {"name": "law-0", "generator": {"category": "GENERATOR_CATEGORY_LAW_0", "rows": 10}}
    (submitted,) = bodies(gateway, "/trainingJobs")
    assert submitted["spec"] == {"adapter": "adapters/tone"}
    assert len(submitted["request_id"]) == 32
    shown = capsys.readouterr()
    assert "adapters/tone@1" in shown.out
    assert "the plan" in shown.err
    assert "WORKER_LOST: gone; it goes on from step 2" in shown.err


def test_a_dataset_that_is_built_already_is_not_built_again(use: Use, job_file: Path) -> None:
    gateway = use(
        UNBUILT,
        CHECKED,
        {"dataset": {"name": "datasets/tone@4", "spec": SPEC}},
        PLAN,
        STARTED,
        {"job": ended("JOB_STATE_QUEUED")},
    )
    assert main(["train", "submit", str(job_file), *AT]) == 0
    assert not bodies(gateway, "datasets:build")


def test_what_no_dataset_cures_is_said_before_any_is_built(
    use: Use, job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = [*UNBUILT["plan"]["problems"], "target_modules[0]: 'nothing' matches no module"]
    gateway = use({"plan": {"problems": problems}})
    assert main(["train", "submit", str(job_file), *AT]) == 1
    said = capsys.readouterr().err
    assert "matches no module" in said
    assert "it is in build" not in said
    assert not bodies(gateway, "datasets:build")


def test_a_plan_with_problems_starts_nothing(
    use: Use, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("adapter: tone\n")
    gateway = use({"plan": {"text": "", "spec": {}, "problems": ["no datasets"]}})
    assert main(["train", "submit", str(file), *AT]) == 1
    assert "no datasets" in capsys.readouterr().err
    assert not bodies(gateway, "/trainingJobs")


def test_a_job_that_failed_fails_the_command_that_waits(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    job = ended("JOB_STATE_FAILED", error="the loss became NaN; lower the rate", error_reason="NAN_LOSS")
    use(lines({"sequence": "1", "job": job}))
    assert main(["train", "watch", JOB, *AT]) == 1
    assert "NAN_LOSS: the loss became NaN" in capsys.readouterr().err


def test_a_watch_that_is_cut_goes_on_after_the_last_event(use: Use) -> None:
    gateway = use(
        lines({"sequence": "7", "progress": {"state": "JOB_STATE_TRAINING"}}),
        lines({"sequence": "8", "job": ended("JOB_STATE_SUCCEEDED")}),
    )
    assert main(["train", "watch", JOB, "--json", *AT]) == 0
    assert [request.url.params["after_sequence"] for request in gateway.seen] == ["0", "7"]


def test_a_watch_goes_on_from_the_state_now_when_the_trainer_has_forgotten_its_events(use: Use) -> None:
    forgotten = {
        "code": 400,
        "status": "FAILED_PRECONDITION",
        "message": "event 7 is not kept",
        "details": [],
    }
    gateway = use(
        lines({"sequence": "7", "progress": {"state": "JOB_STATE_TRAINING"}}),
        httpx.Response(400, json={"error": forgotten}),
        lines({"sequence": "102", "job": ended("JOB_STATE_SUCCEEDED")}),
    )
    assert main(["train", "watch", JOB, *AT]) == 0
    assert [request.url.params["after_sequence"] for request in gateway.seen] == ["0", "7", "0"]


def test_jobs_logs_and_the_end_of_one(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    use(
        {
            "jobs": [
                {
                    **ended("JOB_STATE_TRAINING"),
                    "spec": {"adapter": "adapters/tone", "base": {"name": "pythia-70m"}},
                }
            ]
        },
        lines({"line": "1", "source": "worker-0", "text": "step 1"}),
        {"job": ended("JOB_STATE_CANCELLING")},
    )
    assert main(["train", "list", *AT]) == 0
    assert main(["train", "logs", "a" * 32, *AT]) == 0
    assert main(["train", "cancel", "a" * 32, *AT]) == 0
    shown = capsys.readouterr().out
    assert all(each in shown for each in ("pythia-70m", "3 of 3", "worker-0: step 1", "cancelling"))


def test_an_adapter_is_promoted_by_the_newest_gate_that_it_passed(use: Use) -> None:
    failed = {**PASSED, "name": "evaluations/" + "f" * 32, "outcome": "GATE_OUTCOME_FAILED"}
    adapter = {**ADAPTER, "evaluations": [failed["name"], EVALUATION]}
    gateway = use({"adapter": adapter}, {"evaluation": failed}, {"evaluation": PASSED}, {"adapter": ADAPTER})
    assert main(["adapters", "promote", "tone@1", *AT]) == 0
    (action,) = bodies(gateway, "adapters:promote")
    assert action["adapter"] == REFERENCE
    assert action["evaluation"] == {
        "name": EVALUATION,
        "sha256": base64.b64encode(hashlib.sha256(RESULT).digest()).decode(),
        "bytes": len(RESULT),
    }


def test_an_adapter_without_a_passed_gate_is_not_promoted(
    use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = use({"adapter": {**ADAPTER, "evaluations": []}})
    assert main(["adapters", "promote", "tone@1", *AT]) == 1
    assert "kala eval adapters/tone@1" in capsys.readouterr().err
    assert not bodies(gateway, "adapters:promote")


def test_an_adapter_is_loaded_into_the_backend_that_has_its_base(use: Use) -> None:
    gateway = use({"adapter": ADAPTER}, {"adapter": "adapters/tone@1"})
    assert main(["adapters", "load", "tone@1", *AT]) == 0
    (action,) = bodies(gateway, "adapters:load")
    assert (action["backend"], action["location"]) == ("backends/demo", "tone@1")
    other = use({"adapter": {**ADAPTER, "base": "pythia-70m"}}, {})
    assert main(["adapters", "load", "tone@1", *AT]) == 0
    assert bodies(other, "adapters:load")[0]["backend"] == "backends/pythia"


def test_an_evaluation_names_base_and_profile_by_digest_and_fails_with_its_gate(
    use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = {"name": "embedded", "sha256": BASE_DIGEST, "bytes": "3"}
    failed = {**PASSED, "outcome": "GATE_OUTCOME_FAILED"}
    gateway = use(
        {"adapter": ADAPTER}, {"plan": {"spec": {"gate_profile": profile}}},
        {**STARTED, "metadata": {"suite": "law", "items": "3", "total_items": "9"}},
        {"name": OPERATION, "done": True, "response": failed},
    )  # fmt: skip
    assert main(["eval", "tone@1", "--profile", "embedded", *AT]) == 1
    (action,) = bodies(gateway, "adapters:evaluate")
    assert action["profile"] == profile
    assert action["base"] == {"name": "kala-embedded", "sha256": BASE_DIGEST, "bytes": "12"}
    shown = capsys.readouterr().out
    assert all(each in shown for each in ("failed", "19 of 20", "7.5", "0.9"))


def test_an_unknown_profile_is_said_before_anything_runs(
    use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = use({"adapter": ADAPTER}, {"plan": {"spec": {}, "problems": ["unknown profile 'none'"]}})
    assert main(["eval", "tone@1", "--profile", "none", *AT]) == 1
    assert "unknown profile 'none'" in capsys.readouterr().err
    assert not bodies(gateway, "adapters:evaluate")


def test_an_operation_that_failed_is_an_error_with_its_words(
    use: Use, capsys: pytest.CaptureFixture[str]
) -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "EXPORT_DIFFERS"}]
    error = {"code": 9, "message": "the logits differ by 0.5", "details": details}
    use({"name": OPERATION, "done": True, "error": error})
    assert main(["adapters", "export", "tone@1", "--format", "gguf-merged", *AT]) == 1
    assert "the logits differ by 0.5" in capsys.readouterr().err


def test_adapters_are_listed_shown_and_revoked(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    use({"adapters": [ADAPTER]}, {"adapter": ADAPTER}, {"evaluation": PASSED},
        {"adapter": ADAPTER, "descendants": ["adapters/child@1"]})  # fmt: skip
    assert main(["adapters", "list", *AT]) == 0
    assert main(["adapters", "show", "tone@1", *AT]) == 0
    assert main(["adapters", "revoke", "tone@1", "--reason", "leaks", *AT]) == 0
    shown = capsys.readouterr().out
    digest = base64.b64decode(BASE_DIGEST).hex()
    assert all(
        each in shown for each in ("150.0 kB", f"datasets/tone@1 {digest}, 10 rows", "adapters/child@1")
    )


def test_what_is_wrong_with_rows_is_shown_by_row(
    use: Use, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "data.yaml"
    file.write_text(
        "name: mine\nsources:\n- name: pages\n  files: {files: [a.jsonl], format: messages, licence: MIT}\n"
    )
    problem = {"source": "pages", "file": "a.jsonl", "row": "3", "kind": "NOT_JSON", "message": "is no JSON"}
    report = {
        "sources": [{"source": "pages", "read": "9", "wrong": "1"}],
        "problems": [problem],
        "problem_count": "1",
    }
    gateway = use({"spec": {"name": "datasets/mine"}, "report": report, "buildable": False})
    assert main(["data", "check", str(file), *AT]) == 1
    assert "pages:a.jsonl:3: NOT_JSON: is no JSON" in capsys.readouterr().err
    sent = bodies(gateway, "datasets:check")[0]["spec"]["sources"][0]["files"]
    assert sent == {"files": [{"name": "a.jsonl"}], "format": "SOURCE_FORMAT_MESSAGES", "licence": "MIT"}


def test_a_card_and_a_list_of_datasets(use: Use, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = {
        "name": "datasets/mine@2",
        "card": "# Mine\n",
        "digest": BASE_DIGEST,
        "report": {"train_rows": "77"},
    }
    use({"dataset": dataset}, {"datasets": [dataset]})
    assert main(["data", "card", "mine", *AT]) == 0
    assert main(["data", "list", *AT]) == 0
    shown = capsys.readouterr().out
    assert all(each in shown for each in ("# Mine", "mine@2", "77"))


def test_files_of_a_folder_are_handed_to_the_suite_of_this_machine(
    tmp_path: Path,
) -> None:
    place = tmp_path / "state" / "data" / "trainer" / "data"
    place.mkdir(parents=True)
    own = tmp_path / "own"
    (own / "deep").mkdir(parents=True)
    (own / "deep" / "a.jsonl").write_text("{}\n")
    spec = dataset_of("deep/a.jsonl", "s3://bucket/b.jsonl")
    hand_over([spec], own, state=tmp_path / "state", url=None)
    assert (place / "deep" / "a.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize(
    ("file", "url", "says"),
    [
        ("../a.jsonl", None, "takes names below the folder"),
        ("/etc/passwd", None, "takes names below the folder"),
        ("gone.jsonl", None, "holds no file gone.jsonl"),
        ("a.jsonl", "http://elsewhere", "a suite of this machine only"),
    ],
)
def test_files_that_cannot_be_handed_over_are_named(
    tmp_path: Path, file: str, url: str | None, says: str
) -> None:
    (tmp_path / "state" / "data" / "trainer" / "data").mkdir(parents=True)
    with pytest.raises(KalaError, match=says):
        hand_over([dataset_of(file)], tmp_path, state=tmp_path / "state", url=url)


def test_without_a_suite_there_is_nobody_to_hand_files_to(tmp_path: Path) -> None:
    with pytest.raises(KalaError, match="kala up"):
        hand_over([dataset_of("a.jsonl")], tmp_path, state=tmp_path / "state", url=None)


def dataset_of(*files: str) -> dict[str, Any]:
    return {"sources": [{"files": {"files": [{"name": name} for name in files]}}]}
