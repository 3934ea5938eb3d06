"""Python code scanned and rewritten by the real engines."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from services.tools.code.engines.every import code_engines
from services.tools.code.model import Engine, ScanOptions, ScanReport, SourceFile
from services.tools.code.repair.proof import Repaired, repair
from services.tools.code.validate import validate


@cache
def engines() -> tuple[Engine, ...]:
    return code_engines()


def scan(files: Sequence[SourceFile]) -> ScanReport:
    return validate(files, ScanOptions(), engines())


def repaired(code: str) -> tuple[str, Repaired, ScanReport]:
    file = SourceFile("main.py", code)
    before = scan([file])
    done = repair([file], before, (), scan)
    return done.with_only(done.standing)[0].content, done, before


FLASK = "from flask import Flask, request, make_response\n\napp = Flask(__name__)\n"
