"""RepairCode and GenerateCode over gRPC: claimed, proved by a new scan and by tests, recorded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kala.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError
from kala.inference.v1 import inference_pb2, inference_pb2_grpc
from kala.tools.v1 import code_pb2, execution_pb2
from kala.tools.v1 import tools_pb2 as pb
from services.common.clearance import ClearanceVerifier, guard_for
from services.common.interceptors import CallPolicy
from services.common.server import serving
from services.common.settings import GrpcServerSettings
from services.common.status import translated
from services.tools.sandbox.model import Status
from tests.fakes.clearances import FakeEthics
from tests.fakes.scripted_inference import ScriptedInference, route, saying, text
from tests.fakes.scripted_sandbox import Answer, ScriptedSandbox
from tests.service.tools.conftest import BEN, Tools, seal, served_tools

REPAIR = "/kala.tools.v1.ToolsService/RepairCode"
GENERATE = "/kala.tools.v1.ToolsService/GenerateCode"
CUT = inference_pb2.ChatResponse(finish=inference_pb2.ChatFinish(reason=inference_pb2.FINISH_REASON_LENGTH))
CHAT = "/kala.inference.v1.InferenceService/Chat"

LOOSE = """\
import yaml
import tempfile


def read(text):
    # Settings of a user.
    return yaml.load(text, Loader=yaml.Loader)  # plain


def scratch():
    return tempfile.mktemp()
