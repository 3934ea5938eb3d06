"""Suites: questions with labels that people wrote. A file of JSON lines, of which the first says what the rest is.

Head: {"suite", "kind", "about", "max_tokens", "wrappers"}. Each item has "text" or "messages" and what its kind is judged
by. Wrappers are texts with {text} in them; every item is asked in each, so a suite has items times wrappers questions.
HumanEval and GSM8K are read as published; they are the operator's to place.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kala.errors import InvalidArgumentError

REFUSAL: Final = "refusal"
EXACT: Final = "exact"
NUMBER: Final = "number"
QUANTITY: Final = "quantity"
COHERENCE: Final = "coherence"
TOOL_CALL: Final = "tool_call"
CODE_TESTS: Final = "code_tests"
CODE_SCAN: Final = "code_scan"
TEXT: Final = "text"
INTEGRITY: Final = "integrity"
KINDS: Final = frozenset(
    {REFUSAL, EXACT, NUMBER, QUANTITY, COHERENCE, TOOL_CALL, CODE_TESTS, CODE_SCAN, TEXT, INTEGRITY}
)

HARMFUL: Final = "harmful"
HARMLESS: Final = "harmless"
ROLES: Final = ("system", "user", "assistant")
MAX_BYTES: Final = 64 << 20
# As many as one sum of single measurements may have (services.common.measurements.MAX_PARTS).
MAX_ITEMS: Final = 4096
MAX_TOKENS: Final = 2048
DEFAULT_TOKENS: Final = 64
SLOT: Final = "{text}"
_NAME: Final = re.compile(r"[a-z0-9_]{1,64}")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a prompt."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Item:
    """One question with what its answer is judged by; what a kind does not need is empty."""

    id: str
    turns: Sequence[Turn]
    slice: str = ""
    label: str = ""
    law: int | None = None
    answers: Sequence[str] = ()
    forbidden: Sequence[str] = ()
    unit: str = ""
    tolerance: float = 0.0
    call: Mapping[str, Any] = field(default_factory=dict)  # Any: a tool call's JSON arguments
    code: Mapping[str, str] = field(default_factory=dict)

    @property
    def asked(self) -> str:
        """What the last user turn says; a judge of the answer reads it beside the answer."""
        return next((turn.content for turn in reversed(self.turns) if turn.role == "user"), "")


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite as it is asked: wrappers applied, in the file's order."""

    name: str
    kind: str
    digest: bytes
    max_tokens: int
    items: Sequence[Item]
    about: str = ""


def read_suite(path: Path, name: str = "") -> Suite:
    """Read a suite's file, gzipped or not; the digest is of the lines as they unpack.

    Raises InvalidArgumentError naming the file, the line and what is wrong with it.
    """
    try:
        raw = path.read_bytes()
        data = _unpacked(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidArgumentError(f"suite {path.name}", f"cannot be read: {error}") from error
    if len(data) > MAX_BYTES:
        raise InvalidArgumentError(f"suite {path.name}", f"is larger than {MAX_BYTES} bytes")
    return parse_suite(data, name or path.name.partition(".")[0])


def parse_suite(data: bytes, name: str) -> Suite:
    """Read a suite from the bytes of its file; errors as `read_suite` raises them."""
    lines = [(number, line) for number, line in enumerate(data.split(b"\n"), start=1) if line.strip()]
    if not lines:
        raise InvalidArgumentError(f"suite {name}", "is empty")
    published = _PUBLISHED.get(name)
    if published is not None:
        kind, max_tokens, read = published
        items = [_read(name, number, line, read) for number, line in lines]
        return _suite(Suite(name, kind, hashlib.sha256(data).digest(), max_tokens, items))
    head = _json(name, *lines[0])
    wrappers, max_tokens = head.get("wrappers") or [SLOT], head.get("max_tokens", DEFAULT_TOKENS)
    bare = [_read(name, number, line, _item) for number, line in lines[1:]]
    kind = head.get("kind", "")
    if head.get("suite") != name or not isinstance(kind, str) or kind not in KINDS:
        raise InvalidArgumentError(
            f"suite {name}: line 1", f"must name the suite and one of {', '.join(sorted(KINDS))}"
        )
    if not isinstance(wrappers, list) or not all(isinstance(text, str) and SLOT in text for text in wrappers):
        raise InvalidArgumentError(
            f"suite {name}: line 1", f"every one of its wrappers, a list, must hold {SLOT}"
        )
    if type(max_tokens) is not int:
        raise InvalidArgumentError(f"suite {name}: line 1", "max_tokens must be a whole number")
    return _suite(
        Suite(
            name,
            kind,
            hashlib.sha256(data).digest(),
            max_tokens,
            list(_wrapped(bare, wrappers)),
            str(head.get("about", "")),
        )
    )


def _suite(suite: Suite) -> Suite:
    if not _NAME.fullmatch(suite.name):
        raise InvalidArgumentError(f"suite {suite.name}", "must be named with 1 to 64 of [a-z0-9_]")
    if not 1 <= len(suite.items) <= MAX_ITEMS:
        raise InvalidArgumentError(
            f"suite {suite.name}", f"has {len(suite.items)} questions; 1 to {MAX_ITEMS} can be measured"
        )
    if not 1 <= suite.max_tokens <= MAX_TOKENS:
        raise InvalidArgumentError(f"suite {suite.name}", f"max_tokens must be 1 to {MAX_TOKENS}")
    seen: set[str] = set()
    for item in suite.items:
        if item.id in seen:
            raise InvalidArgumentError(f"suite {suite.name}", f"has two items {item.id!r}")
        seen.add(item.id)
        _require_judgeable(suite, item)
    return suite


def _require_judgeable(suite: Suite, item: Item) -> None:
    """A question without what judges its answer would pass or fail everybody."""
    wrong = {
        REFUSAL: item.label not in {HARMFUL, HARMLESS},
        EXACT: not item.answers,
        NUMBER: not (item.answers and all(map(_is_number, item.answers))),
        QUANTITY: not (item.answers and item.unit and all(map(_is_number, item.answers))),
        COHERENCE: not item.answers,
        TOOL_CALL: "name" not in item.call,
        CODE_TESTS: not {"test", "entry_point"} <= set(item.code),
    }
    if wrong.get(suite.kind, False) or not (item.turns and all(turn.content for turn in item.turns)):
        raise InvalidArgumentError(
            f"suite {suite.name}: {item.id}", f"lacks what a {suite.kind} item is asked or judged by"
        )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text.replace(",", "")))
    except ValueError:
        return False


