"""The Job and the Secret of one run, as pure values, and the check that a cluster made of them what was asked."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.tools.sandbox.model import Limits, SetupFailedError

# Values of the Kubernetes API are JSON: their shape is what `verify` is about.
Json = dict[str, Any]

CONTAINER: Final = "run"
INPUTS: Final = "/kala/in"
WORKSPACE: Final = "/workspace"
# What a Secret holds at most is 1 MiB; its fields are base64 on their way only.
MAX_INPUT_BYTES: Final = 1_000_000
# Where the cluster gives a pod no node or no image for so long, it is given up.
STARTUP_SECONDS: Final = 90.0
# A finished Job stays so long if whoever made it died.
_TTL_SECONDS: Final = 60
# The runner beside the code, a Python of its own.
_RUNNER_BYTES: Final = 96 * 1024 * 1024
# A pinned image: a tag may hold something else tomorrow.
_IMAGE: Final = re.compile(r"^[^@\s]+@sha256:[0-9a-f]{64}$")
_QUANTITY: Final = re.compile(r"^([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")
_SUFFIXES: Final = {
    None: 1.0,
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
}
_QUANTITIES: Final = frozenset({"cpu", "memory", "ephemeral-storage", "sizeLimit"})
# What nobody may add to the container between the request and the pod.
_CONTAINER_ADDITIONS: Final = ("env", "envFrom", "lifecycle", "ports", "volumeDevices", "stdin", "tty")


@dataclass(frozen=True, slots=True)
class PodSettings:
    """What every pod of a run has in common."""

    namespace: str
    # With its digest: "registry/name@sha256:…". It has /usr/bin/python3, /usr/bin/node and /bin/bash.
    image: str
    # Names a runtime whose kernel is not the node's (gVisor, Kata).
    runtime_class: str
    replica: str
    service_account: str = "kala-sandbox"
    # Every run gets a uid of its own out of these, so that limits on processes are its own.
    first_uid: int = 200_000
    uids: int = 100_000
    cpus: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what would be unpinned or unprotected."""
        if not _IMAGE.match(self.image):
            raise SetupFailedError(
                f"tools.sandbox_image: {self.image!r} is not pinned; name it with @sha256:…"
            )
        if not self.runtime_class:
            raise SetupFailedError(
                "tools.runtime_class: it is empty, and a plain pod shares the node's kernel; name gvisor or kata"
            )


def job(name: str, settings: PodSettings, limits: Limits, *, uid: int) -> Json:
    """Give the Job. It ends and deletes itself even when its maker dies: by its deadline, then by its time to live."""
    labels = {
        "app.kubernetes.io/name": "kala-sandbox",
        "app.kubernetes.io/part-of": "kala",
        "kala.dev/replica": settings.replica,
        "kala.dev/run": name,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": settings.namespace, "labels": labels},
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "activeDeadlineSeconds": math.ceil(limits.wall_seconds + STARTUP_SECONDS),
            "ttlSecondsAfterFinished": _TTL_SECONDS,
            "template": {"metadata": {"labels": labels}, "spec": pod_spec(name, settings, limits, uid=uid)},
        },
    }


def pod_spec(name: str, settings: PodSettings, limits: Limits, *, uid: int) -> Json:
    """Give the pod: no token, no host, no root, no capability, a read-only image, one sized workspace in memory."""
    amounts = {
        "cpu": str(settings.cpus),
        # A workspace in memory counts as memory.
        "memory": str(limits.memory_bytes + limits.disk_bytes + _RUNNER_BYTES),
        "ephemeral-storage": str(16 * 1024 * 1024),
    }
    return {
        "restartPolicy": "Never",
        "runtimeClassName": settings.runtime_class,
        "serviceAccountName": settings.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "hostNetwork": False,
        "hostPID": False,
        "hostIPC": False,
        "shareProcessNamespace": False,
        "terminationGracePeriodSeconds": 0,
        "hostname": "sandbox",
        # No name resolves in there.
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["127.0.0.1"]},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": uid,
            "runAsGroup": uid,
            "fsGroup": uid,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": CONTAINER,
                "image": settings.image,
                "imagePullPolicy": "IfNotPresent",
                "command": ["/usr/bin/python3", "-I", "-S", f"{INPUTS}/runner.py", INPUTS, WORKSPACE],
                "workingDir": WORKSPACE,
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "privileged": False,
                    "readOnlyRootFilesystem": True,
                    "runAsNonRoot": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "resources": {"limits": amounts, "requests": amounts},
                "volumeMounts": [
                    {"name": "in", "mountPath": INPUTS, "readOnly": True},
                    {"name": "workspace", "mountPath": WORKSPACE},
                ],
            }
        ],
        "volumes": [
            {"name": "in", "secret": {"secretName": name, "defaultMode": 0o444}},
            {"name": "workspace", "emptyDir": {"medium": "Memory", "sizeLimit": str(limits.disk_bytes)}},
        ],
    }


