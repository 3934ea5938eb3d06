"""semgrep as a process of its own: offline, in a private directory, within limits, and gone with its caller."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from services.common.processes import gone
from services.tools.code.engines.semgrep_answer import (
    SemgrepAnswerError,
    read_answer,
    rule_texts,
    rules_of,
)
from services.tools.code.model import (
    CodeLanguage,
    EngineName,
    EngineResult,
    Rule,
    ScanOptions,
    ScanProblem,
    Source,
    SourceFile,
)
from services.tools.code.report import Seen, findings_of, rules_digest
from services.tools.code.validate import FileScan, language_of
from services.tools.threads import in_thread

SEMGREP_SECONDS: Final = 120.0
"""One batch; it takes two seconds to start and little more for ordinary code."""

ADDRESS_SPACE_BYTES: Final = 4 * 1024**3
"""Of each of its processes; its run-time reserves far more than it uses."""

MEMORY_MIB: Final = 1_536
"""What it may use for one file before it gives that up."""

MAX_OUTPUT_BYTES: Final = 16 * 1024 * 1024

_FILE_SECONDS: Final = 10
_READ_BYTES: Final = 256 * 1024
# Bounds that hold even when this service dies: KiB of address space, CPU seconds, blocks of files, no core.
_LIMITED: Final = (
    'ulimit -v "$1" && ulimit -t "$2" && ulimit -f 131072 && ulimit -c 0 && shift 2 && exec "$@"'
)
_ENDINGS: Final = {CodeLanguage.PYTHON: (".py",), CodeLanguage.JAVASCRIPT: (".js", ".ts")}


class _GivenUpError(Exception):
    """Why a batch has no result, in words for the report."""


@dataclass(frozen=True, slots=True)
class _Program:
    """The engine, as a report names it."""

    version: str
    rules: tuple[Rule, ...]
    name: EngineName = EngineName.SEMGREP


class Semgrep:
    """Runs one program with this product's rule files."""

    def __init__(
        self,
        program: Path,
        *,
        seconds: float = SEMGREP_SECONDS,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> None:
        self._program = program
        self.seconds = seconds
        self._max_output_bytes = max_output_bytes
        self._texts = rule_texts()
        self._rules = rules_of(self._texts)
        digest = hashlib.sha256("\0".join(self._texts.values()).encode()).hexdigest()[:12]
        self._version = f"with kala rules {digest}"

    async def scan(
        self, files: Sequence[SourceFile], options: ScanOptions, *, within_seconds: float
    ) -> list[FileScan]:
        """Scan a batch, in its order; whatever goes wrong is a problem of each file that it should have read."""
        sources = [Source(file.path, file.content, file.language or language_of(file.path)) for file in files]
        named = {
            _name(number, each): each for number, each in enumerate(sources) if each.language in _ENDINGS
        }
        version, results = "", dict[str, EngineResult]()
        if named:
            try:
                version, results = await self._results(named, min(within_seconds, self.seconds))
            except _GivenUpError as error:
                results = dict.fromkeys(named, EngineResult((), (str(error),)))
        by_path = {named[name].path: result for name, result in results.items()}
        program = _Program(f"semgrep {version or '(no answer)'} {self._version}", tuple(self._rules.values()))
        return [
            _scan_of(each, by_path.get(each.path, EngineResult(())), options, program) for each in sources
        ]

    async def _results(self, named: dict[str, Source], seconds: float) -> tuple[str, dict[str, EngineResult]]:
        with tempfile.TemporaryDirectory(prefix="kala-semgrep-") as folder:
            await in_thread(self._fill, Path(folder), named)
            try:
                async with asyncio.timeout(seconds):
                    output = await self._output(Path(folder))
            except TimeoutError:
                raise _GivenUpError(
                    f"semgrep was ended after {seconds:g} s; send fewer or smaller files"
                ) from None
        try:
            return await in_thread(read_answer, output, named, self._rules)
        except SemgrepAnswerError as error:
            raise _GivenUpError(f"semgrep gave no usable report: {error}") from error

    def _fill(self, folder: Path, named: dict[str, Source]) -> None:
        for name in ("rules", "code", "home"):
            (folder / name).mkdir()
        # Its own list leaves out tests and vendored code.
        (folder / ".semgrepignore").touch()
        for name, text in self._texts.items():
            (folder / "rules" / name).write_text(text, encoding="utf-8")
        for name, source in named.items():
            (folder / name).write_bytes(source.text.encode("utf-8", "surrogatepass"))

    async def _output(self, folder: Path) -> bytes:
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                *command(self._program, cpu_seconds=int(self.seconds) + 1),
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=DEVNULL,
                cwd=folder,
                env=environment(self._program, folder),
                start_new_session=True,
            )
        )
        try:
            # Cut while it starts, asyncio would end the leader alone.
            process = await asyncio.shield(starting)
        except OSError as error:
            raise _GivenUpError(f"semgrep could not be started: {error.strerror}") from error
        except asyncio.CancelledError:
            await _end_group(await starting)
            raise
        try:
            output = await self._read(process)
            status = await process.wait()
        finally:
            await _end_group(process)
        if status in {126, 127}:
            raise _GivenUpError(
                "semgrep could not be started; KALA_TOOLS_SEMGREP must name a program that this service's user may run"
            )
        if status not in {0, 1}:
            raise _GivenUpError(f"semgrep failed with status {status}, so nothing is known of this file")
        return output

    async def _read(self, process: Process) -> bytes:
        if process.stdout is None:
            raise _GivenUpError("semgrep has no output")
        pieces = bytearray()
        while piece := await process.stdout.read(_READ_BYTES):
            pieces += piece
            if len(pieces) > self._max_output_bytes:
                raise _GivenUpError(
                    f"semgrep's report is longer than {self._max_output_bytes} bytes; send fewer files"
                )
        return bytes(pieces)


