"""The tools service in lives of its own: as root, without isolation, beside a user's directory, and started again."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kala.errors import FailedPreconditionError
from kala.tools.v1 import code_pb2
from kala.tools.v1 import tools_pb2 as pb
from tests.fakes.tools_process import process
from tests.service.tools.conftest import python
from tests.tools_runtime import (
    unprivileged_directory,
)

pytestmark = [
    pytest.mark.skipif(not Path("/usr/bin/bwrap").exists(), reason="bubblewrap is not installed"),
    pytest.mark.asyncio(loop_scope="module"),
]


async def test_it_refuses_to_run_as_root(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can try")
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "services.tools"],
        env={"PATH": "/usr/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 2
    assert "does not run as root" in ended.stderr


async def test_a_private_suite_shows_a_directory_read_only(tmp_path: Path) -> None:
    with unprivileged_directory() as shown, unprivileged_directory() as other_home:
        (shown / "notes.txt").write_text("remember")
        (shown / "notes.txt").chmod(0o644)
        async with process(tmp_path, other_home, ALLOW_HOST_DIRECTORY="true", POOL_SLOTS="0") as (tools, _):
            request = pb.CreateWorkspaceRequest(host_directory=str(shown))
            name = (await tools.ask("CreateWorkspace", request)).workspace.name
            code = """
print(open('notes.txt').read())
try:
    open('notes.txt', 'w')
except OSError as error:
    print(type(error).__name__)
"""
            ran = await tools.execute(python(code, workspace=name))
            assert ran.status == "OK", ran.exit
            with pytest.raises(Exception, match="no sandbox may see"):
                await tools.ask(
                    "CreateWorkspace", pb.CreateWorkspaceRequest(host_directory=str(other_home / "state"))
                )
        assert ran.stdout.splitlines()[0] == b"remember"
        assert ran.stdout.splitlines()[1] in {b"OSError", b"PermissionError"}
        assert (shown / "notes.txt").read_text() == "remember"


async def test_where_no_tier_holds_the_service_answers_why_and_a_probe_hears_no(tmp_path: Path) -> None:
    with unprivileged_directory() as home:
        async with process(tmp_path, home, TIERS="kubernetes") as (tools, _):
            with pytest.raises(FailedPreconditionError) as caught:
                await tools.execute(python())
            listed = await tools.ask("ListTools", pb.ListToolsRequest())
            files = [code_pb2.CodeFile(path="a.py", content="print(1)\n")]
            scanned = await tools.ask("ValidateCode", pb.ValidateCodeRequest(files=files))
            async with grpc.aio.insecure_channel(f"unix:{home}/tools.sock") as channel:
                health = health_pb2_grpc.HealthStub(channel)
                whole = await health.Check(health_pb2.HealthCheckRequest())
                by_name = await health.Check(
                    health_pb2.HealthCheckRequest(service="kala.tools.v1.ToolsService")
                )
    assert caught.value.reason == "NO_ISOLATION"
    for tier in ("kubernetes", "bubblewrap", "landlock", "runsc"):
        assert f"{tier}: " in caught.value.message
    assert [tool.name for tool in listed.tools if tool.available] == ["filesystem"]
    assert scanned.clean
    assert whole.status == health_pb2.HealthCheckResponse.SERVING
    assert by_name.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_workspace_outlives_a_restart(tmp_path: Path) -> None:
    with unprivileged_directory() as home:
        async with process(tmp_path, home, POOL_SLOTS="0") as (tools, _):
            name = (await tools.ask("CreateWorkspace", pb.CreateWorkspaceRequest())).workspace.name
            await tools.write(
                pb.WriteFileAction(workspace=name, path="kept", data=b"1", mode=pb.WRITE_MODE_CREATE)
            )
        (tmp_path / "again").mkdir()
        async with process(tmp_path / "again", home, POOL_SLOTS="0") as (tools, _):
            listed = await tools.ask("ListFiles", pb.ListFilesRequest(workspace=name))
    assert [each.path for each in listed.files] == ["kept"]
