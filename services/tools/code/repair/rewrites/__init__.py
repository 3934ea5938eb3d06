"""Every rewrite that this release knows, and the rules that each may cure."""

from __future__ import annotations

from typing import Final

from services.tools.code.repair.model import Rewrite
from services.tools.code.repair.rewrites.commands import OsSystemList, SubprocessShellFalse
from services.tools.code.repair.rewrites.crypto import RandomFromSystem, Sha256
from services.tools.code.repair.rewrites.files import NamedTemporaryFile, OwnerOnly
from services.tools.code.repair.rewrites.parsing import DefusedXml, LiteralEval, SafeYaml
from services.tools.code.repair.rewrites.secrets_out import PasswordFromEnvironment
from services.tools.code.repair.rewrites.settings import Autoescape, CookieFlags, DebugOff, LocalInterface
from services.tools.code.repair.rewrites.sql import ParameterisedQuery
from services.tools.code.repair.rewrites.transport import HostKey, JwtVerify, TlsContext, TlsVerify

REWRITES: Final[tuple[Rewrite, ...]] = (
    ParameterisedQuery(),
    SubprocessShellFalse(),
    OsSystemList(),
    SafeYaml(),
    LiteralEval(),
    DefusedXml(),
    RandomFromSystem(),
    Sha256(),
    TlsVerify(),
    TlsContext(),
    HostKey(),
    JwtVerify(),
    NamedTemporaryFile(),
    OwnerOnly(),
    DebugOff(),
    LocalInterface(),
    Autoescape(),
    CookieFlags(),
    PasswordFromEnvironment(),
)

LEFT: Final[dict[str, str]] = {
    "kala.python.unsafe_deserialisation": "pickle and its like hold any object; only a change of the format, to JSON say, "
    "makes the data harmless, and whoever wrote it must change with it",
    "bandit.B301": "pickle holds any object; only a change of the format makes the data harmless",
    "kala.python.code_injection": "what the code evaluates is more than literals; name the operations it may do instead",
}
"""Why findings of a rule are left where no rewrite fits the place."""
