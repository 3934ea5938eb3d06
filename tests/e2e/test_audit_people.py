"""What people do with the log of a running suite: verify it elsewhere, follow it, read it for a reason, erase a person."""

from __future__ import annotations

import json
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.suites import Suite, environment, kala

REASON = ("--reason", "asked for by letter 12")


def ask(suite: Suite, person: str) -> dict[str, Any]:
    """One chat in a person's name: what the gateway says of its records."""
    body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "user": person}
    reply = httpx.post(
        f"{suite.url}/v1/chat/completions",
        json={"model": "auto", **body},
        headers={"authorization": f"Bearer {suite.key}"},
        timeout=60,
    )
    reply.raise_for_status()
    found: dict[str, Any] = reply.json()["kala"]["receipt"]
    return found


def own(suite: Suite, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command of the suite's owner."""
    return kala("audit", *arguments, "--state", suite.state)


class Elsewhere:
    """A machine that has the public key and what it was sent, and nothing else."""

    def __init__(self, suite: Suite, home: Path) -> None:
        self.home = home
        self.vkey = Path(shutil.copy(suite.layout.vkey_file, home / "audit.vkey"))

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        there = environment(HOME=str(self.home), KALA_STATE=str(self.home / "none"))
        return kala("audit", *arguments, "--vkey", self.vkey, env=there)


@pytest.fixture
def elsewhere(suite: Suite, tmp_path: Path) -> Elsewhere:
    (tmp_path / "elsewhere").mkdir()
    return Elsewhere(suite, tmp_path / "elsewhere")


@pytest.mark.parametrize("form", ["jsonl", "ocsf", "cef", "otlp"])
def test_an_export_is_verified_on_another_machine_with_the_public_key_alone(
    suite: Suite, elsewhere: Elsewhere, form: str
) -> None:
    ask(suite, "somebody")
    data = elsewhere.home / f"log.{form}"
    done = own(suite, "export", data, "--format", form)
    assert done.returncode == 0, done.stderr
    verified = elsewhere.run("verify", data, "--json")
    facts = json.loads(verified.stdout)
    assert (verified.returncode, facts["result"], facts["is_whole_log"]) == (0, "good", True)
    assert facts["proved_line_by_line"] is (form == "jsonl")
    changed = bytearray(data.read_bytes())
    changed[len(changed) // 2] ^= 1
    data.write_bytes(changed)
    tampered = elsewhere.run("verify", data)
    assert (tampered.returncode, tampered.stdout) == (1, "")
    assert tampered.stderr.startswith("tampered: ")


def test_a_log_is_followed_from_another_machine_over_its_address(suite: Suite, elsewhere: Elsewhere) -> None:
    token = Path(shutil.copy(suite.layout.keys / "audit-tiles.token", elsewhere.home / "token"))
    address = str(suite.started["parts"]["audit"]["metrics_url"]).removesuffix("/metrics")
    pin = ("--token-file", token, "--remember", elsewhere.home / "pin")
    ask(suite, "somebody")
    done = elsewhere.run("verify", address, "--leaves", *pin)
    assert done.returncode == 0, done.stderr
    older = Path(shutil.copy(elsewhere.home / "pin", elsewhere.home / "older"))
    ask(suite, "somebody")
    watched = elsewhere.run("monitor", address, "--once", "--json", *pin)
    assert json.loads(watched.stdout)["relation"] == "consistent"
    assert elsewhere.run("verify", address, "--resume", *pin).returncode == 0
    assert elsewhere.run("diff", older, elsewhere.home / "pin", "--log", address, *pin[:2]).returncode == 0
    # The gateway tells checkpoints and their proofs to every key, also to one that may read no entry.
    key = kala(
        "keys", "create", "a watcher", "--scope", "chat", "--ttl", "600", "--state", suite.state
    ).stdout.strip()
    public = elsewhere.run("diff", older, "--url", suite.url, "--key", key, "--json")
    assert json.loads(public.stdout)["result"] == "consistent", public.stderr
    watched = elsewhere.run(
        "monitor", "--once", "--url", suite.url, "--key", key, "--remember", older, "--json"
    )
    assert json.loads(watched.stdout)["relation"] == "consistent", watched.stderr
    assert elsewhere.run("verify", address).returncode == 2


def test_content_is_read_for_a_reason_until_its_person_is_erased(suite: Suite, tmp_path: Path) -> None:
    person = f"person-{uuid.uuid4()}"
    receipt = ask(suite, person)
    content = own(suite, "read", receipt["id"], "released", *REASON)
    assert content.returncode == 0, content.stderr
    assert content.stdout
    assert own(suite, "read", receipt["id"], "released", "--reason", "short").returncode == 1

    held = own(suite, "hold", "place", "--person", person, *REASON, "--json")
    hold = json.loads(held.stdout)["hold"]
    out = tmp_path / "erasure.json"
    erase = ("erase", "--person", person, *REASON, "--out", out, "--yes")
    refused = own(suite, *erase)
    assert refused.returncode == 1
    assert hold in refused.stderr
    assert not out.exists()
    assert own(suite, "hold", "release", hold, *REASON).returncode == 0

    erased = own(suite, *erase)
    assert erased.returncode == 0, erased.stderr
    assert "audit.payloads" in erased.stdout
    assert own(suite, "certificate", out).returncode == 0
    assert own(suite, "read", receipt["id"], "released", *REASON).returncode == 1
    assert own(suite, "verify").returncode == 0


def test_nothing_is_missing_from_a_log_that_nothing_happened_to(suite: Suite) -> None:
    ask(suite, "somebody")
    done = own(suite, "gaps")
    assert (done.returncode, done.stdout) == (0, "no gaps\n"), done.stderr
