"""Which settings the user's own files decide, so that the defaults of `kala up` do not overrule them.

The processes read `kala.yaml` and `.env` themselves; environment variables win over both, and `kala up` speaks to its
children through variables. So it must keep silent about what the files say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml

CONFIG_VARIABLE: Final = "KALA_CONFIG"
CONFIG_FILE: Final = "kala.yaml"
ENV_FILE: Final = ".env"
_ASSIGNMENT: Final = re.compile(r"^\s*(?:export\s+)?(KALA_[A-Z0-9_]+)\s*=", re.MULTILINE)


def named_in_files(environ: Mapping[str, str], cwd: Path) -> frozenset[str]:
    """The `KALA_<PART>_<FIELD>` variables that `.env` and `kala.yaml` set; files that cannot be read name none.

    A file that is wrong is reported by the process that reads it, with the line at fault.
    """
    names = set(_ASSIGNMENT.findall(_text(cwd / ENV_FILE)))
    try:
        sections = yaml.safe_load(_text(cwd / environ.get(CONFIG_VARIABLE, CONFIG_FILE)))
    except yaml.YAMLError:
        sections = None
    for section, fields in sections.items() if isinstance(sections, dict) else ():
        if isinstance(fields, dict):
            names |= {f"KALA_{section}_{field}".upper().replace("-", "_") for field in fields}
    return frozenset(names)


@dataclass(frozen=True, slots=True)
class Section:
    """What the user's own files say about one part, and nothing that they say about the others."""

    yaml: str = ""
    """A `kala.yaml` with this section alone."""
    env: str = ""
    """A `.env` with this part's variables alone."""
    values: Mapping[str, str] = field(default_factory=dict)
    """Plain values by field; those of `.env` win."""


def section_of_files(environ: Mapping[str, str], cwd: Path, section: str) -> Section:
    """Give one part's share of `kala.yaml` and `.env`, for a part that may not read the files themselves."""
    try:
        sections = yaml.safe_load(_text(cwd / environ.get(CONFIG_VARIABLE, CONFIG_FILE)))
    except yaml.YAMLError:
        sections = None
    found = sections.get(section) if isinstance(sections, dict) else None
    fields = found if isinstance(found, dict) else {}
    prefix = f"KALA_{section.upper().replace('-', '_')}_"
    own = re.compile(
        rf"^[ \t]*(?:export[ \t]+)?({re.escape(prefix)}([A-Z0-9_]+))[ \t]*=[ \t]*(.*)$", re.MULTILINE
    )
    lines = list(own.finditer(_text(cwd / ENV_FILE)))
    return Section(
        yaml=yaml.safe_dump({section: fields}) if fields else "",
        env="".join(f"{line[1]}={line[3]}\n" for line in lines),
        values={
            **{str(name): str(value) for name, value in fields.items()},
            **{line[2].lower(): line[3].strip().strip("'\"") for line in lines},
        },
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
