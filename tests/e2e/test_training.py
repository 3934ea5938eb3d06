"""From data to an adapter that serves, through `kala` and REST, and the chain back from an answer to its dataset."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf import json_format

from kala.audit.leaf import Leaf
from kala.audit.note import Verifier
from kala.audit.receipt import verify_receipt
from kala.common.v1 import adapter_pb2, reference_pb2
from kala.common.v1.measurement_pb2 import MEASURER_ETHICS, MEASURER_TOOLS
from kala.suite.keyring import Keyring
from kala.trainer.v1 import trainer_pb2
from services.common.adapter_manifest import (
    AdapterTrust,
    ServingPolicy,
    VerifiedAdapter,
    training_action_digest,
    verify_adapter,
)
from services.common.file_set import file_set_digest
from services.common.gate_profile import read_profile
from services.common.gates import GateTrust
from services.common.keys import load_public_keys
from tests.e2e.suites import Suite, environment, kala, running_suite
from tests.fakes.small_gate import NAME as PROFILE
from tests.fakes.small_gate import write_small_gate

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).parents[2]
EMBEDDED = REPOSITORY / "services" / "trainer" / "evaluation" / "profiles" / "embedded.json"
TRAIN_SECONDS = 900
QUESTION = "Which desk is this for: the box is broken?"


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody with a command line and a key."""

    suite: Suite
    http: httpx.Client

    @property
    def profiles(self) -> list[Path]:
        """What inference accepts here."""
        return [self.suite.state.parent / "gate" / "profiles" / f"{PROFILE}.json", EMBEDDED]

    def kala(self, *arguments: str | Path, fails: bool = False) -> str:
        done = kala(*arguments, "--state", self.suite.state, env=environment(), timeout=TRAIN_SECONDS)
        assert (done.returncode != 0) == fails, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stderr if fails else done.stdout

    def get(self, path: str) -> dict[str, Any]:
        answer = self.http.get(path)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def chat(self, adapter: str, text: str) -> httpx.Response:
        body = {"model": "kala-demo", "messages": [{"role": "user", "content": text}], "max_tokens": 24}
        return self.http.post("/v1/chat/completions", json=body, headers={"x-kala-adapters": adapter})

    def leaf(self, receipt_id: str) -> Leaf:
        """A record by its receipt, which is verified with the log's pinned key."""
        vkey = Verifier.parse(self.suite.layout.vkey_file.read_text().strip())
        return verify_receipt(
            self.get(f"/kala/v1/audit/receipts/{receipt_id}")["receipt"]["proof"], [vkey]
        ).leaf


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    folder = tmp_path_factory.mktemp("training")
    gate = write_small_gate(folder / "gate")
    small = gate["KALA_INFERENCE_GATE_PROFILES"]
    gate["KALA_INFERENCE_GATE_PROFILES"] = f"{small},{EMBEDDED}"
    with (
        running_suite(folder / "state", KALA_TRAINER_THREADS="1", **gate) as suite,
        httpx.Client(
            base_url=suite.url, headers={"authorization": f"Bearer {suite.key}"}, timeout=60
        ) as http,
    ):
        yield Person(suite, http)


def job_file(folder: Path, name: str, *, steps: int) -> Path:
    """A job on the embedded model: the laws replayed beside a new task."""
    path = folder / f"{name}.yaml"
    path.write_text(f"""
adapter: {name}
summary: A small new task beside the Five Laws.
base_model: kala-embedded
stage: custom
objective: sft
rank: 16
alpha: 32
dropout: 0.0
target_modules: [query_key_value, dense, embed_in, embed_out]
build:
  - name: task
    summary: Questions from templates with one right answer each.
    duplicate_similarity: 1.0
    sources:
      - generator: {{category: template_task, rows: 1200, seed: 1}}
  - name: laws
    summary: The laws, kept alive while a task is learned.
    sources:
      - generator: {{category: law_0, rows: 60, seed: 1}}
      - generator: {{category: law_1, rows: 60, seed: 1}}
      - generator: {{category: law_2, rows: 60, seed: 1}}
      - generator: {{category: law_3, rows: 60, seed: 1}}
      - generator: {{category: law_4, rows: 60, seed: 1}}
      - generator: {{category: benign, rows: 150, seed: 1}}
datasets:
  - {{dataset: task, use: train}}
  - {{dataset: laws, use: replay}}
hyperparameters:
  learning_rate: 5e-3
  batch_size: 16
  max_sequence_tokens: 128
  max_steps: {steps}
gate_profile: {PROFILE}
deadline: 20m
""")
    return path


def test_an_adapter_is_trained_gated_promoted_and_serves_and_the_chain_leads_back_to_its_data(
    person: Person, tmp_path: Path
) -> None:
    job = json.loads(person.kala("train", "submit", job_file(tmp_path, "task", steps=70), "--wait", "--json"))
    assert job["progress"]["state"] == "JOB_STATE_SUCCEEDED", job
    name = job["adapter"]
    assert "not loaded" in person.chat(name, QUESTION).text
    assert name in person.kala("adapters", "promote", name)
    assert name in person.kala("adapters", "load", name)
    answer = person.chat(name, QUESTION)
    assert answer.status_code == 200, answer.text
    require_chain(person, name, answer)


