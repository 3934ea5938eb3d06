"""One scan: files in, a report out. It runs none of the code, writes nothing and reaches no network."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from kala.errors import InvalidArgumentError
from services.tools.code.model import (
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_FINDINGS,
    MAX_PATH_BYTES,
    MAX_TOTAL_BYTES,
    CodeLanguage,
    Engine,
    EngineName,
    Finding,
    ScanOptions,
    ScanProblem,
    ScanReport,
    Source,
    SourceFile,
)
from services.tools.code.report import Seen, findings_of, rules_digest

_LANGUAGES: Final = {
    ".py": CodeLanguage.PYTHON,
    ".pyi": CodeLanguage.PYTHON,
    ".pyw": CodeLanguage.PYTHON,
    ".js": CodeLanguage.JAVASCRIPT,
    ".mjs": CodeLanguage.JAVASCRIPT,
    ".cjs": CodeLanguage.JAVASCRIPT,
    ".jsx": CodeLanguage.JAVASCRIPT,
    ".ts": CodeLanguage.JAVASCRIPT,
    ".sh": CodeLanguage.SHELL,
    ".bash": CodeLanguage.SHELL,
}
# Costs tens of seconds to start, so it runs only where it is asked for.
_ON_REQUEST: Final = frozenset({EngineName.SEMGREP})


@dataclass(frozen=True, slots=True)
class FileScan:
    """What one file came to; `engines` and `rules_digest` are of those that the options chose."""

    findings: tuple[Finding, ...]
    problems: tuple[ScanProblem, ...]
    engines: tuple[str, ...] = ()
    rules_digest: bytes = b""
    truncated: bool = False


def validate(
    files: Sequence[SourceFile],
    options: ScanOptions,
    engines: Sequence[Engine],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> ScanReport:
    """Scan files with the engines that the options ask for; it blocks, so servers scan in a process of their own.

    Raises:
        InvalidArgumentError: a file's path or size, the number of files, or the options are out of their limits.
    """
    started = clock()
    check(files, options)
    scans = [scan_file(file, options, engines) for file in by_path(files)]
    return report_of(scans, options, elapsed_seconds=clock() - started)


def by_path(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Put files into the order of a report."""
    return sorted(files, key=lambda file: file.path)


def scan_file(file: SourceFile, options: ScanOptions, engines: Sequence[Engine]) -> FileScan:
    """Scan one file, whose limits were checked."""
    chosen = [engine for engine in engines if _asked(engine.name, options)]
    source = Source(file.path, file.content, file.language or language_of(file.path))
    seen: list[Seen] = []
    reported: dict[str, list[EngineName]] = {}
    for engine in chosen:
        if not engine.reads(source.language):
            continue
        result = engine.scan(source)
        seen.extend(Seen(engine.name, hit) for hit in result.hits)
        for problem in result.problems:
            reported.setdefault(problem, []).append(engine.name)
    findings = findings_of(source, seen, options)
    return FileScan(
        findings=tuple(findings[: options.max_findings]),
        # What several engines say of a file is about the file.
        problems=tuple(
            ScanProblem(file.path, names[0] if len(names) == 1 else None, problem)
            for problem, names in reported.items()
        ),
        engines=tuple(engine.version for engine in chosen),
        rules_digest=rules_digest(chosen),
        truncated=len(findings) > options.max_findings,
    )


def report_of(scans: Sequence[FileScan], options: ScanOptions, *, elapsed_seconds: float) -> ScanReport:
    """Put the scans of files, in their order, into one report; those that were given up name no engines."""
    findings = [finding for scan in scans for finding in scan.findings]
    whole = next((scan for scan in scans if scan.rules_digest), None)
    return ScanReport(
        findings=tuple(findings[: options.max_findings]),
        problems=tuple(problem for scan in scans for problem in scan.problems),
        engines=() if whole is None else whole.engines,
        rules_digest=b"" if whole is None else whole.rules_digest,
        truncated=len(findings) > options.max_findings or any(scan.truncated for scan in scans),
        elapsed_seconds=elapsed_seconds,
    )


def language_of(path: str) -> CodeLanguage:
    """Tell a file's language by its ending."""
    name = path.rsplit("/", 1)[-1].lower()
    return _LANGUAGES.get(name[name.rfind(".") :] if "." in name else "", CodeLanguage.OTHER)


def _asked(name: EngineName, options: ScanOptions) -> bool:
    return name not in _ON_REQUEST if options.engines is None else name in options.engines


def check(files: Sequence[SourceFile], options: ScanOptions) -> None:
    """Raise InvalidArgumentError for files or options that are out of their limits."""
    if not 1 <= len(files) <= MAX_FILES:
        raise InvalidArgumentError("files", f"has {len(files)} entries; send 1 to {MAX_FILES} at a time")
    if not 1 <= options.max_findings <= MAX_FINDINGS:
        raise InvalidArgumentError("max_findings", f"must be 1 to {MAX_FINDINGS}")
    paths: set[str] = set()
    total = 0
    for index, file in enumerate(files):
        field = f"files[{index}]"
        _check_path(f"{field}.path", file.path)
        if file.path in paths:
            raise InvalidArgumentError(f"{field}.path", "names a file a second time; send each file once")
        paths.add(file.path)
        size = len(file.content.encode("utf-8", "surrogatepass"))
        if size > MAX_FILE_BYTES:
            raise InvalidArgumentError(
                f"{field}.content", f"has {size} bytes; the limit is {MAX_FILE_BYTES}; split it"
            )
        total += size
    if total > MAX_TOTAL_BYTES:
        raise InvalidArgumentError(
            "files", f"have {total} bytes together; the limit is {MAX_TOTAL_BYTES}; send them in parts"
        )


def _check_path(field: str, path: str) -> None:
    if not path or len(path.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        raise InvalidArgumentError(field, f"must have 1 to {MAX_PATH_BYTES} bytes")
    if path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise InvalidArgumentError(field, 'must be relative to the project, without ".." and NUL')
