"""Log lines: one format for everything, and never what people wrote."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from services.common.logs import CONTENT_KEYS, Format, configure_logging


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _undone() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def log_a_bug(prompt: str) -> None:
    try:
        [][len(prompt)]
    except IndexError:
        structlog.get_logger().exception("bug")


def written(stream: io.StringIO, style: Format = "auto", **fields: object) -> str:
    configure_logging(part="ethics", style=style, stream=stream)
    structlog.get_logger().info("rpc", **fields)
    return stream.getvalue()


def test_a_line_is_json_unless_a_person_watches() -> None:
    line = json.loads(written(io.StringIO(), code="OK"))
    assert (line["event"], line["part"], line["code"]) == ("rpc", "ethics", "OK")
    assert not written(Terminal(), code="OK").startswith("{")
    assert written(Terminal(), "json", code="OK").startswith("{")
    assert not written(io.StringIO(), "console", code="OK").startswith("{")


@pytest.mark.parametrize("key", sorted(CONTENT_KEYS))
@pytest.mark.parametrize("style", ["json", "console"])
def test_content_and_credentials_are_never_written(key: str, style: Format) -> None:
    assert "hunter2" not in written(io.StringIO(), style, **{key: "hunter2"})


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_traceback_shows_no_local_variables(style: Format) -> None:
    stream = io.StringIO()
    configure_logging(part="ethics", style=style, stream=stream)
    log_a_bug("hunter" + "2")
    assert "IndexError" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


def test_lines_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    configure_logging(part="ethics", level="warning", stream=stream)
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["loud"]


def test_a_librarys_warning_has_the_same_form() -> None:
    stream = io.StringIO()
    configure_logging(part="ethics", stream=stream)
    logging.getLogger("library").warning("over %s", "there", extra={"token": "hunter2"})
    logging.getLogger("library").info("chatter")
    (line,) = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (line["event"], line["level"], line["part"]) == ("over there", "warning", "ethics")
    assert "hunter2" not in stream.getvalue()


@pytest.mark.parametrize("style", ["json", "console"])
def test_no_field_commands_a_terminal_or_begins_a_line(style: Format) -> None:
    line = written(io.StringIO(), style, peer="\x1b[2J\x9b1mroot", reason="x\nlevel=info event=forged\x85")
    fields = line.replace("\x1b[0m", "").replace("\x1b[35m", "")
    assert "\x1b[2J" not in fields
    assert line.count("\n") == 1
    assert "\x9b" not in fields or style == "json"