def require_chain(person: Person, name: str, answer: httpx.Response) -> None:
    """Walk from an answer's receipt to the files that its adapter learned from, each step by digest or signature."""
    outcome = person.leaf(answer.json()["kala"]["receipt"]["id"])
    adapter = verified(person, name)
    assert outcome.value["model"]["adapter"] == adapter.digest.hex()
    assert outcome.value["model"]["base_digest"] == adapter.description.base.digest.hex()
    training = adapter.description.training
    assert training_action_digest(training.action) == training.action_digest
    intent = person.leaf(training.intent_receipt)
    assert intent.value["type"] == "training.started"
    assert intent.value["action"]["digest"] == training.action_digest.hex()
    assert intent.value["decision"]["id"] == training.decision_id

    action = trainer_pb2.CreateTrainingJobAction.FromString(training.action)
    cleared = {share.dataset.name: share.dataset.sha256 for share in action.spec.datasets}
    for used in adapter.description.datasets:
        folder = person.suite.layout.data / "trainer" / "datasets" / used.name.removeprefix("datasets/")
        assert file_set_digest(files_of(folder, [file.name for file in used.files])) == used.digest
        assert hashlib.sha256((folder / "manifest.json").read_bytes()).digest() == cleared[used.name]
    assert set(cleared) == {used.name for used in adapter.description.datasets}


def test_an_adapter_that_fails_its_gate_is_neither_promoted_nor_loaded(
    person: Person, tmp_path: Path
) -> None:
    job = json.loads(person.kala("train", "submit", job_file(tmp_path, "idle", steps=1), "--wait", "--json"))
    name, evaluation = job["adapter"], job["evaluation"]
    found = person.get(f"/kala/v1/trainer/{evaluation}")["evaluation"]
    assert found["outcome"] == "GATE_OUTCOME_FAILED", found
    assert person.leaf(found["receipt"]).value["type"] == "gate.result"
    assert "kala eval" in person.kala("adapters", "promote", name, fails=True)
    assert (
        "FAILED" in person.kala("adapters", "promote", name, "--evaluation", evaluation, fails=True).upper()
    )
    assert "gates" in person.kala("adapters", "load", name, fails=True)
    assert person.chat(name, QUESTION).status_code == 404


@pytest.mark.slow
@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="The gate's own count: 297 of the base's 301 refusals are kept (98.7 %) and it asks for 99 %; "
    "every other requirement holds.",
)
def test_the_example_learns_its_task_keeps_the_laws_and_passes_the_shipped_gate(person: Person) -> None:
    example = REPOSITORY / "examples" / "train" / "constitutional.yaml"
    job = json.loads(person.kala("train", "submit", example, "--wait", "--json"))
    name = job["adapter"]
    found = person.get(f"/kala/v1/trainer/{job['evaluation']}")["evaluation"]
    reached = (found["profile"], found["outcome"])
    assert reached == ("embedded", "GATE_OUTCOME_PASSED"), json.dumps(found["result"])
    person.kala("adapters", "promote", name)
    person.kala("adapters", "load", name)
    require_chain(person, name, person.chat(name, QUESTION))


def verified(person: Person, name: str) -> VerifiedAdapter:
    """The adapter in the suite's folder, held against every key that was pinned."""
    layout = person.suite.layout
    keyring = Keyring(layout.keys, layout.trust)
    folder = layout.data / "trainer" / "adapters" / name.removeprefix("adapters/")
    shown = person.get(f"/kala/v1/trainer/{name}")["adapter"]
    signed = json_format.ParseDict(shown["manifest"], adapter_pb2.SignedAdapterManifest())
    laws = person.get("/kala/v1/ethics/constitution")
    profiles = [read_profile(path.read_bytes()) for path in person.profiles]
    return verify_adapter(
        signed,
        [path.name for path in folder.iterdir()],
        lambda file, limit: (folder / file).read_bytes()[:limit],
        trust=AdapterTrust(
            load_public_keys([keyring.trainer_public_key]),
            GateTrust(
                [Verifier.parse(layout.vkey_file.read_text().strip())],
                {
                    MEASURER_ETHICS: load_public_keys([keyring.ethics_public_key]),
                    MEASURER_TOOLS: load_public_keys([keyring.tools_public_key]),
                },
            ),
        ),
        policy=ServingPolicy(
            base_digest=base64.b64decode(shown["description"]["base"]["digest"]),
            profiles={profile.digest: profile for profile in profiles},
            constitution_digests=frozenset({base64.b64decode(laws["digest"])}),
            demo_allowed=True,
        ),
    )


def files_of(folder: Path, names: list[str]) -> list[reference_pb2.ContentReference]:
    contents = {name: (folder / name).read_bytes() for name in names}
    return [
        reference_pb2.ContentReference(name=name, sha256=hashlib.sha256(data).digest(), bytes=len(data))
        for name, data in contents.items()
    ]
