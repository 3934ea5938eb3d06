"""The engines that look at Python, in one place."""

from __future__ import annotations

from services.tools.code.engines.bandit import BanditEngine
from services.tools.code.engines.python_syntax.engine import PythonSyntaxEngine
from services.tools.code.engines.python_taint.engine import PythonTaintEngine
from services.tools.code.model import Engine


def python_engines() -> tuple[Engine, ...]:
    """Make the engines that look at Python: taint, syntax, bandit."""
    return (PythonTaintEngine(), PythonSyntaxEngine(), BanditEngine())
