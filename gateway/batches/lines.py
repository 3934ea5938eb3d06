"""The lines of a batch's input file: what each must be, and what becomes of it in output and error files.  Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from gateway.batches.model import LinePlace, LineProblem, LineResult
from gateway.strict_json import read_object
from kala.errors import InvalidArgumentError

MAX_LINES: Final = 50_000
"""OpenAI's bound."""

MAX_PROBLEMS: Final = 100
"""That are listed; a file with more is wrong as a whole."""

MAX_ID_CHARS: Final = 512

_KEYS: Final = frozenset({"custom_id", "method", "url", "body"})
_PERSONS: Final = ("safety_identifier", "user")
_DIGEST_BYTES: Final = 16

Json = dict[str, Any]  # Any: JSON


@dataclass(frozen=True, slots=True)
class LineRequest:
    """One request of a batch."""

    custom_id: str
    body: bytes
    person: str
    """Whom it names; empty for the key itself."""


@dataclass(slots=True)
class Scan:
    """What a whole input file holds."""

    places: list[LinePlace] = field(default_factory=list)
    persons: set[str] = field(default_factory=set)
    problems: list[LineProblem] = field(default_factory=list)


def scan(parts: Iterable[bytes], *, endpoint: str, max_line_bytes: int) -> Scan:
    """Look at every line of a file; problems are listed up to `MAX_PROBLEMS`."""
    found, ids = Scan(), set[bytes]()
    for number, start, line in _lines_of(parts, max_line_bytes):
        if len(found.problems) >= MAX_PROBLEMS:
            break
        if line is None:
            found.problems.append(_too_long(number, max_line_bytes))
            break  # where the next line begins is no longer known
        if not line.strip():
            continue
        if len(found.places) >= MAX_LINES:
            found.problems.append(_too_many(number))
            break
        try:
            request = read_line(line, endpoint=endpoint)
        except InvalidArgumentError as error:
            found.problems.append(LineProblem("invalid_request", error.message, error.field or None, number))
            continue
        digest = hashlib.blake2b(request.custom_id.encode(), digest_size=_DIGEST_BYTES).digest()
        if digest in ids:
            found.problems.append(
                LineProblem(
                    "duplicate_custom_id", "custom_id: another line has the same", "custom_id", number
                )
            )
        ids.add(digest)
        found.places.append(LinePlace(number, start, len(line)))
        found.persons.update({request.person} - {""})
    if not (found.places or found.problems):
        found.problems.append(LineProblem("empty_file", "the input file holds no request"))
    return found


def read_line(line: bytes, *, endpoint: str) -> LineRequest:
    """Read one request; InvalidArgumentError names the field."""
    value = read_object(line)
    if unknown := sorted(value.keys() - _KEYS):
        raise InvalidArgumentError(
            unknown[0][:80], f"is not a known field; known are {', '.join(sorted(_KEYS))}"
        )
    custom_id, body = value.get("custom_id"), value.get("body")
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MAX_ID_CHARS:
        raise InvalidArgumentError("custom_id", f"must be a string of 1 to {MAX_ID_CHARS} characters")
    if value.get("method") != "POST":
        raise InvalidArgumentError("method", "must be 'POST'")
    if value.get("url") != endpoint:
        raise InvalidArgumentError("url", f"must be the batch's endpoint, {endpoint}")
    if not isinstance(body, dict):
        raise InvalidArgumentError("body", "must be an object: the request")
    for field_name in ("stream", "background"):
        if body.get(field_name):
            raise InvalidArgumentError(f"body.{field_name}", "is not for batches; leave it out")
    named = next((body[name] for name in _PERSONS if isinstance(body.get(name), str) and body[name]), "")
    # Not orjson: it cannot write every number that a JSON text can hold.
    return LineRequest(custom_id, json.dumps(body, ensure_ascii=False).encode(), named)


def persons_in(parts: Iterable[bytes], *, max_line_bytes: int) -> Iterator[str]:
    """Give whom the lines of a file name, whatever else is wrong with them; what is no JSON names nobody.

    Nothing is read behind a line that is too long.
    """
    for _, _, line in _lines_of(parts, max_line_bytes):
        if line is None:
            return
        try:
            body = read_object(line).get("body")
        except InvalidArgumentError:
            continue
        if isinstance(body, dict):
            yield from (person for name in _PERSONS if isinstance(person := body.get(name), str) and person)


def answered_line(
    place: LinePlace, *, batch_id: str, custom_id: str, request_id: str, status: int, body: Json
) -> LineResult:
    """Write what an endpoint answered; only 200 is a success."""
    line = {
        "id": line_id(batch_id, place.number),
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": request_id, "body": body},
        "error": None,
    }
    usage = body.get("usage")
    into, out = _tokens(usage if isinstance(usage, dict) else {})
    return LineResult(place.number, status == 200, orjson.dumps(line), into, out)  # noqa: PLR2004 - HTTP's OK


def unanswered_line(
    place: LinePlace, *, batch_id: str, custom_id: str | None, code: str, message: str
) -> LineResult:
    """Write that a request was never answered, and why."""
    line = {
        "id": line_id(batch_id, place.number),
        "custom_id": custom_id,
        "response": None,
        "error": {"code": code, "message": message},
    }
    return LineResult(place.number, False, orjson.dumps(line))


def line_id(batch_id: str, number: int) -> str:
    """Name a line: the same on every attempt, so that no two answers to it can be told apart."""
    return f"batch_req_{batch_id.removeprefix('batch_')}_{number}"


def _tokens(usage: Mapping[str, object]) -> tuple[int, int]:
    into = usage.get("prompt_tokens", usage.get("input_tokens"))
    out = usage.get("completion_tokens", usage.get("output_tokens"))
    return (into if isinstance(into, int) else 0), (out if isinstance(out, int) else 0)


def _lines_of(parts: Iterable[bytes], max_line_bytes: int) -> Iterator[tuple[int, int, bytes | None]]:
    """Give number, place and bytes of each line; None for one that is too long, which is the last."""
    held, start, number = bytearray(), 0, 0
    for part in parts:
        held += part
        while (end := held.find(b"\n")) >= 0:
            number += 1
            yield number, start, bytes(held[:end]) if end <= max_line_bytes else None
            start += end + 1
            del held[: end + 1]
        if len(held) > max_line_bytes:
            yield number + 1, start, None
            return
    if held:
        yield number + 1, start, bytes(held)


def _too_long(number: int, limit: int) -> LineProblem:
    return LineProblem(
        "line_too_long", f"the line has more than {limit} bytes; shorten the request", None, number
    )


def _too_many(number: int) -> LineProblem:
    return LineProblem(
        "too_many_lines", f"there are more than {MAX_LINES} requests; split the file", None, number
    )
