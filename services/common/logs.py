"""Structured log lines on stderr: JSON for machines, plain text on a terminal; never what people wrote or read.

Digests, sizes and identifiers may be logged; prompts, outputs, keys and their like are replaced by a mark if a line
carries them by mistake.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING, Final, Literal, TextIO

import structlog
from structlog.contextvars import bind_contextvars

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]

REDACTED: Final = "[redacted]"

CONTENT_KEYS: Final = frozenset(
    {
        "prompt", "prompts", "message", "messages", "content", "text", "output", "outputs", "completion", "response",
        "body", "arguments", "query", "document", "documents", "reasoning",
        "api_key", "authorization", "key", "password", "secret", "token", "private_key", "cookie",
    }
)  # fmt: skip
"""Field names under which content or credentials would travel; their digests have other names."""


_MANY_LINES: Final = frozenset({"exception", "stack"})
"""What the console prints as it stands."""


def configure_logging(
    *, part: str, level: Level = "info", style: Format = "auto", stream: TextIO | None = None
) -> None:
    """Send this process's lines, and warnings of its libraries, to `stream` (stderr) in one format."""
    out: TextIO = sys.stderr if stream is None else stream
    as_json = style == "json" or (style == "auto" and not out.isatty())
    minimum = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _name_part(part),
        redact_content,
    ]
    renderer = _renderer(as_json=as_json)
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(minimum),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(minimum, logging.WARNING))


def bind_log_fields(**fields: str | int | bool) -> None:
    """Add fields, such as the session's id, to every line that this task writes from now on."""
    bind_contextvars(**fields)


def redact_content(_logger: WrappedLogger, _name: str, line: EventDict) -> EventDict:
    """Replace the value of every field that would carry content or a credential."""
    for key in CONTENT_KEYS.intersection(line):
        line[key] = REDACTED
    return line


def _name_part(part: str) -> Processor:
    def add_part(_logger: WrappedLogger, _name: str, line: EventDict) -> EventDict:
        line["part"] = part
        return line

    return add_part


def _renderer(*, as_json: bool) -> list[Processor]:
    if as_json:
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_to_json)]
    # plain_traceback: the other formatters print local variables, which hold prompts and keys.
    return [
        _without_control_characters,
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]


def _without_control_characters(_logger: WrappedLogger, _name: str, line: EventDict) -> EventDict:
    """Escape what a terminal would obey: a field may hold what a stranger sent."""
    for key, value in line.items():
        if isinstance(value, str) and key not in _MANY_LINES and not value.isprintable():
            line[key] = repr(value)
    return line


# One encoder for all lines: json.dumps with options builds a new one for each.
_ENCODER: Final = json.JSONEncoder(default=str, ensure_ascii=False, separators=(",", ":"))


def _to_json(line: EventDict, **_options: object) -> str:
    return _ENCODER.encode(line)