def secret(name: str, settings: PodSettings, job_uid: str, files: Mapping[str, bytes]) -> Json:
    """Give what the pod waits for: the code and its inputs, deleted with the Job.

    Raises:
        SetupFailedError: it is more than a Secret holds.
    """
    size = sum(len(content) for content in files.values())
    if size > MAX_INPUT_BYTES:
        raise SetupFailedError(
            f"code, stdin and files are {size:,} bytes packed; the Kubernetes tier carries {MAX_INPUT_BYTES:,}: send less"
        )
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "immutable": True,
        "metadata": {
            "name": name,
            "namespace": settings.namespace,
            "labels": {"app.kubernetes.io/name": "kala-sandbox", "kala.dev/replica": settings.replica},
            "ownerReferences": [
                {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job_uid, "controller": True}
            ],
        },
        "data": {key: base64.b64encode(content).decode("ascii") for key, content in files.items()},
    }


def verify(pod: Json, asked: Json) -> None:
    """Check that the pod is what was asked for, and nothing more, before it is given anything to run.

    Admission may change a pod: a sidecar, another RuntimeClass, a mounted token. Values that Kubernetes fills in are allowed.

    Raises:
        SetupFailedError: names the field that differs.
    """
    spec = pod.get("spec")
    if not isinstance(spec, dict):
        raise SetupFailedError("the cluster's pod has no spec")
    _covers(spec, asked, "spec")
    for group in ("initContainers", "ephemeralContainers"):
        if spec.get(group):
            raise SetupFailedError(
                f"the cluster added spec.{group} to the pod; exempt the namespace from injection"
            )
    container = spec["containers"][0]
    for name in _CONTAINER_ADDITIONS:
        if container.get(name):
            raise SetupFailedError(
                f"the cluster added {name} to the container; exempt the namespace from injection"
            )
    if container["securityContext"]["capabilities"].get("add"):
        raise SetupFailedError("the cluster added capabilities to the container")


def _covers(actual: object, asked: object, path: str) -> None:
    """Check that `actual` says all that `asked` says; objects may say more, lists may not."""
    if isinstance(asked, dict):
        if not isinstance(actual, dict):
            raise _differs(path, actual, asked)
        for key, value in asked.items():
            # An unset flag is false: the API server leaves out what is.
            if value is False and key not in actual:
                continue
            if key in _QUANTITIES:
                _same_amount(actual.get(key), value, f"{path}.{key}")
            else:
                _covers(actual.get(key), value, f"{path}.{key}")
    elif isinstance(asked, list):
        if not isinstance(actual, list) or len(actual) != len(asked):
            raise _differs(path, actual, asked)
        for index, value in enumerate(asked):
            _covers(actual[index], value, f"{path}[{index}]")
    # 0 and False are equal in Python, and so are 1 and True.
    elif type(actual) is not type(asked) or actual != asked:
        raise _differs(path, actual, asked)


def _same_amount(actual: object, asked: object, path: str) -> None:
    if amount(actual) != amount(asked):
        raise _differs(path, actual, asked)


def amount(quantity: object) -> float | None:
    """Read a Kubernetes quantity; None for what is none."""
    match = _QUANTITY.match(str(quantity))
    return float(match.group(1)) * _SUFFIXES[match.group(2)] if match else None


def _differs(path: str, actual: object, asked: object) -> SetupFailedError:
    return SetupFailedError(
        f"the cluster changed {path} of the pod from {str(asked)[:80]!r} to {str(actual)[:80]!r}: nothing of the code ran"
    )
