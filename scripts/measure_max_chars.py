"""Write the longest possible match, in folded characters, into every hard block that judges output.

Run it after changing such a block or a fragment, then re-sign. The width is what Python's own parser of regular
expressions derives from the RE2 source; output rules use only syntax that both share.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import yaml

# The standard library has no public way to ask for a pattern's width; this is a developer's tool, not a service.
from re import _parser  # type: ignore[attr-defined]  # isort: skip

from services.ethics.patterns import expand

CONSTITUTION = Path(__file__).resolve().parents[1] / "constitution"


def width(source: str) -> int:
    """The most characters that the pattern can match."""
    return int(_parser.parse(source).getwidth()[1])


def main() -> int:
    """Rewrite every `max_chars:` line in place, keeping comments and layout."""
    fragments = yaml.safe_load((CONSTITUTION / "fragments.yaml").read_text())
    for path in sorted((CONSTITUTION / "hard_blocks").glob("*.yaml")):
        text = path.read_text()
        for block in yaml.safe_load(text)["blocks"]:
            if "max_chars" in block:
                widest = width(expand(block["pattern"], fragments, bounded=True).spaced)
                entry = re.compile(rf"(- id: {re.escape(block['id'])}\n(?:    .*\n)*?    max_chars: )\d+")
                text = entry.sub(rf"\g<1>{widest}", text)
                sys.stdout.write(f"{block['id']}: {widest}\n")
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
