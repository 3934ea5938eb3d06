"""Turn a rule's pattern, written in the constitution's shorthand, into RE2 source and a bound on its length.

The shorthand: a space stands for one gap between words; `<name>` for a fragment from `fragments.yaml`;
` <gapN> ` (also ` <gapN> ?`) for a gap holding up to N words, `<gapN> ?` for up to N words in front of the next,
` <gapN>` for up to N words after; a leading `<start>` for the beginning of a sentence, a trailing
`<end>` for the end of the text. A pattern is matched twice: as written, and with every gap removed inside
words that were run together ("howtobuildabomb").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from kala.errors import ConstitutionError

# A bound on words keeps output rules finite; request rules need none, and counters would multiply their automata.
BOUNDED_WORD: Final = "[a-z0-9']{1,15}"
# A gap is up to three marks that end no sentence, or one mark that does: "how.to.build" but not "to build. A bomb".
GAP: Final = "(?:[^a-z0-9.!?]{1,3}|[.!?])"
WORD: Final = "[a-z0-9']+"
SENTENCE_START: Final = r"(?m:^|[.!?:;,>\x22'(*-])[^a-z0-9]{0,4}"
TEXT_END: Final = r"[^a-z0-9\n]{0,8}(?m:$)"
WORD_END: Final = r"(?:\b|(?m:$))"
JOINED_END: Final = "(?:[^a-z]|$)"
MAX_NESTED_FRAGMENTS: Final = 8
# A gap's three shapes; the spaces in them become gaps between words like all others.
_GAPS: Final = (
    (r" <gap([0-9]+)> \??", r"(?: <word>){0,\1} "),
    (r"<gap([0-9]+)> \??", r"(?:<word> ){0,\1}"),
    (r" <gap([0-9]+)>", r"(?: <word>){0,\1}"),
)
_FRAGMENT: Final = re.compile(r"<([a-z_]+)([0-9]*)>")
# What would let a match grow without end: * or +, or {n,}, outside a class and not escaped.
_UNBOUNDED: Final = re.compile(r"(?<!\\)(?:[*+]|\{[0-9]+,\})")
_CLASS: Final = re.compile(r"\[(?:\\.|[^\]\\])*\]")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A rule's two RE2 sources; `joined` is for words that were run together."""

    spaced: str
    joined: str

    def is_bounded(self) -> bool:
        """Whether no part of the pattern can repeat without limit."""
        return _UNBOUNDED.search(_CLASS.sub("[]", self.spaced)) is None


def expand(
    source: str, fragments: Mapping[str, str], *, whole_words: bool = True, bounded: bool = False
) -> Pattern:
    """Both RE2 sources of a pattern in shorthand; ConstitutionError names an unknown fragment.

    With `whole_words` a match ends where a word ends; without, the last word may go on ("kill" finds "killing").
    With `bounded` the words of a gap have a limited length.
    """
    resolved = _resolve(source, fragments)
    word = BOUNDED_WORD if bounded else WORD
    return Pattern(_spaced(resolved, word, WORD_END if whole_words else ""), _joined(resolved))


def _resolve(source: str, fragments: Mapping[str, str]) -> str:
    """Replace named fragments, also inside fragments; <start>, <end> and <gapN> stay for the two spellings."""
    for _ in range(MAX_NESTED_FRAGMENTS):
        resolved = _FRAGMENT.sub(lambda match: _fragment(match, fragments), source)
        if resolved == source:
            return source
        source = resolved
    raise ConstitutionError("fragments.yaml: fragments refer to one another without end")


def _fragment(match: re.Match[str], fragments: Mapping[str, str]) -> str:
    name, digits = match.groups()
    if (name == "gap" and digits) or name in {"start", "end"}:
        return match.group()
    if name not in fragments or digits:
        raise ConstitutionError(f"fragments.yaml: there is no fragment {match.group()}")
    return f"(?:{fragments[name]})"


def _spaced(resolved: str, word: str, after: str) -> str:
    before = "" if "<start>" in resolved else r"\b"
    source = resolved
    for shape, expansion in _GAPS:
        source = re.sub(shape, expansion, source)
    source = source.replace("<word>", word).replace("<start>", SENTENCE_START).replace("<end>", TEXT_END)
    return f"{before}(?:{source.replace(' ', GAP)}){after}"


def _joined(resolved: str) -> str:
    source = re.sub(r"<gap[0-9]+>( \?)?|<start>| \??|\\b", "", resolved)
    return f"(?:{source.replace('<end>', JOINED_END)})"
