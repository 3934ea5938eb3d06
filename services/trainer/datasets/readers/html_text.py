"""The text of a post's HTML, in time that grows with its length alone whatever a stranger has written into it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Final

# Posts write < and > inside of attributes as entities, so neither belongs to a tag.
_TAG: Final = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]{0,15})(?![a-zA-Z0-9])[^<>]*>")
_COMMENT: Final = "<!--"
_COMMENT_END: Final = "-->"
_LINES: Final = frozenset({"p", "br", "ul", "ol", "blockquote", "h1", "h2", "h3", "hr"})
_ENDS: Final = frozenset({"p", "blockquote", "h1", "h2", "h3"})
_FENCE: Final = "```"


def text_of_html(source: str) -> str:
    """Returns the text of a post with its code in fences."""
    parts: list[str] = []
    preformatted = 0
    for closes, tag, text in _tokens(source):
        if tag == "pre":
            preformatted = max(preformatted - 1, 0) if closes else preformatted + 1
            parts.append(f"\n{_FENCE}\n")
        elif tag == "code" and not preformatted:
            parts.append("`")
        elif tag == "li" and not closes:
            parts.append("\n- ")
        elif tag in (_ENDS if closes else _LINES):
            parts.append("\n")
        parts.append(text if preformatted else text.replace("\n", " "))
    return _tidy("".join(parts)).replace("\0", "").strip()


def _tokens(source: str) -> Iterator[tuple[str, str, str]]:
    """Yields "/" for a tag that closes, the tag's name and the text after it; comments go, other marks are text."""
    closes = tag = ""
    text: list[str] = []
    at = 0
    comments = True
    while (start := source.find("<", at)) >= 0:
        text.append(source[at:start])
        found = _TAG.match(source, start)
        if found is not None:
            yield closes, tag, _plain(text)
            closes, tag, text, at = found[1], found[2].lower(), [], found.end()
            continue
        end = -1
        if comments and source.startswith(_COMMENT, start):
            end = source.find(_COMMENT_END, start)
            # None ends from here on: looking again for each would take the square of the time.
            comments = end >= 0
        at = start + 1 if end < 0 else end + len(_COMMENT_END)
        if end < 0:
            text.append("<")
    text.append(source[at:])
    yield closes, tag, _plain(text)


def _plain(parts: list[str]) -> str:
    text = "".join(parts)
    try:
        return html.unescape(text)
    except ValueError:
        # A reference of thousands of digits, which Python makes no number of.
        return text


def _tidy(text: str) -> str:
    """No spaces at the ends of lines, no empty line before a fence's end, and at most one empty line in a row."""
    lines: list[str] = []
    for line in (each.rstrip(" \t") for each in text.split("\n")):
        if line == _FENCE:
            while lines and not lines[-1]:
                lines.pop()
        if line or lines[-1:] != [""]:
            lines.append(line)
    return "\n".join(lines)
