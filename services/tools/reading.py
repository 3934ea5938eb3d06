"""Reads the contract's actions and principals into this service's own words; protobuf ends here."""

from __future__ import annotations

import base64
import codecs
import hashlib
import json
from typing import Final

from kala.common.v1 import options_pb2
from kala.common.v1.clearance_pb2 import Principal
from kala.errors import InvalidArgumentError
from kala.tools.v1 import tools_pb2 as pb
from services.tools import wire
from services.tools.files.copying import MAX_REFERENCES
from services.tools.files.model import Owner, Reference
from services.tools.files.paths import parse_patterns
from services.tools.happenings import Asked
from services.tools.policy.approvals import MAX_SHOWN_BYTES, Person, call_digest
from services.tools.wire_files import mode_of
from services.tools.writing import TOOL, WriteAsked

MIN_ARGUMENTS_BYTES: Final = 2
MAX_ARGUMENTS_BYTES: Final = 1024 * 1024
MAX_STDIN_BYTES: Final = 1024 * 1024
MAX_CALL_ID_CHARS: Final = 128


def owner_of(principal: Principal) -> Owner:
    """Name whose a thing becomes."""
    return Owner(principal.tenant, principal.id, principal.subject)


def person_of(principal: Principal) -> Person:
    """Name who looks at approvals."""
    return Person(owner_of(principal), is_admin=options_pb2.SCOPE_ADMIN in principal.scopes)


def asked_of(action: pb.ExecuteAction, principal: Principal) -> Asked:
    """Read one tool call; raises InvalidArgumentError naming the field at fault."""
    _require_size(
        "arguments_json", len(action.arguments_json.encode()), MIN_ARGUMENTS_BYTES, MAX_ARGUMENTS_BYTES
    )
    _require_size("stdin", len(action.stdin), 0, MAX_STDIN_BYTES)
    if len(action.call_id) > MAX_CALL_ID_CHARS:
        raise InvalidArgumentError("call_id", f"must have at most {MAX_CALL_ID_CHARS} characters")
    return Asked(
        owner=owner_of(principal),
        tool=action.tool,
        arguments_json=action.arguments_json,
        workspace=action.workspace,
        files=wire.read_references(action.files, field="files", most=MAX_REFERENCES),
        limits=wire.asked_limits(action.limits),
        stdin=action.stdin,
        least_strength=wire.strength_of(action.least_strength),
        approval=action.approval,
        after_untrusted=action.after_untrusted_content,
        artifacts=parse_patterns("artifacts", action.artifacts),
    )


def write_asked_of(action: pb.WriteFileAction, principal: Principal) -> WriteAsked:
    """Read one write; raises InvalidArgumentError naming the field at fault."""
    sha256 = hashlib.sha256(action.data)
    described: dict[str, str | int] = {
        "path": action.path,
        "mode": pb.WriteMode.Name(action.mode).removeprefix("WRITE_MODE_").lower(),
        "bytes": len(action.data),
        "sha256": sha256.hexdigest(),
        "expected_sha256": action.expected_sha256.hex(),
    }
    digest = call_digest(
        tool=TOOL,
        workspace=action.workspace,
        arguments=_written(described).encode(),
        files=[Reference(action.path, sha256.digest(), len(action.data))],
    )
    return WriteAsked(
        owner=owner_of(principal),
        workspace=action.workspace,
        path=action.path,
        data=action.data,
        mode=mode_of(action.mode),
        expected_sha256=action.expected_sha256,
        approval=action.approval,
        after_untrusted=action.after_untrusted_content,
        digest=digest,
        shown=_written({**described, **_content(action.data)}),
    )


def _content(data: bytes) -> dict[str, str | int]:
    """What a person sees of the bytes that would be written: text as text, and how many bytes are left out."""
    rest = max(0, len(data) - MAX_SHOWN_BYTES)
    left_out: dict[str, str | int] = {"bytes_not_shown": rest} if rest else {}
    try:
        # Cut within a character, the end of the beginning is none.
        decoder = codecs.getincrementaldecoder("utf-8")()
        return {"content": decoder.decode(data[:MAX_SHOWN_BYTES], final=not rest), **left_out}
    except UnicodeDecodeError:
        return {"content_base64": base64.b64encode(data[:MAX_SHOWN_BYTES]).decode(), **left_out}


def _written(value: dict[str, str | int]) -> str:
    return json.dumps(value, ensure_ascii=False)


def _require_size(field: str, size: int, least: int, most: int) -> None:
    if not least <= size <= most:
        raise InvalidArgumentError(field, f"has {size} bytes; must have {least} to {most}")
