"""Where `kala ethics` finds its judges: processes of this machine, or a running gateway that is asked for its Score."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kala.cli.output import note
from kala.errors import InvalidArgumentError, KalaError, NotFoundError
from kala.ethics.lanes import MAX_LINE_BYTES, Lane, Line, Verdict, failure
from kala.ethics.workers import Offline, Worker, cores

if TYPE_CHECKING:
    from kala.client import KalaClient

SCORE_PATH: Final = "/kala/v1/ethics/score"
REQUESTS_AT_ONCE: Final = 4
"""Enough to keep one ethics process busy while answers travel; more only wait there."""

STAGES: Final = ("request", "output", "tool_result")
_MS_PER_SECOND: Final = 1e3


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The gateway that flags name; with none of them a command judges on this machine."""

    url: str | None = None
    key: str | None = None
    state: Path | None = None

    @property
    def is_meant(self) -> bool:
        """Whether a gateway is to be asked. The environment alone does not say so: no text leaves by surprise."""
        return any(value is not None for value in (self.url, self.key, self.state))


@contextmanager
def open_lanes(
    offline: Offline,
    elsewhere: Elsewhere,
    *,
    stage: str = "request",
    explain: bool = False,
    workers: int | None = None,
) -> Iterator[Sequence[Lane]]:
    """The judges, closed at the end; none of them is started before its first line."""
    if stage not in STAGES:
        raise InvalidArgumentError("--stage", f"must be one of {', '.join(STAGES)}")
    with ExitStack() as stack:
        if elsewhere.is_meant:
            client = stack.enter_context(_client(elsewhere))
            yield [GatewayLane(client, stage) for _ in range(workers or REQUESTS_AT_ONCE)]
            return
        say = said_once(note)
        lanes = [Worker(offline, say=say, stage=stage, explain=explain) for _ in range(workers or cores())]
        for lane in lanes:
            stack.callback(lane.close)
        yield lanes


def judge_text(
    text: str, request: str | None, offline: Offline, elsewhere: Elsewhere, *, stage: str
) -> Verdict:
    """The verdict on one text, with its reasons; InvalidArgumentError names what cannot be judged."""
    document = {"id": 1, "text": text} | ({} if request is None else {"request": request})
    data = json.dumps(document).encode("ascii")
    with open_lanes(offline, elsewhere, stage=stage, explain=True, workers=1) as lanes:
        verdict = lanes[0].ask([Line(1, len(data), data)])[0]
    if "error" in verdict:
        raise InvalidArgumentError(verdict["error"]["field"], verdict["error"]["problem"])
    return verdict


def said_once(say: Callable[[str], None]) -> Callable[[str], None]:
    """Passes each text on once, since every process says the same."""
    said: set[str] = set()

    def pass_on(text: str) -> None:
        if text not in said:
            said.add(text)
            say(text)

    return pass_on


class GatewayLane:
    """Asks the gateway's Score, one text at a time."""

    def __init__(self, client: KalaClient, stage: str) -> None:
        self._client = client
        self._stage = stage

    @property
    def is_open(self) -> bool:
        """Always: a gateway that is away ends the run with its error."""
        return True

    def ask(self, lines: Sequence[Line]) -> list[Verdict]:
        """One verdict or error per line."""
        return [self._ask_one(line) for line in lines]

    def _ask_one(self, line: Line) -> Verdict:
        if line.data is None:
            return failure(f"must be at most {MAX_LINE_BYTES} bytes", "line")
        try:
            document = json.loads(line.data)
            line_id, text = document["id"], document["text"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return failure('must be a JSON object with "id" and "text", in UTF-8', "line")
        stage = document.get("stage") or self._stage
        body = {"text": text, "stage": f"STAGE_{stage}".upper()}
        if document.get("request"):
            body["request_text"] = document["request"]
        try:
            reply = self._client.call("POST", SCORE_PATH, body=body)
        except InvalidArgumentError as error:
            return failure(error.problem, error.field, line_id=line_id)
        return verdict_of(line_id, reply)


def verdict_of(line_id: object, reply: Mapping[str, Any]) -> Verdict:  # Any: parsed JSON
    """The gateway's answer in the form of an offline verdict; it tells no views."""
    decision = reply["decision"]
    laws = [
        {
            "law": int(item.get("law") or 0),
            "score": float(item.get("score") or 0.0),
            "category": str(item.get("category") or ""),
        }
        for item in reply.get("laws") or ()
    ]
    return {
        "id": line_id,
        "outcome": _outcome(decision),
        "law": decision.get("law"),
        "category": str(decision.get("category") or ""),
        "score": _score(decision),
        "elapsed_ms": _milliseconds(decision.get("elapsed")),
        "laws": laws,
        "judges": list(decision.get("judges") or ()),
        "views": [],
        "evidence": [_evidence(item) for item in decision.get("evidence") or ()],
        "path": list(decision.get("path") or ()),
        "message": str(decision.get("message") or ""),
    }


def _outcome(item: Mapping[str, Any]) -> str:  # Any: parsed JSON
    outcome = str(item.get("outcome") or "").removeprefix("OUTCOME_")
    if outcome not in {"ALLOW", "REFUSE", "REDIRECT", "ASK_CLARIFICATION"}:
        raise KalaError(f"the gateway answered with an outcome that this version does not know: {outcome!r}")
    return outcome


def _score(decision: Mapping[str, Any]) -> float:  # Any: parsed JSON
    found = [
        item["score"]
        for item in map(_evidence, decision.get("evidence") or ())
        if item["law"] is not None and (item["outcome"], item["score"]) != ("ASK_CLARIFICATION", 1.0)
    ]
    return max(found, default=1.0 if _outcome(decision) == "REFUSE" else 0.0)


def _evidence(item: Mapping[str, Any]) -> dict[str, Any]:  # Any: parsed JSON
    law = item.get("law")
    return {
        "judge": str(item.get("judge") or ""),
        "law": None if law is None else int(law),
        "category": str(item.get("category") or ""),
        "outcome": _outcome(item),
        "field": str(item.get("field") or ""),
        "start": int(item.get("start") or 0),
        "end": int(item.get("end") or 0),
        "view": str(item.get("view") or ""),
        "rule": str(item.get("rule") or ""),
        "score": float(item.get("score") or 0.0),
    }


def _milliseconds(elapsed: object) -> float:
    """A protobuf Duration as JSON has it, `0.001234s`."""
    try:
        return round(float(str(elapsed).removesuffix("s")) * _MS_PER_SECOND, 3)
    except ValueError:
        return 0.0


@contextmanager
def _client(elsewhere: Elsewhere) -> Iterator[KalaClient]:
    import kala.client
    from kala.target import find_target

    target = find_target(url=elsewhere.url, key=elsewhere.key, state=elsewhere.state)
    with kala.client.KalaClient(target) as client:
        try:
            yield client
        except NotFoundError as error:
            raise NotFoundError(
                f"{target.url} is no gateway of KALA that scores texts: {error.message}"
            ) from error