async def _end_group(process: Process) -> None:
    """End the whole group, also what outlives its leader."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await asyncio.shield(gone(process))


def command(program: Path, *, cpu_seconds: int) -> tuple[str, ...]:
    """Give the command line; it is run where rules and code lie."""
    return (
        *("/bin/sh", "-c", _LIMITED, "sh", str(ADDRESS_SPACE_BYTES // 1024), str(cpu_seconds)),
        *(str(program), "scan", "--json", "--quiet", "--oss-only"),
        *("--metrics=off", "--disable-version-check"),
        # Comments in the code silence nothing, and nothing is left out.
        *("--disable-nosem", "--no-git-ignore", "--max-target-bytes", "0"),
        *("--jobs", "1", "--timeout", str(_FILE_SECONDS), "--max-memory", str(MEMORY_MIB)),
        *("--config", "rules", "code"),
    )


def environment(program: Path, folder: Path) -> dict[str, str]:
    """Nothing of the service's own: no proxy, no account, no home but the private directory."""
    return {
        "PATH": f"{program.parent}:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "home"),
        "SEMGREP_SETTINGS_FILE": str(folder / "home" / "settings.yml"),
        "SEMGREP_SEND_METRICS": "off",
        "SEMGREP_ENABLE_VERSION_CHECK": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def joined(scan: FileScan, batch: FileScan, options: ScanOptions) -> FileScan:
    """Put the two scans of one file together; what both saw in a line is told once, by the more exact engine."""
    seen = {(finding.span.region.start_line, cwe) for finding in scan.findings for cwe in finding.cwe}
    new = [
        finding
        for finding in batch.findings
        if not any((finding.span.region.start_line, cwe) in seen for cwe in finding.cwe)
    ]
    findings = sorted((*scan.findings, *new), key=lambda each: (each.span.start_byte, each.rule))
    return replace(
        scan,
        findings=tuple(findings[: options.max_findings]),
        problems=(*scan.problems, *batch.problems),
        engines=(*scan.engines, *batch.engines),
        rules_digest=hashlib.sha256(scan.rules_digest + batch.rules_digest).digest()
        if scan.rules_digest
        else b"",
        truncated=scan.truncated or batch.truncated or len(findings) > options.max_findings,
    )


def _scan_of(source: Source, result: EngineResult, options: ScanOptions, program: _Program) -> FileScan:
    findings = findings_of(source, [Seen(EngineName.SEMGREP, hit) for hit in result.hits], options)
    return FileScan(
        findings=tuple(findings[: options.max_findings]),
        problems=tuple(ScanProblem(source.path, EngineName.SEMGREP, each) for each in result.problems),
        engines=(program.version,),
        rules_digest=rules_digest([program]),
        truncated=len(findings) > options.max_findings,
    )


def _name(number: int, source: Source) -> str:
    endings = _ENDINGS[source.language]
    ending = Path(source.path).suffix.lower()
    return f"code/{number}{ending if ending in endings else endings[0]}"
