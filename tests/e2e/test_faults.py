"""Parts are killed while the suite serves: it fails closed, loses nothing acknowledged, and recovers by itself."""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from kala.audit.note import Verifier
from kala.audit.receipt import verify_receipt
from kala.client import KalaClient
from kala.errors import KalaError, NotFoundError, UnavailableError
from kala.replies import ChatReply
from kala.suite.processes import ProcessId, wait_until
from kala.target import Target
from tests.e2e.suites import Suite, kala, running_suite
from tests.fakes.lm_studio import FakeLMStudio, lm_studio

QUESTION = [{"role": "user", "content": "What is machine learning?"}]
RECOVERY_SECONDS = 30


@dataclass(frozen=True, slots=True)
class World:
    """A suite of its own for tests that break it, and what is behind it."""

    suite: Suite
    upstream: FakeLMStudio

    def ask(self) -> ChatReply:
        with self.client() as client:
            return client.chat(QUESTION)

    def client(self) -> KalaClient:
        """A client that retries without a pause: a test must see a failure while it lasts."""
        return KalaClient(Target(self.suite.url, self.suite.key), sleep=_never)

    def post(self) -> httpx.Response:
        """One chat, whatever comes of it."""
        return httpx.post(
            f"{self.suite.url}/v1/chat/completions",
            json={"model": "auto", "messages": QUESTION},
            headers={"authorization": f"Bearer {self.suite.key}"},
            timeout=60,
        )

    def kill(self, part: str) -> ProcessId:
        victim = self.suite.process(part)
        assert victim.send(signal.SIGKILL)
        return victim

    def wait_for_another(self, part: str, victim: ProcessId) -> None:
        assert wait_until(
            lambda: self.suite.is_ready(part, after=victim), timeout_seconds=RECOVERY_SECONDS
        ), part

    def wait_for_an_answer(self) -> None:
        assert wait_until(lambda: self.post().status_code == 200, timeout_seconds=RECOVERY_SECONDS)


def _never(_: float) -> None:
    pass


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with (
        lm_studio() as upstream,
        running_suite(
            tmp_path_factory.mktemp("faults") / "state", KALA_INFERENCE_LMSTUDIO_URL=upstream.url
        ) as suite,
    ):
        yield World(suite, upstream)


