"""Reading the policy file: strictly, since a typing error in it must not widen what may run."""

from __future__ import annotations

from pathlib import Path

from services.tools.policy.model import Policy

DEFAULT_POLICY = Path(__file__).with_name("default.yaml")


def read_policy(path: Path = DEFAULT_POLICY) -> Policy:
    """The policy of a file; raises InvalidArgumentError naming the file, the key, the limit and the cure."""
    raise NotImplementedError(path)


def parse_policy(data: bytes, *, where: str) -> Policy:
    """The policy of these bytes; raises InvalidArgumentError beginning with `where`."""
    raise NotImplementedError(where, data)
