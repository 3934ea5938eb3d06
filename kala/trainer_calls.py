"""Calls of the trainer over a gateway: jobs, datasets, evaluations and adapters, and waiting for what takes long.

Everything here is JSON of the REST bridge; nothing is imported that only a service has.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kala import errors
from kala.client import KalaClient
from kala.errors import FailedPreconditionError, InternalError, KalaError, NotFoundError

PATH: Final = "/kala/v1/trainer"
LOAD_PATH: Final = "/kala/v1/inference/adapters:load"

ENDED: Final = frozenset({"JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED"})

FIRST_PAUSE_SECONDS: Final = 0.2
LONGEST_PAUSE_SECONDS: Final = 2.0
"""An operation is asked about at most this seldom: a build of seconds and one of hours are both followed well."""

RECONNECTS: Final = 5
"""A watch that was cut is taken up again where it ended; a gateway that cuts five in a row is gone."""

_ACT_SECONDS: Final = 900.0
"""No act lasts longer; reading a million rows of a source may take as long."""

# Codes of google.rpc.Status, which an operation's error carries.
_BY_CODE: Final[Mapping[int, type[KalaError]]] = {
    1: errors.CancelledError,
    4: errors.DeadlineExceededError,
    5: errors.NotFoundError,
    6: errors.AlreadyExistsError,
    7: errors.PermissionDeniedError,
    8: errors.ResourceExhaustedError,
    9: errors.FailedPreconditionError,
    12: errors.UnimplementedError,
    14: errors.UnavailableError,
    15: errors.DataLossError,
}

# Any: JSON of the gateway.
Json = dict[str, Any]
Show = Callable[[Json], None]
"""Told of an operation's metadata as it changes."""


def full_name(name: str, collection: str) -> str:
    """Give a resource's whole name; people leave its collection out."""
    return name if name.startswith(f"{collection}/") else f"{collection}/{name}"