def proof_of(world: World, receipt_id: str) -> str:
    """The proof of a receipt, waiting for a spooled record to reach the log."""
    deadline = time.monotonic() + RECOVERY_SECONDS
    with world.client() as client:
        while True:
            try:
                return client.receipt(receipt_id)
            except (NotFoundError, UnavailableError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


def test_without_ethics_nothing_reaches_the_backend(world: World) -> None:
    world.ask()
    before = len(world.upstream.asked)
    victim = world.kill("ethics")
    answers = []
    while not world.suite.is_ready("ethics", after=victim):
        answer = world.post()
        if answer.status_code == 200:
            break
        answers.append(answer)
        assert len(world.upstream.asked) == before
    assert answers, "the kill came and went unnoticed"
    assert {answer.status_code for answer in answers} == {503}
    assert {answer.json()["error"]["code"] for answer in answers} == {"ethics_unavailable"}
    assert all(answer.headers.get("x-kala-receipt") for answer in answers), (
        "a refusal for want of a judge is a record"
    )
    world.wait_for_another("ethics", victim)
    world.wait_for_an_answer()


def test_killing_ethics_mid_stream_releases_nothing_unchecked_and_ends_the_stream(world: World) -> None:
    world.upstream.gate.clear()
    pieces: list[str] = []
    problem: list[KalaError] = []

    def read() -> None:
        try:
            with world.client() as client, client.stream(QUESTION) as answer:
                pieces.extend(answer)
        except KalaError as error:
            problem.append(error)

    before = len(world.upstream.asked)
    reader = threading.Thread(target=read)
    reader.start()
    assert wait_until(lambda: len(world.upstream.asked) > before, timeout_seconds=10)
    victim = world.kill("ethics")
    assert wait_until(lambda: not victim.is_alive(), timeout_seconds=5)
    world.upstream.gate.set()
    reader.join(60)
    assert not reader.is_alive()
    assert problem, "an unchecked answer must not look complete"
    assert "examples." not in "".join(pieces)
    world.wait_for_another("ethics", victim)
    world.wait_for_an_answer()


def test_killing_audit_loses_nothing_acknowledged(world: World) -> None:
    acknowledged = [world.ask() for _ in range(3)]
    victim = world.kill("audit")
    while not world.suite.is_ready("audit", after=victim):
        answer = world.post()
        if answer.status_code == 200:
            acknowledged.append(ChatReply.of(answer.json()))
        else:
            assert answer.status_code == 503
    assert any(reply.receipt and reply.receipt.status == "SPOOLED" for reply in acknowledged), (
        "nothing was spooled"
    )
    world.wait_for_another("audit", victim)
    acknowledged.append(world.ask())
    verifiers = [Verifier.parse(world.suite.layout.vkey_file.read_text())]
    for reply in acknowledged:
        assert reply.receipt is not None
        verified = verify_receipt(proof_of(world, reply.receipt.id), verifiers)
        assert verified.leaf.receipt_id == reply.receipt.id
    checked = kala("audit", "verify", "--state", world.suite.state)
    assert checked.returncode == 0, checked.stderr


def test_a_gateway_killed_mid_stream_comes_back_with_its_keys_and_the_log_tells_of_the_intent(
    world: World,
) -> None:
    def gaps() -> list[dict[str, str]]:
        told = kala("audit", "gaps", "--intent-seconds", "0", "--json", "--state", world.suite.state)
        assert told.returncode in {0, 1}, told.stderr
        return [gap for gap in json.loads(told.stdout)["gaps"] if gap["kind"] == "GAP_KIND_UNMATCHED_INTENT"]

    known = {gap["entry"] for gap in gaps()}
    world.upstream.gate.clear()
    got: list[bytes] = []

    def read() -> None:
        body = {"model": "auto", "messages": QUESTION, "stream": True}
        headers = {"authorization": f"Bearer {world.suite.key}"}
        url = f"{world.suite.url}/v1/chat/completions"
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.stream("POST", url, json=body, headers=headers, timeout=60) as response,
        ):
            got.extend(response.iter_bytes())

    before = len(world.upstream.asked)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert wait_until(lambda: len(world.upstream.asked) > before, timeout_seconds=10)
        assert wait_until(lambda: {gap["entry"] for gap in gaps()} > known, timeout_seconds=20)
        victim = world.kill("gateway")
        reader.join(30)
        assert not reader.is_alive()
    finally:
        world.upstream.gate.set()
    assert b"[DONE]" not in b"".join(got)
    assert b"examples" not in b"".join(got)
    world.wait_for_another("gateway", victim)
    world.wait_for_an_answer()
    assert world.ask().allowed
    # What was answered afterwards has its outcome; the one that was killed has none, and is the only one told of.
    (lost,) = {gap["entry"] for gap in gaps()} - known
    with world.client() as client:
        entry = client.call("GET", f"/kala/v1/audit/{lost}")["entry"]
    assert json.loads(base64.b64decode(entry["leaf"]))["type"] == "chat.intent"


def test_a_killed_inference_comes_back(world: World) -> None:
    victim = world.kill("inference")
    assert world.post().status_code in {200, 503}
    world.wait_for_another("inference", victim)
    world.wait_for_an_answer()


def test_a_backend_without_a_model_is_a_clear_error(world: World) -> None:
    world.upstream.loaded = False
    try:
        with world.client() as client:
            client.call("POST", "/kala/v1/inference/backends/lmstudio:check", body={})
        assert wait_until(lambda: world.post().status_code != 200, timeout_seconds=RECOVERY_SECONDS)
        answer = world.post()
        assert answer.status_code in {400, 503}
        assert "lms load" in json.dumps(answer.json()) or "load" in answer.json()["error"]["message"].lower()
    finally:
        world.upstream.loaded = True
    world.wait_for_an_answer()
