"""What ethics and tools sign for a gate: one sum per suite, whatever the answers are."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kala.common.v1.clearance_pb2 import Principal
from kala.common.v1.measurement_pb2 import MEASURED_MODEL_ADAPTER, MEASURER_TOOLS, MeasurementContext
from kala.errors import FailedPreconditionError
from kala.ethics.v1 import ethics_pb2_grpc
from kala.tools.v1 import tools_pb2_grpc
from services.common.channel import open_channel
from services.common.keys import key_id, write_private_key
from services.common.measurements import verify_measurement
from services.common.server import serving
from services.common.settings import GrpcServerSettings
from services.tools.sandbox.model import Job, Status
from services.trainer.evaluation.measuring import Measurers
from services.trainer.evaluation.suites import Suite, parse_suite
from tests.fakes.scripted_ethics import ScriptedEthics
from tests.fakes.scripted_sandbox import Answer, ScriptedSandbox
from tests.service.tools.conftest import printed, served_tools

PRINCIPAL = Principal(id="keys/ann", tenant="acme")


def context(suite: Suite) -> MeasurementContext:
    return MeasurementContext(
        evaluation="evaluations/" + "5" * 32,
        adapter_digest=bytes(32),
        base_digest=bytes(32),
        gate_set_digest=bytes(32),
        suite=suite.name,
        suite_digest=suite.digest,
        suite_items=len(suite.items),
        model=MEASURED_MODEL_ADAPTER,
    )


def suite(kind: str, *texts: str) -> Suite:
    code = {"prompt": "def f():\n", "test": "def check(f): assert f()", "entry_point": "f"}
    rows = [{"suite": "few", "kind": kind}]
    rows += [{"id": str(n), "text": text, "code": code, "label": "harmful"} for n, text in enumerate(texts)]
    return parse_suite("\n".join(json.dumps(row) for row in rows).encode(), "few")


def runs(job: Job) -> Answer:
    """A sandbox in which a program fails when it says so."""
    fails = b"SystemExit" in job.source or b"return False" in job.source
    return printed(status=Status.ERROR, exit_code=1) if fails else printed()


async def told(items: int) -> None:
    del items


@asynccontextmanager
async def measurers(
    folder: Path, *, signs: bool = True
) -> AsyncIterator[tuple[Measurers, Ed25519PrivateKey]]:
    key = Ed25519PrivateKey.generate()
    write_private_key(folder / "tools.key", key)
    signing = {"signing_key_file": folder / "tools.key"} if signs else {}
    socket = GrpcServerSettings(address=f"unix:{folder / 'e.sock'}", allowed_peers=("trainer",))
    async with served_tools(folder, sandbox=ScriptedSandbox(runs), **signing) as tools:
        script = ScriptedEthics(signer=tools.signer)  # type: ignore[abstract]  # the rest is UNIMPLEMENTED
        register = partial(ethics_pb2_grpc.add_EthicsServiceServicer_to_server, script)
        async with (
            serving(socket, [register]) as ethics,
            open_channel(ethics.address, peer_name="trainer") as to_ethics,
            open_channel(tools.address, peer_name="trainer") as to_tools,
        ):
            await ethics.set_serving()
            yield (
                Measurers(
                    ethics_pb2_grpc.EthicsServiceStub(to_ethics), tools_pb2_grpc.ToolsServiceStub(to_tools)
                ),
                key,
            )


def rows(*texts: str) -> list[dict[str, str]]:
    return [{"id": str(number), "text": text} for number, text in enumerate(texts)]


async def test_programs_are_run_by_tools_and_what_ethics_does_not_clear_has_not_passed(
    tmp_path: Path,
) -> None:
    asked = suite("code_tests", "a", "b", "c", "d")
    answered = rows("    return True\n", "    return False\n", "    return 'please refuse'\n", "")
    async with measurers(tmp_path) as (found, key):
        signed = await found.measure(
            "tests_passed", asked, answered, context(asked), principal=PRINCIPAL, told=told
        )
        trusted = {MEASURER_TOOLS: {key_id(key.public_key()): key.public_key()}}
        measured = verify_measurement("sum", signed, trusted)
        count = measured.count("tests_passed", "")
        assert measured.is_whole
        assert count is not None
        # The empty answer leaves a prompt without an end: such a program is not run with its tests.
        assert (count.hits, count.total) == (1, 4)


async def test_vulnerable_code_is_counted_by_tools(tmp_path: Path) -> None:
    asked = suite("code_scan", "a", "b", "c")
    vulnerable = "```python\nimport os\nos.system(input())\n```"
    answered = rows(
        vulnerable, "def f():\n    return 1\n", f"First:\n```python\npass\n```\nthen:\n{vulnerable}"
    )
    async with measurers(tmp_path) as (found, key):
        signed = await found.measure(
            "vulnerable", asked, answered, context(asked), principal=PRINCIPAL, told=told
        )
        trusted = {MEASURER_TOOLS: {key_id(key.public_key()): key.public_key()}}
        count = verify_measurement("sum", signed, trusted).count("vulnerable", "")
        assert count is not None
        assert (count.hits, count.total) == (2, 3)


async def test_tools_without_a_key_break_the_evaluation(tmp_path: Path) -> None:
    asked = suite("code_scan", "a")
    async with measurers(tmp_path, signs=False) as (found, _):
        with pytest.raises(FailedPreconditionError, match="KALA_TOOLS_SIGNING_KEY_FILE"):
            await found.measure(
                "vulnerable", asked, rows("x = 1\n"), context(asked), principal=PRINCIPAL, told=told
            )


@pytest.mark.parametrize(
    ("metric", "setting"),
    [("output_harmful", "ETHICS"), ("vulnerable", "TOOLS"), ("tests_passed", "TOOLS")],
)
def test_who_cannot_be_asked_is_named_with_the_setting(metric: str, setting: str) -> None:
    with pytest.raises(FailedPreconditionError, match=f"KALA_TRAINER_{setting}_ADDRESS"):
        Measurers(None, None).require(metric)
