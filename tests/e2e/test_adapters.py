"""A signed adapter of the embedded demo, from the REST API to the answer, its record and its end."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf import json_format

from kala.audit.note import Signer
from kala.inference.v1 import inference_pb2
from kala.suite.keyring import Keyring
from services.common.keys import load_private_key, write_public_key
from services.inference.config import EMBEDDED_MODEL_DIR
from tests.e2e.suites import Suite, running_suite
from tests.fakes import adapters as fakes
from tests.fakes.tiny_adapters import TinyAdapter

pytestmark = pytest.mark.torch

MODULES = {"gpt_neox.layers.0.attention.query_key_value": (160, 480), "lm_head": (160, 1792)}
NAME = "adapters/tone@1"
BODY = {"model": "kala-demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}


@dataclass(frozen=True, slots=True)
class Rest:
    """The gateway, as an administrator calls it."""

    suite: Suite
    http: httpx.Client

    def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        return self.http.post(path, json=body, headers=headers)

    def load(self, adapter: TinyAdapter, folder: Path) -> httpx.Response:
        action = inference_pb2.LoadAdapterAction(
            adapter=adapter.name,
            backend="backends/demo",
            manifest=adapter.write(folder / "tone"),
            location="tone",
        )
        return self.post("/kala/v1/inference/adapters:load", json.loads(json_format.MessageToJson(action)))

    def leaf(self, answer: httpx.Response) -> dict[str, Any]:
        index = answer.json()["kala"]["receipt"]["index"]
        entry = self.http.get(f"/kala/v1/audit/entries/{index}").json()
        leaf: dict[str, Any] = json.loads(base64.b64decode(entry["entry"]["leaf"]))
        return leaf


@pytest.fixture
def rest(tmp_path: Path) -> Iterator[Rest]:
    """A suite that trusts the fakes' trainer and tools, and takes a demonstration's profile."""
    for name, private in (("trainer", fakes.TRAINER), ("tools", fakes.TOOLS)):
        write_public_key(tmp_path / f"{name}.pub", private.public_key())
    (tmp_path / "profile.json").write_bytes(fakes.profile_file(demo=True))
    pinned = {
        "KALA_INFERENCE_TRAINER_PUBLIC_KEYS": str(tmp_path / "trainer.pub"),
        "KALA_INFERENCE_TOOLS_PUBLIC_KEYS": str(tmp_path / "tools.pub"),
        "KALA_INFERENCE_GATE_PROFILES": str(tmp_path / "profile.json"),
        "KALA_INFERENCE_ADAPTERS_DIR": str(tmp_path / "adapters"),
    }
    with (
        running_suite(tmp_path / "state", **pinned) as suite,
        httpx.Client(
            base_url=suite.url, headers={"authorization": f"Bearer {suite.key}"}, timeout=60
        ) as http,
    ):
        yield Rest(suite, http)


def test_a_gated_adapter_serves_and_the_record_names_it(
    rest: Rest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    laws = rest.http.get("/kala/v1/ethics/constitution").json()
    monkeypatch.setattr(fakes, "CONSTITUTION", base64.b64decode(laws["digest"]))
    keyring = Keyring(rest.suite.layout.keys, rest.suite.layout.trust)
    adapter = TinyAdapter(EMBEDDED_MODEL_DIR, modules=MODULES, strength=0.01)
    adapter.world.profile = fakes.profile_file(demo=True)
    adapter.world.ethics = load_private_key(keyring.ethics_signing_key)
    adapter.world.tools = load_private_key(keyring.tools_signing_key)

    # Its gate is in another log than this suite's.
    refused = rest.load(adapter, tmp_path / "adapters")
    assert (refused.status_code, "proof" in refused.text) == (400, True), refused.text
    missing = rest.post("/v1/chat/completions", BODY, **{"x-kala-adapters": NAME})
    assert (missing.status_code, f"{NAME} is not loaded" in missing.text) == (404, True)

    adapter.world.log = Signer.parse(keyring.audit_log_key.read_text().strip())
    loaded = rest.load(adapter, tmp_path / "adapters")
    assert (loaded.status_code, loaded.json().get("adapter")) == (200, NAME), loaded.text
    answer = rest.post("/v1/chat/completions", BODY, **{"x-kala-adapters": NAME})
    assert answer.status_code == 200, answer.text
    assert rest.leaf(answer)["model"]["adapter"] == adapter.world.digest.hex()
    assert rest.leaf(rest.post("/v1/chat/completions", BODY))["model"]["adapter"] is None

    assert rest.post("/kala/v1/inference/adapters:unload", {"adapter": NAME}).status_code == 200
    gone = rest.post("/v1/chat/completions", BODY, **{"x-kala-adapters": NAME})
    assert gone.status_code == 404
