"""The report's tables as Markdown and as one HTML page that needs nothing from elsewhere and runs no scripts. Pure."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from typing import Final

from services.ethics.evaluation.report import Table

TITLE: Final = "How well KALA judges"
COMMAND: Final = "kala ethics eval"
_MARKUP: Final = re.compile(r"([\\`*_\[\]<>|#~$])")
_SPACE: Final = re.compile(r"\s+")
_STYLE: Final = """
:root { color-scheme: light dark; --line: #8886; --head: #8882; }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
caption { font-weight: 600; padding: .5rem 0; text-align: left; }
th, td { border: 1px solid var(--line); padding: .3rem .5rem; text-align: left; vertical-align: top; }
thead th { background: var(--head); }
td { overflow-wrap: anywhere; }
img { background: #fff; height: auto; max-width: 100%; }
"""


def markdown(tables: Sequence[Table]) -> str:
    """All tables as GitHub reads them; texts are shown as they are, whatever marks they hold."""
    parts = [f"# {TITLE}\n\nWritten by `{COMMAND}`; not edited.\n"]
    for table in tables:
        parts.append(f"\n## {table.title}\n")
        if table.note:
            parts.append(f"\n{table.note}\n")
        if not table.rows:
            parts.append("\nNone.\n")
            continue
        parts.append(f"\n{_line(table.columns)}\n{_line(['---'] * len(table.columns), raw=True)}\n")
        parts += [f"{_line(row)}\n" for row in table.rows]
    return "".join(parts)


def page(tables: Sequence[Table], reliability_png: bytes | None) -> str:
    """All tables as one page, in the reader's light or dark; the drawing, if there is one, is inside it."""
    sections = "\n".join(_section(table) for table in tables)
    figure = "" if reliability_png is None else _figure(reliability_png)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{TITLE}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{TITLE}</h1>\n"
        f"<p>Written by <code>{COMMAND}</code>.</p>\n{figure}{sections}\n</main>\n</body>\n</html>\n"
    )


def _section(table: Table) -> str:
    title = html.escape(table.title)
    note = f"<p>{html.escape(table.note)}</p>\n" if table.note else ""
    if not table.rows:
        return f"<section>\n<h2>{title}</h2>\n{note}<p>None.</p>\n</section>"
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table.columns)
    rows = "\n".join(_row(row) for row in table.rows)
    return (
        f'<section>\n<h2>{title}</h2>\n{note}<div class="wide" tabindex="0" role="region" aria-label="{title}">\n'
        f"<table>\n<caption>{title}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n"
        "</div>\n</section>"
    )


def _row(row: Sequence[str]) -> str:
    first, *rest = (html.escape(_readable(cell)) for cell in row)
    return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'


def _figure(png: bytes) -> str:
    data = base64.b64encode(png).decode("ascii")
    text = "Share of harmful texts by score; a straight diagonal would be perfect. The numbers are in a table below."
    return f'<figure>\n<img src="data:image/png;base64,{data}" alt="{text}">\n<figcaption>{text}</figcaption>\n</figure>\n'


def _line(cells: Sequence[str], *, raw: bool = False) -> str:
    return f"| {' | '.join(cell if raw else _MARKUP.sub(_escaped, _readable(cell)) for cell in cells)} |"


def _escaped(match: re.Match[str]) -> str:
    return f"\\{match[1]}"


def _readable(text: str) -> str:
    """On one line, and without what a terminal or a browser would obey, hide or refuse."""
    flat = _SPACE.sub(" ", text).strip()
    return "".join(char if char.isprintable() else "\ufffd" for char in flat)
