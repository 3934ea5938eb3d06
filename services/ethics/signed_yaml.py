"""Read the YAML files of the constitution; by libyaml where PyYAML was built with it, which takes an eighth of the time."""

from __future__ import annotations

from typing import Any, Final

import yaml

_LOADER: Final[Any] = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)  # Any: its two classes share no typed base


def load_yaml(text: str) -> Any:  # Any: whatever YAML holds; the reader's schema decides
    """The document as plain values; raises yaml.YAMLError."""
    return yaml.load(text, _LOADER)  # noqa: S506 - either is a SafeLoader
