"""Write `constitution/confusables.json`: which look-alike characters stand for which ASCII letter or digit.

Sources: Unicode's confusables.txt (UTS #39, Unicode License v3) as packaged by confusable-homoglyphs 3.3.1
(MIT; `pip install confusable-homoglyphs==3.3.1` before running this), Unicode character names for letters with
strokes, small capitals and enclosed letters, and a few Greek and Cyrillic shapes of our own. Re-sign afterwards.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from pathlib import Path
from typing import Final

from confusable_homoglyphs import confusables

TARGET: Final = Path(__file__).resolve().parents[1] / "constitution" / "confusables.json"
SOURCE: Final = "Unicode confusables.txt via confusable-homoglyphs 3.3.1; Unicode names; own shapes"
NAMED_LETTER: Final = re.compile(
    r"(?:LATIN (?:LETTER SMALL CAPITAL|SMALL LETTER|CAPITAL LETTER)"
    r"|(?:NEGATIVE )?(?:CIRCLED|SQUARED|PARENTHESIZED) LATIN (?:CAPITAL|SMALL) LETTER"
    r"|REGIONAL INDICATOR SYMBOL LETTER|TORTOISE SHELL BRACKETED LATIN CAPITAL LETTER) ([A-Z])(?: WITH .*)?"
)
# Shapes that pass for a Latin letter in running text although UTS #39 does not list them.
OWN: Final = dict(zip("βвнкмтгипя", "bbhkmtrnnr", strict=True))


def _listed(char: str, data: dict[str, list[dict[str, str]]]) -> str | None:
    options = {
        entry["c"].lower() for entry in data.get(char, ()) if len(entry["c"]) == 1 and entry["c"].isascii()
    }
    letters = sorted(option for option in options if option.isalnum())
    return letters[-1] if letters else None


def _named(char: str) -> str | None:
    match = NAMED_LETTER.fullmatch(unicodedata.name(char, ""))
    return match.group(1).lower() if match else None


def letter_for(char: str, data: dict[str, list[dict[str, str]]]) -> str | None:
    """The ASCII letter or digit that this character is read as, or None."""
    if char in OWN:
        return OWN[char]
    lower = char.lower() if len(char.lower()) == 1 else char
    listed = _listed(char, data)
    # UTS #39 folds every I-like capital to l; a reader who lower-cases it reads i.
    if listed == "l" and _listed(lower, data) == "i":
        return "i"
    return listed or _named(char) or _listed(lower, data)


def main() -> int:
    """Write the table for every character that compatibility decomposition alone does not turn into ASCII."""
    data = confusables.confusables_data
    table: dict[str, str] = {}
    for code in range(0x80, sys.maxunicode + 1):
        char = chr(code)
        if unicodedata.normalize("NFKD", char)[0].isascii():
            continue
        letter = letter_for(char, data)
        if letter is not None and letter.isascii():
            table[char] = letter
    document = {"source": SOURCE, "letters": table}
    TARGET.write_text(json.dumps(document, ensure_ascii=True, indent=0, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
