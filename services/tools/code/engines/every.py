"""All engines in one place."""

from __future__ import annotations

from services.tools.code.engines.javascript.engine import JavaScriptSyntaxEngine, JavaScriptTaintEngine
from services.tools.code.engines.python import python_engines
from services.tools.code.engines.secrets.engine import SecretsEngine
from services.tools.code.engines.semgrep import SemgrepEngine
from services.tools.code.engines.shell.engine import ShellSyntaxEngine, ShellTaintEngine
from services.tools.code.model import Engine


def code_engines() -> tuple[Engine, ...]:
    """Make every engine that this release has."""
    return (
        *python_engines(),
        JavaScriptTaintEngine(),
        JavaScriptSyntaxEngine(),
        ShellTaintEngine(),
        ShellSyntaxEngine(),
        SecretsEngine(),
        SemgrepEngine(),
    )
