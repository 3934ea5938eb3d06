"""One scan: files in, a report out. It runs none of the code, writes nothing and reaches no network."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
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


def validate(
    files: Sequence[SourceFile],
    options: ScanOptions,
    engines: Sequence[Engine],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> ScanReport:
    """Scan files with the engines that the options ask for; it blocks, so servers call it in a thread or process.

    Raises:
        InvalidArgumentError: a file's path or size, the number of files, or the options are out of their limits.
    """
    started = clock()
    _check(files, options)
    chosen = [engine for engine in engines if _asked(engine.name, options)]
    findings: list[Finding] = []
    problems: list[ScanProblem] = []
    for file in sorted(files, key=lambda file: file.path):
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
        # What several engines say of a file is about the file.
        problems.extend(
            ScanProblem(file.path, names[0] if len(names) == 1 else None, problem)
            for problem, names in reported.items()
        )
        findings.extend(findings_of(source, seen, options))
    return ScanReport(
        findings=tuple(findings[: options.max_findings]),
        problems=tuple(problems),
        engines=tuple(engine.version for engine in chosen),
        rules_digest=rules_digest(chosen),
        truncated=len(findings) > options.max_findings,
        elapsed_seconds=clock() - started,
    )


def language_of(path: str) -> CodeLanguage:
    """Tell a file's language by its ending."""
    name = path.rsplit("/", 1)[-1].lower()
    return _LANGUAGES.get(name[name.rfind(".") :] if "." in name else "", CodeLanguage.OTHER)


def _asked(name: EngineName, options: ScanOptions) -> bool:
    return name not in _ON_REQUEST if options.engines is None else name in options.engines


def _check(files: Sequence[SourceFile], options: ScanOptions) -> None:
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