"""
TESTS = code_pb2.CodeTests(
    files=[code_pb2.CodeFile(path="test_it.py", content="import main\n")],
    command=["python3", "-m", "unittest", "test_it"],
)


async def repair(tools: Tools, action: pb.RepairCodeAction, **sealing: Any) -> code_pb2.RepairOutcome:
    sealed = seal(tools.signer, action, audience=REPAIR, **sealing)
    with translated():
        response: pb.RepairCodeResponse = await tools.stub.RepairCode(pb.RepairCodeRequest(sealed=sealed))
    return response.outcome


def loose(**fields: Any) -> pb.RepairCodeAction:
    return pb.RepairCodeAction(files=[code_pb2.CodeFile(path="main.py", content=LOOSE)], **fields)


async def test_findings_go_away_and_the_proof_says_how(tools: Tools) -> None:
    outcome = await repair(tools, loose())
    assert {each.rewrite for each in outcome.repairs} == {
        "kala.rewrite.yaml_safe_load",
        "kala.rewrite.named_temporary_file",
    }
    assert outcome.before.findings
    assert not outcome.after.findings
    (file,) = outcome.files
    assert "    # Settings of a user.\n    return yaml.safe_load(text)  # plain\n" in file.content
    assert "-    return yaml.load(text, Loader=yaml.Loader)  # plain\n" in outcome.diff
    assert outcome.diff.startswith("--- a/main.py\n+++ b/main.py\n")
    (digest,) = outcome.digests
    assert (digest.name, digest.bytes) == ("main.py", len(file.content))
    assert not outcome.HasField("tests_before")
    for each in outcome.repairs:
        span = each.span
        assert LOOSE.encode()[span.start_byte : span.end_byte].decode() == each.before
        assert each.note
    (facts,) = tools.logged("tools.result")
    assert dict(facts["attributes"])["code.repairs"] == str(len(outcome.repairs))
    assert facts["action"]["rpc"] == REPAIR


async def test_only_the_asked_findings_are_touched(tools: Tools) -> None:
    before = (await repair(tools, loose())).before
    (wanted,) = (each.fingerprint for each in before.findings if "temporary" in each.rule)
    outcome = await repair(tools, loose(fingerprints=[wanted]))
    assert [each.fingerprint for each in outcome.repairs] == [wanted]
    assert "yaml.load(" in outcome.files[0].content
    with pytest.raises(InvalidArgumentError, match="fingerprints"):
        await repair(tools, loose(fingerprints=["f" * 32]))


async def test_what_is_left_has_a_reason(tools: Tools) -> None:
    code = "import pickle\nfrom flask import request\n\n\ndef f():\n    return pickle.loads(request.data)\n"
    outcome = await repair(
        tools, pb.RepairCodeAction(files=[code_pb2.CodeFile(path="main.py", content=code)])
    )
    assert outcome.files[0].content == code
    assert outcome.diff == ""
    assert {each.fingerprint for each in outcome.unrepaired} == {
        each.fingerprint for each in outcome.before.findings
    }
    assert any("JSON" in each.reason for each in outcome.unrepaired)


async def test_tests_run_before_and_after_beside_the_code(tools: Tools) -> None:
    outcome = await repair(tools, loose(tests=TESTS))
    assert outcome.tests_before.passed
    assert outcome.tests_after.passed
    assert outcome.tests_after.stdout_tail == "42\n"
    assert outcome.tests_before.run != outcome.tests_after.run
    assert outcome.tests_after.isolation.tier == execution_pb2.ISOLATION_TIER_BUBBLEWRAP
    assert tools.sandbox is not None
    assert len(tools.sandbox.jobs) == 2
    assert all(b"'python3' '-m' 'unittest' 'test_it'" in job.source for job in tools.sandbox.jobs)
    listed = await tools.ask("ListRuns", pb.ListRunsRequest(tool="code_tests"))
    assert [run.status for run in listed.runs] == [execution_pb2.RUN_STATUS_OK] * 2


async def test_a_test_command_that_the_policy_refuses_runs_nothing(tools: Tools) -> None:
    tests = code_pb2.CodeTests(command=["curl", "http://example.org"])
    outcome = await repair(tools, loose(tests=tests))
    assert outcome.tests_before.status == execution_pb2.RUN_STATUS_REFUSED
    assert "curl" in outcome.tests_before.stderr_tail
    assert not outcome.tests_after.passed
    assert tools.sandbox is not None
    assert not tools.sandbox.jobs
    assert outcome.repairs, "tests that never passed break nothing"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"files": []}, "files"),
        ({"files": [code_pb2.CodeFile(path="../a.py")]}, "path"),
        ({"tests": code_pb2.CodeTests()}, "tests.command"),
        (
            {"tests": code_pb2.CodeTests(files=[code_pb2.CodeFile(path="main.py")], command=["ls"])},
            "tests.files",
        ),
    ],
)
async def test_what_is_out_of_limits_is_named_and_not_claimed(
    tools: Tools, fields: dict[str, Any], named: str
) -> None:
    action = loose(**{key: value for key, value in fields.items() if key != "files"})
    if "files" in fields:
        del action.files[:]
        action.files.extend(fields["files"])
    with pytest.raises(InvalidArgumentError, match=named):
        await repair(tools, action)


# GenerateCode


@asynccontextmanager
async def served_inference(ethics: FakeEthics) -> AsyncIterator[tuple[ScriptedInference, str]]:
    inference = ScriptedInference()  # type: ignore[abstract]  # the rest is UNIMPLEMENTED
    verifier = ClearanceVerifier({ethics.signer.key_id: ethics.signer.public_key})
    register = partial(inference_pb2_grpc.add_InferenceServiceServicer_to_server, inference)
    settings = GrpcServerSettings(
        address="127.0.0.1:0", allowed_peers=("tools",), metrics_port=None, drain_seconds=0.2
    )
    policy = CallPolicy(guard_for=guard_for(verifier, [inference_pb2.DESCRIPTOR]))
    async with serving(settings, [register], policy=policy) as server:
        await server.set_serving()
        yield inference, server.address


@asynccontextmanager
async def coder(folder: Path, **script: Any) -> AsyncIterator[tuple[Tools, ScriptedInference, FakeEthics]]:
    ethics = FakeEthics()
    async with served_inference(ethics) as (inference, address):
        sandbox = ScriptedSandbox(script=lambda _: Answer(b"ran\n", **script))
        async with served_tools(folder, sandbox=sandbox, inference_address=address) as tools:
            yield tools, inference, ethics


async def generate(
    tools: Tools, ethics: FakeEthics, *, presenter: str = "local:tools", **fields: Any
) -> pb.GenerateCodeResponse:
    chat = inference_pb2.ChatAction(
        messages=[
            inference_pb2.ChatMessage(
                role=inference_pb2.ROLE_USER, content=[inference_pb2.ContentPart(text="Read YAML.")]
            )
        ]
    )
    generation = seal(ethics.signer, chat, audience=CHAT, presenter=presenter)
    action = pb.GenerateCodeAction(
        **{
            "task": "Read YAML.",
            "language": execution_pb2.LANGUAGE_PYTHON,
            "generation": generation,
            **fields,
        }
    )
    sealed = seal(tools.signer, action, audience=GENERATE)
    with translated():
        response: pb.GenerateCodeResponse = await tools.stub.GenerateCode(
            pb.GenerateCodeRequest(sealed=sealed)
        )
    return response


async def test_code_is_written_scanned_repaired_tested(tmp_path: Path) -> None:
    async with coder(tmp_path) as (tools, inference, ethics):
        inference.script = lambda _: saying("Here it is:\n```python\n", LOOSE, "```\nEnjoy.")
        made = await generate(tools, ethics, repair=True, tests=TESTS)
        (facts,) = tools.logged("tools.result")
    assert made.generated.content == LOOSE
    assert "yaml.safe_load" in made.code.content
    assert made.code.path == "main.py"
    assert made.accepted
    assert not made.reasons
    assert made.outcome.tests_after.passed
    assert made.model == "fake-model"
    assert made.generation_id == "d" * 32
    assert dict(facts["attributes"])["code.accepted"] == "true"


async def test_without_repair_both_scans_are_one_and_stand_against_the_code(tmp_path: Path) -> None:
    async with coder(tmp_path) as (tools, inference, ethics):
        inference.script = lambda _: saying(f"```python\n{LOOSE}```")
        made = await generate(tools, ethics)
    assert made.code == made.generated
    assert made.outcome.before == made.outcome.after
    assert not made.accepted
    assert any("yaml" in reason or "deserialisation" in reason for reason in made.reasons)


async def test_failing_tests_and_missing_code_are_not_accepted(tmp_path: Path) -> None:
    async with coder(tmp_path, status=Status.ERROR, exit_code=1) as (tools, inference, ethics):
        inference.script = lambda _: saying("```python\nprint(1)\n```")
        failed = await generate(tools, ethics, repair=True, tests=TESTS)
        inference.script = lambda _: saying("I would rather not.")
        nothing = await generate(tools, ethics, tests=TESTS)
        inference.script = lambda _: [
            route(),
            text("```python\nx = 1\n"),
            CUT,
        ]
        cut = await generate(tools, ethics)
    assert list(failed.reasons) == ["the tests did not pass (exit code 1)"]
    assert not nothing.HasField("generated")
    assert list(nothing.reasons) == ["the model's answer holds no code"]
    assert not cut.accepted


async def test_a_prompt_that_was_not_cleared_for_tools_is_refused_by_inference(tmp_path: Path) -> None:
    async with coder(tmp_path) as (tools, inference, ethics):
        with pytest.raises(Exception) as caught:
            await generate(tools, ethics, presenter="local:gateway")
        assert getattr(caught.value, "reason", "") == "CLEARANCE_WRONG_PRESENTER"
        assert not inference.chats
        stranger = seal(
            ethics.signer, inference_pb2.ChatAction(), audience=CHAT, principal=BEN, presenter="local:tools"
        )
        with pytest.raises(InvalidArgumentError, match="somebody else"):
            await generate(tools, ethics, generation=stranger)
        with pytest.raises(InvalidArgumentError, match="generation"):
            await generate(tools, ethics, generation=None)
        inference.script = lambda _: [route(), UnavailableError("gone")]
        with pytest.raises(UnavailableError):
            await generate(tools, ethics)
        assert tools.logged("tools.result")[-1]["result"]["status"] == "error"


async def test_without_inference_nothing_is_claimed(tools: Tools) -> None:
    with pytest.raises(FailedPreconditionError) as caught:
        await generate(tools, FakeEthics())
    assert caught.value.reason == "INFERENCE_NOT_DEPLOYED"
    assert not tools.logged("tools.claim")