def new_request_id() -> str:
    """Name a request, so that sending it again starts nothing twice."""
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class Trainer:
    """The trainer behind one gateway."""

    client: KalaClient
    clock: Callable[[], float] = time.monotonic

    def plan(self, *, text: str | None = None, spec: Mapping[str, Any] | None = None) -> Json:
        """Say what a job would do; nothing is started."""
        body: Json = {"yaml": text} if spec is None else {"spec": dict(spec)}
        return dict(self.client.call("POST", f"{PATH}/jobs:plan", body=body).get("plan") or {})

    def submit(self, spec: Mapping[str, Any], *, request_id: str | None = None) -> Json:
        """Start a job as a plan gave it; the operation names it."""
        body = {"request_id": request_id or new_request_id(), "spec": dict(spec)}
        return self.client.call("POST", f"{PATH}/trainingJobs", body=body)

    def job(self, name: str) -> Json:
        """Read a job."""
        return dict(self.client.call("GET", f"{PATH}/{full_name(name, 'trainingJobs')}")["job"])

    def jobs(self, *, adapter: str = "", state: str = "") -> list[Json]:
        """List jobs, the newest first."""
        asked = {"adapter": full_name(adapter, "adapters") if adapter else "", "state": state}
        return self.client.pages(f"{PATH}/trainingJobs", "jobs", params=_set_ones(asked))

    def cancel(self, name: str) -> Json:
        """End a job; it is CANCELLING until its processes are gone."""
        path = f"{PATH}/{full_name(name, 'trainingJobs')}:cancel"
        return dict(self.client.call("POST", path, body={})["job"])

    def watch(self, name: str) -> Iterator[Json]:
        """Give a job's events until it has ended; a stream that is cut is taken up where it ended."""
        path, seen, cuts = f"{PATH}/{full_name(name, 'trainingJobs')}:watch", 0, 0
        while cuts <= RECONNECTS:
            try:
                with self.client.lines(path, method="GET", params={"after_sequence": str(seen)}) as events:
                    for event in events:
                        seen, cuts = int(event.get("sequence") or seen), 0
                        yield event
                        if (event.get("job") or {}).get("progress", {}).get("state") in ENDED:
                            return
            except FailedPreconditionError:
                # The trainer began anew and has forgotten what came before: go on from how the job stands now.
                if not seen:
                    raise
                seen = 0
            except (errors.UnavailableError, errors.DeadlineExceededError, InternalError):
                if cuts == RECONNECTS:
                    raise
            cuts += 1
            self.client.sleep(FIRST_PAUSE_SECONDS * 2**cuts)
        raise errors.UnavailableError(f"{name} can no longer be followed; `kala train list` says how it is")

    def logs(self, name: str, *, follow: bool = False, after_line: int = 0) -> Iterator[Json]:
        """Give a job's log lines."""
        path = f"{PATH}/{full_name(name, 'trainingJobs')}:watchLogs"
        asked = {"after_line": str(after_line), "follow": "true" if follow else "false"}
        with self.client.lines(path, method="GET", params=asked) as lines:
            yield from lines

    def check_dataset(self, spec: Mapping[str, Any], *, max_rows: int = 0) -> Json:
        """Read a dataset's sources without building it; the reply's spec has every digest."""
        body = {"spec": dict(spec), "max_rows": max_rows}
        return self.client.call("POST", f"{PATH}/datasets:check", body=body, timeout_seconds=_ACT_SECONDS)

    def build_dataset(self, spec: Mapping[str, Any], show: Show) -> Json:
        """Build a dataset and wait for it."""
        body = {"request_id": new_request_id(), "spec": dict(spec)}
        return self.wait(self.client.call("POST", f"{PATH}/datasets:build", body=body), show)

    def dataset(self, name: str) -> Json:
        """Read a dataset with its card; without a version the newest."""
        return dict(self.client.call("GET", f"{PATH}/{full_name(name, 'datasets')}")["dataset"])

    def datasets(self) -> list[Json]:
        """List datasets, the newest first."""
        return self.client.pages(f"{PATH}/datasets", "datasets")

    def adapter(self, name: str) -> Json:
        """Read an adapter with its signed manifest; without a version the newest promoted one."""
        return dict(self.client.call("GET", f"{PATH}/{full_name(name, 'adapters')}")["adapter"])

    def adapters(self, *, name: str = "", state: str = "") -> list[Json]:
        """List adapters, the newest first."""
        asked = {"name": full_name(name, "adapters") if name else "", "state": state}
        return self.client.pages(f"{PATH}/adapters", "adapters", params=_set_ones(asked))

    def evaluation(self, name: str) -> Json:
        """Read an evaluation."""
        return dict(self.client.call("GET", f"{PATH}/{full_name(name, 'evaluations')}")["evaluation"])

    def evaluate(self, adapter: Json, profile: str, show: Show) -> Json:
        """Run a gate profile against an adapter, wait for it, and give the evaluation."""
        base = base_of(adapter)
        planned = self.plan(
            spec={
                "adapter": adapter["name"].partition("@")[0],
                "base": base,
                "gate_profile": {"name": profile},
            }
        )
        reference = (planned.get("spec") or {}).get("gate_profile") or {}
        if not reference.get("sha256"):
            said = "; ".join(map(str, planned.get("problems") or ())) or "the trainer has none of that name"
            raise NotFoundError(f"gate profile {profile!r}: {said}")
        body = {
            "request_id": new_request_id(),
            "adapter": adapter["reference"],
            "base": base,
            "profile": reference,
        }
        return self.wait(self.client.call("POST", f"{PATH}/adapters:evaluate", body=body), show)

    def passed_evaluation(self, adapter: Json) -> Json:
        """Give the newest evaluation that an adapter passed; FailedPreconditionError when there is none."""
        for name in adapter.get("evaluations") or ():
            found = self.evaluation(str(name))
            if found.get("outcome") == "GATE_OUTCOME_PASSED":
                return found
        raise FailedPreconditionError(
            f"{adapter['name']} has passed no gate; run `kala eval {adapter['name']}`",
            reason="NO_PASSED_GATE",
        )

    def promote(self, adapter: Json, evaluation: Json) -> Json:
        """Have the manifest signed with a passed gate."""
        result = base64.b64decode(evaluation["evidence"]["result"])
        body = {
            "request_id": new_request_id(),
            "adapter": adapter["reference"],
            "evaluation": {
                "name": evaluation["name"],
                "sha256": base64.b64encode(hashlib.sha256(result).digest()).decode(),
                "bytes": len(result),
            },
        }
        return dict(self.client.call("POST", f"{PATH}/adapters:promote", body=body)["adapter"])

    def revoke(self, name: str, reason: str) -> Json:
        """End an adapter's right to serve."""
        path = f"{PATH}/{full_name(name, 'adapters')}:revoke"
        return self.client.call("POST", path, body={"reason": reason})

    def export(self, name: str, export_format: str, weight_format: str, show: Show) -> Json:
        """Write an adapter in another layout and wait for it."""
        body = {"format": export_format, "weight_format": weight_format, "request_id": new_request_id()}
        path = f"{PATH}/{full_name(name, 'adapters')}:export"
        return self.wait(self.client.call("POST", path, body=body), show)

    def load(self, adapter: Json, backend: str) -> Json:
        """Load a promoted adapter into a backend of inference."""
        body = {
            "adapter": adapter["name"],
            "backend": full_name(backend, "backends"),
            "manifest": adapter["manifest"],
            "location": adapter["location"],
        }
        return self.client.call("POST", LOAD_PATH, body=body, timeout_seconds=_ACT_SECONDS)

    def wait(self, operation: Mapping[str, Any], show: Show) -> Json:
        """Wait until an operation has ended, and give its response; raises the KalaError that ended it."""
        pause, current = FIRST_PAUSE_SECONDS, dict(operation)
        while True:
            show(dict(current.get("metadata") or {}))
            if current.get("error"):
                raise error_of_operation(current["error"])
            if current.get("done"):
                return dict(current.get("response") or {})
            self.client.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)
            current = self.client.call("GET", f"{PATH}/{operation['name']}")


def base_of(adapter: Mapping[str, Any]) -> Json:
    """Give the reference to an adapter's base, as a job names it."""
    base = (adapter.get("description") or {}).get("base") or {}
    size = sum(int(file.get("bytes") or 0) for file in base.get("files") or ())
    return {"name": base.get("name", ""), "sha256": base.get("digest", ""), "bytes": str(size)}


def error_of_operation(status: Mapping[str, Any]) -> KalaError:
    """Give the error that ended an operation."""
    message = str(status.get("message") or "it failed without a word")
    kind = _BY_CODE.get(int(status.get("code") or 0), errors.InternalError)
    reasons = (each.get("reason") for each in status.get("details") or () if isinstance(each, dict))
    if status.get("code") == _INVALID_ARGUMENT:
        return errors.InvalidArgumentError(
            "", message, reason=next((str(each) for each in reasons if each), None)
        )
    return kind(message, reason=next((str(each) for each in reasons if each), None))


_INVALID_ARGUMENT: Final = 3


def _set_ones(asked: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in asked.items() if value}
