"""Names of the trainer's resources: jobs, operations and evaluations by number, datasets and adapters by name and version."""

from __future__ import annotations

import re
import secrets
from typing import Final

from kala.errors import InvalidArgumentError

JOBS: Final = "trainingJobs"
OPERATIONS: Final = "operations"
EVALUATIONS: Final = "evaluations"
DATASETS: Final = "datasets"
ADAPTERS: Final = "adapters"

_NUMBER: Final = re.compile(r"[0-9a-f]{32}")
_STEM: Final = re.compile(r"[a-z0-9-]{1,64}")
_VERSION: Final = re.compile(r"[1-9][0-9]{0,8}")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._~-]{16,64}")


def new_number() -> str:
    """32 hexadecimal digits that nobody can guess."""
    return secrets.token_hex(16)


def numbered(collection: str, number: str) -> str:
    """The name of a numbered resource."""
    return f"{collection}/{number}"


def number_of(collection: str, name: str, *, field: str = "name") -> str:
    """The digits of a numbered resource's name; InvalidArgumentError for anything else."""
    number = name.removeprefix(f"{collection}/")
    if not name.startswith(f"{collection}/") or not _NUMBER.fullmatch(number):
        raise InvalidArgumentError(field, f"must be {collection}/<32 hexadecimal digits>")
    return number


def require_stem(collection: str, name: str, *, field: str = "name") -> str:
    """A name without version, e.g. "adapters/polite"; InvalidArgumentError for anything else."""
    if not name.startswith(f"{collection}/") or not _STEM.fullmatch(name.removeprefix(f"{collection}/")):
        raise InvalidArgumentError(
            field, f"must be {collection}/<name>, with 1 to 64 characters of [a-z0-9-]"
        )
    return name


def versioned(stem: str, version: int) -> str:
    """The name of one version, e.g. "adapters/polite@3"."""
    return f"{stem}@{version}"


def split_version(collection: str, name: str, *, field: str = "name") -> tuple[str, int | None]:
    """The stem and the version of a name; None for a name without one. InvalidArgumentError for anything else."""
    stem, at, version = name.partition("@")
    require_stem(collection, stem, field=field)
    if not at:
        return stem, None
    if not _VERSION.fullmatch(version):
        raise InvalidArgumentError(field, f"must be {collection}/<name>@<version>, version 1 and up")
    return stem, int(version)


def require_version(collection: str, name: str, *, field: str = "name") -> str:
    """A name with its version; InvalidArgumentError for anything else."""
    if split_version(collection, name, field=field)[1] is None:
        raise InvalidArgumentError(field, f"must name a version: {name}@<version>")
    return name


def directory_name(name: str) -> str:
    """The folder of one version: "polite@3" for "adapters/polite@3"; the name must have been checked."""
    return name.partition("/")[2]


def require_request_id(request_id: str) -> str:
    """An id chosen by the caller; InvalidArgumentError unless it has 16 to 64 plain characters."""
    if not _REQUEST_ID.fullmatch(request_id):
        raise InvalidArgumentError("request_id", "must have 16 to 64 characters of [A-Za-z0-9._~-]")
    return request_id
