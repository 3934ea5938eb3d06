"""Checks and rule files belong together: an id that no file has would fail a scan, one that no check has is dead."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from services.tools.code import engines
from services.tools.code.rules import load

FOLDER = Path(engines.__file__).parent


@pytest.mark.parametrize("engine", ["python_taint", "python_syntax"])
def test_every_rule_is_used_and_every_used_rule_exists(engine: str) -> None:
    literals = {
        node.value
        for path in (FOLDER / engine).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    hits = {
        argument.value
        for path in (FOLDER / engine).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "hit"
        for argument in ast.walk(node.args[0])
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    }
    known = {rule.removeprefix("kala.python.") for rule in load(f"{engine}.yaml", "kala.python")}

    assert hits <= known
    assert known <= literals