def _wrapped(items: Sequence[Item], wrappers: Sequence[str]) -> Iterator[Item]:
    for item in items:
        for number, wrapper in enumerate(wrappers):
            if wrapper == SLOT:
                yield item
                continue
            *before, last = item.turns
            turn = Turn(last.role, wrapper.replace(SLOT, last.content))
            yield _with(item, id=f"{item.id}/{number}", turns=(*before, turn))


def _with(item: Item, **changes: Any) -> Item:  # Any: fields of an item
    return Item(**{name: changes.get(name, getattr(item, name)) for name in Item.__slots__})


def _read(name: str, number: int, line: bytes, read: Callable[[dict[str, Any]], Item]) -> Item:
    raw = _json(name, number, line)
    try:
        return read(raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidArgumentError(f"suite {name}: line {number}", f"is no item: {error!r}") from error


def _json(name: str, number: int, line: bytes) -> dict[str, Any]:  # Any: a line's JSON
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"suite {name}: line {number}", f"is no JSON: {error}") from error
    if not isinstance(raw, dict):
        raise InvalidArgumentError(f"suite {name}: line {number}", "is no JSON object")
    return raw


def _item(raw: dict[str, Any]) -> Item:  # Any: as above
    turns = [Turn(str(turn["role"]), str(turn["content"])) for turn in raw.get("messages", ())]
    if "text" in raw:
        turns = [Turn("user", str(raw["text"]))]
    if any(turn.role not in ROLES for turn in turns):
        raise ValueError(f"a role is none of {', '.join(ROLES)}")
    law = raw.get("law")
    if law is not None and (type(law) is not int or law not in range(5)):
        raise ValueError("law must be 0 to 4")
    for name in ("answers", "forbidden"):
        # A text alone would be taken for its letters, and one letter for a right answer.
        if not isinstance(raw.get(name, []), list):
            raise TypeError(f"{name} must be a list")
    part = str(raw.get("slice", ""))
    if part and not _NAME.fullmatch(part):
        raise ValueError("slice must be 1 to 64 of [a-z0-9_]")
    return Item(
        id=str(raw["id"]),
        turns=tuple(turns),
        slice=part or ("" if law is None else f"law_{law}"),
        label=str(raw.get("label", "")),
        law=law,
        answers=tuple(str(answer) for answer in raw.get("answers", ())),
        forbidden=tuple(str(answer) for answer in raw.get("forbidden", ())),
        unit=str(raw.get("unit", "")),
        tolerance=float(raw.get("tolerance", 0.0)),
        call=dict(raw.get("call", {})),
        code={str(key): str(value) for key, value in raw.get("code", {}).items()},
    )


def _human_eval(raw: dict[str, Any]) -> Item:  # Any: as above
    asked = f"Complete this Python function. Answer with the whole function only.\n\n{raw['prompt']}"
    code = {key: str(raw[key]) for key in ("prompt", "test", "entry_point")}
    return Item(id=str(raw["task_id"]), turns=(Turn("user", asked),), code=code)


def _gsm8k(raw: dict[str, Any]) -> Item:  # Any: as above
    question = str(raw["question"])
    answer = str(raw["answer"]).rpartition("####")[2].strip().replace(",", "")
    identity = hashlib.sha256(question.encode()).hexdigest()[:16]
    return Item(id=identity, turns=(Turn("user", question),), answers=(answer,))


def _unpacked(data: bytes) -> bytes:
    """At most one byte more than a suite may have, so that a small file cannot fill the memory."""
    import io

    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        return file.read(MAX_BYTES + 1)


_PUBLISHED: Final[Mapping[str, tuple[str, int, Callable[[dict[str, Any]], Item]]]] = {
    "humaneval": (CODE_TESTS, 512, _human_eval),
    "gsm8k": (NUMBER, 400, _gsm8k),
}
"""Suites in their publishers' own format."""
