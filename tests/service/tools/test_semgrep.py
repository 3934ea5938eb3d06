"""semgrep's process: asked for by name only, bounded, and gone with its caller."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from services.tools.code.model import EngineName, ScanOptions, SourceFile
from services.tools.scanning import Scanning
from services.tools.semgrep import Semgrep
from tests.service.tools.conftest import until

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "tests" / "fixtures" / "code_semgrep"
INSTALLED = ROOT / ".venv-semgrep" / "bin" / "semgrep"
FILES = [
    SourceFile("views.py", (FOLDER / "views.py.txt").read_text("utf-8")),
    SourceFile("web/server.js", (FOLDER / "server.js").read_text("utf-8")),
    SourceFile("web/stopped.py", (FOLDER / "broken.py.txt").read_text("utf-8")),
]
BY_NAME = ScanOptions(engines=frozenset({EngineName.SEMGREP, EngineName.TAINT}))

Open = Callable[..., Awaitable[Scanning]]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Open]:
    """Open scanners whose semgrep is a shell script."""
    found: list[Scanning] = []

    async def open_one(script: str, **limits: float) -> Scanning:
        program = tmp_path / "semgrep"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        found.append(Scanning(semgrep=Semgrep(program, **limits)))  # type: ignore[arg-type] # limits by name
        return found[-1]

    yield open_one
    for each in found:
        await each.aclose()


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_what_it_says_joins_what_the_other_engines_say(opened: Open) -> None:
    scanning = await opened(f"cat '{FOLDER}/answer.json'")
    report = await scanning.scan(FILES, BY_NAME)

    rules = [(finding.span.path, finding.rule) for finding in report.findings]
    assert ("views.py", "kala.semgrep.python-missing-authentication") in rules
    assert ("views.py", "kala.python.sql_injection") in rules
    assert ("views.py", "kala.semgrep.python-sql-injection") not in rules, "one weakness is told once"
    assert report.findings == tuple(
        sorted(report.findings, key=lambda each: (each.span.path, each.span.start_byte, each.rule))
    )
    assert any(each.startswith("semgrep 1.182.0 with kala rules ") for each in report.engines)
    assert EngineName.SEMGREP in {problem.engine for problem in report.problems}


async def test_it_is_not_started_unless_it_is_asked_for(opened: Open, tmp_path: Path) -> None:
    scanning = await opened(f"touch '{tmp_path}/started'")
    assert (await scanning.scan(FILES[:1], ScanOptions())).findings
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    ("script", "limits", "words"),
    [
        ("exec sleep 60", {"seconds": 0.5}, "ended after 0.5 s"),
        ("exit 2", {}, "status 2"),
        ("kill -9 $$", {}, "status -9"),
        ("exec /no/such/program", {}, "KALA_TOOLS_SEMGREP"),
        ("echo '{}'", {}, "no usable report"),
        ("yes", {"max_output_bytes": 10_000}, "longer than 10000 bytes"),
    ],
)
async def test_what_goes_wrong_is_a_problem_of_every_file(
    opened: Open, script: str, limits: dict[str, float], words: str
) -> None:
    scanning = await opened(script, **limits)
    report = await scanning.scan(FILES[:2], ScanOptions(engines=frozenset({EngineName.SEMGREP})))

    assert [problem.path for problem in report.problems] == ["views.py", "web/server.js"]
    assert all(words in problem.message for problem in report.problems)
    assert len(report.rules_digest) == 32


async def test_cut_while_it_starts_it_takes_its_children_along(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"
    scanning = await opened(f"sleep 60 & echo $$ $! > '{pids}.new'; mv '{pids}.new' '{pids}'; wait")
    create, started = asyncio.create_subprocess_exec, asyncio.Event()

    async def slowly(*words: Any, **options: Any) -> asyncio.subprocess.Process:
        process = await create(*words, **options)
        if "scan" in words:
            await until(pids.exists)
            started.set()
            await asyncio.sleep(0.05)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slowly)
    call = asyncio.create_task(scanning.scan(FILES, BY_NAME))
    await started.wait()
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call

    await until(lambda: all(is_gone(int(pid)) for pid in pids.read_text().split()))


async def test_it_ends_with_its_caller_and_takes_its_children_along(opened: Open, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    scanning = await opened(f"sleep 60 & echo $$ $! $PWD > '{pids}.new'; mv '{pids}.new' '{pids}'; wait")
    call = asyncio.create_task(scanning.scan(FILES, BY_NAME))
    await until(pids.exists)
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call

    *numbers, folder = pids.read_text().split()
    await until(lambda: all(is_gone(int(pid)) for pid in numbers))
    assert not os.path.exists(folder)  # noqa: ASYNC240, PTH110 - a look at a local name


@pytest.mark.slow
@pytest.mark.skipif(not os.access(INSTALLED, os.X_OK), reason="scripts/semgrep.sh was not run")
async def test_the_real_program_finds_every_weakness_of_the_samples() -> None:
    scanning = Scanning(semgrep=Semgrep(INSTALLED))
    try:
        report = await scanning.scan(FILES, ScanOptions(engines=frozenset({EngineName.SEMGREP})))
    finally:
        await scanning.aclose()

    found = [finding.rule for finding in report.findings if finding.span.path != "web/stopped.py"]
    assert len(found) == len(set(found)) == 20
    assert {problem.path for problem in report.problems} == {"web/stopped.py"}
