"""ValidateCode and measurements over gRPC."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kala.common.v1.measurement_pb2 import MEASURED_MODEL_ADAPTER, MEASURER_TOOLS, MeasurementContext
from kala.errors import FailedPreconditionError, InvalidArgumentError, PermissionDeniedError
from kala.tools.v1 import code_pb2, tools_pb2_grpc
from kala.tools.v1 import tools_pb2 as pb
from services.common.channel import open_channel
from services.common.keys import key_id, write_private_key
from services.common.measurements import verify_measurement
from services.common.status import translated
from services.tools.sandbox.model import Status
from tests.fakes.scripted_sandbox import ScriptedSandbox
from tests.service.tools.conftest import Tools, printed, python, seal, served_tools

INSECURE = "import subprocess\n\ndef run(request):\n    subprocess.run(request.args['command'], shell=True)\n"


def context(**fields: object) -> MeasurementContext:
    return MeasurementContext(
        **{
            "evaluation": "evaluations/" + "e" * 32,
            "adapter_digest": b"a" * 32,
            "base_digest": b"b" * 32,
            "gate_set_digest": b"g" * 32,
            "suite": "code_tests",
            "suite_digest": b"s" * 32,
            "suite_items": 3,
            "model": MEASURED_MODEL_ADAPTER,
            **fields,
        }
    )


async def test_insecure_code_is_found_and_clean_code_is_clean(tools: Tools) -> None:
    files = [code_pb2.CodeFile(path="app.py", content=INSECURE)]
    found = await tools.ask("ValidateCode", pb.ValidateCodeRequest(files=files))
    assert not found.clean
    assert 78 in {cwe for finding in found.report.findings for cwe in finding.cwe}
    assert found.report.rules_digest
    clean = [code_pb2.CodeFile(path="add.py", content="def add(a: int, b: int) -> int:\n    return a + b\n")]
    assert (await tools.ask("ValidateCode", pb.ValidateCodeRequest(files=clean))).clean


async def test_code_that_cannot_be_parsed_is_not_clean(tools: Tools) -> None:
    files = [code_pb2.CodeFile(path="broken.py", content="def (:\n")]
    said = await tools.ask("ValidateCode", pb.ValidateCodeRequest(files=files))
    assert said.report.problems
    assert not said.clean


async def test_a_path_out_of_the_project_is_named(tools: Tools) -> None:
    files = [code_pb2.CodeFile(path="../app.py", content="")]
    with pytest.raises(InvalidArgumentError, match=r"files\[0\]\.path"):
        await tools.ask("ValidateCode", pb.ValidateCodeRequest(files=files))


async def test_measurements_are_signed_for_the_trainer_and_add_up(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    write_private_key(tmp_path / "tools.key", key)
    answers = iter([printed(), printed(status=Status.ERROR, exit_code=1), printed()])
    async with (
        served_tools(
            tmp_path,
            sandbox=ScriptedSandbox(lambda _: next(answers)),
            signing_key_file=tmp_path / "tools.key",
        ) as tools,
        open_channel(tools.address, peer_name="trainer") as channel,
    ):
        trainer = tools_pb2_grpc.ToolsServiceStub(channel)
        parts = []
        for item in range(3):
            action = python(measurement=context(first_item=item))
            sealed = seal(tools.signer, action, presenter="local:trainer")
            with translated():
                events = [event async for event in trainer.Execute(pb.ExecuteRequest(sealed=sealed))]
            parts.append(events[-1].exit.measurement)
        with translated():
            total = (await trainer.SumMeasurements(pb.SumMeasurementsRequest(parts=parts))).sum
        with pytest.raises(InvalidArgumentError), translated():
            await trainer.SumMeasurements(pb.SumMeasurementsRequest(parts=[parts[0], parts[2]]))
        parts[0].signature = bytes(64)
        with pytest.raises(InvalidArgumentError), translated():
            await trainer.SumMeasurements(pb.SumMeasurementsRequest(parts=parts))
    trusted = {MEASURER_TOOLS: {key_id(key.public_key()): key.public_key()}}
    verified = verify_measurement("sum", total, trusted)
    count = verified.count("tests_passed", "")
    assert count is not None
    assert (count.hits, count.total) == (2, 3)
    assert verified.is_whole


async def test_a_file_that_could_not_be_read_counts_as_vulnerable(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    write_private_key(tmp_path / "tools.key", key)
    hidden = f"x = '{'a' * 30_000}'\nimport os\nos.system(input())\n"
    texts = ["print(1)\n", hidden, "import os\nos.system(input())\n"]
    files = [code_pb2.CodeFile(path=f"{number}.py", content=text) for number, text in enumerate(texts)]
    async with (
        served_tools(
            tmp_path, sandbox=ScriptedSandbox(lambda _: printed()), signing_key_file=tmp_path / "tools.key"
        ) as tools,
        open_channel(tools.address, peer_name="trainer") as channel,
    ):
        trainer = tools_pb2_grpc.ToolsServiceStub(channel)
        with translated():
            said = await trainer.ValidateCode(pb.ValidateCodeRequest(files=files, measurement=context()))
    trusted = {MEASURER_TOOLS: {key_id(key.public_key()): key.public_key()}}
    count = verify_measurement("scan", said.measurement, trusted).count("vulnerable", "")
    assert count is not None
    assert (count.hits, count.total) == (2, 3)


async def test_without_a_key_nothing_is_measured(tmp_path: Path) -> None:
    async with (
        served_tools(tmp_path, sandbox=ScriptedSandbox(lambda _: printed())) as tools,
        open_channel(tools.address, peer_name="trainer") as channel,
    ):
        trainer = tools_pb2_grpc.ToolsServiceStub(channel)
        sealed = seal(tools.signer, python(measurement=context()), presenter="local:trainer")
        with pytest.raises(FailedPreconditionError, match="SIGNING_KEY_FILE"), translated():
            [event async for event in trainer.Execute(pb.ExecuteRequest(sealed=sealed))]


async def test_the_gateway_gets_no_measurement(tools: Tools) -> None:
    files = [code_pb2.CodeFile(path="a.py", content="")]
    with pytest.raises(PermissionDeniedError):
        await tools.ask("ValidateCode", pb.ValidateCodeRequest(files=files, measurement=context()))


async def test_a_task_gets_hints_for_the_prompt(tools: Tools) -> None:
    asked = pb.HintVulnerabilitiesRequest(task="Look a user up in a SQL database", frameworks=["sqlite3"])
    said = await tools.ask("HintVulnerabilities", asked)
    assert 89 in said.hints[0].cwe
    assert "CWE-89" in said.prompt_text
    assert not (
        await tools.ask("HintVulnerabilities", pb.HintVulnerabilitiesRequest(task="Add two numbers"))
    ).hints
    with pytest.raises(InvalidArgumentError, match="max_hints"):
        await tools.ask("HintVulnerabilities", pb.HintVulnerabilitiesRequest(task="Add", max_hints=17))
