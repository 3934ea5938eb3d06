"""How many tokens a text is likely to have, where no tokenizer is at hand.  Pure.

It errs to the high side for prose and code in the tokenizers of common models: a prompt that was fitted with it should
fit.  It proves nothing, so whoever shows such a number says that it is an estimate.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterable
from typing import Final

from services.inference.chat import Audio, ChatCall, Image, Message, Part, Text, Tool
from services.inference.tasks import CompleteCall

LETTERS_PER_TOKEN: Final = 3.75
"""English prose has 4.0 to 4.5 letters per token in vocabularies of 30,000 to 200,000 tokens; German somewhat fewer."""

DIGITS_PER_TOKEN: Final = 2.0
"""Vocabularies hold numbers in groups of one to three digits."""

BYTES_PER_TOKEN: Final = 2.0
"""Outside ASCII: from about 1.5 bytes per token (Chinese in an old vocabulary) to 5 (Russian in a new one)."""

LINE_TOKENS: Final = 0.5
"""An end of line is a token of its own about every second time."""

MESSAGE_TOKENS: Final = 8
"""What a chat template writes around a message."""

IMAGE_TOKENS: Final = 1200
"""What vision models make of a page: 256 (Gemma 3) to about 1,300 (Qwen2.5-VL at its usual limit)."""

LOW_DETAIL_IMAGE_TOKENS: Final = 300

AUDIO_CHARS_PER_TOKEN: Final = 400
"""Base64 of 16-bit speech at 16 kHz is about 43,000 characters a second; models make 25 to 100 tokens of it."""

_LETTERS: Final = string.ascii_letters.encode()
_DIGITS: Final = string.digits.encode()
_BLANKS: Final = b" \t\r\n\v\f"
_BEYOND_ASCII: Final = bytes(range(128, 256))


def estimate_text(text: str) -> int:
    """Give the likely number of tokens of a text; linear, and fast for megabytes."""
    data = text.encode("utf-8", "surrogatepass")
    letters, digits = _count(data, _LETTERS), _count(data, _DIGITS)
    beyond = _count(data, _BEYOND_ASCII)
    marks = len(data) - letters - digits - beyond - _count(data, _BLANKS)
    likely = (
        letters / LETTERS_PER_TOKEN
        + digits / DIGITS_PER_TOKEN
        + beyond / BYTES_PER_TOKEN
        + marks
        + LINE_TOKENS * data.count(b"\n")
    )
    return math.ceil(likely)


def estimate_prompt(messages: Iterable[Message], tools: Iterable[Tool] = ()) -> int:
    """Give the likely number of tokens of a conversation with its functions, as a chat template writes it."""
    counted = sum(_estimate_message(message) for message in messages)
    counted += sum(_estimate_tool(tool) for tool in tools)
    return counted + MESSAGE_TOKENS  # the head of the answer


def estimate_call(call: ChatCall | CompleteCall) -> int:
    """Give the likely number of tokens of what a call sends."""
    if isinstance(call, ChatCall):
        return estimate_prompt(call.messages, call.tools)
    return estimate_text(call.prompt) + estimate_text(call.suffix)


def estimate_media(messages: Iterable[Message]) -> int:
    """Give the likely number of tokens of the images and sounds alone."""
    return sum(_estimate_part(part) for message in messages for part in message.parts if not _is_text(part))


def _estimate_message(message: Message) -> int:
    calls = sum(
        MESSAGE_TOKENS + estimate_text(call.name) + estimate_text(call.arguments)
        for call in message.tool_calls
    )
    return (
        MESSAGE_TOKENS
        + calls
        + estimate_text(message.name)
        + sum(_estimate_part(part) for part in message.parts)
    )


def _estimate_tool(tool: Tool) -> int:
    texts = (tool.name, tool.description, tool.parameters_json)
    return MESSAGE_TOKENS + sum(estimate_text(text) for text in texts)


def _estimate_part(part: Part) -> int:
    match part:
        case Text(text):
            return estimate_text(text)
        case Image(_, "low"):
            return LOW_DETAIL_IMAGE_TOKENS
        case Image():
            return IMAGE_TOKENS
        case Audio(base64):
            return math.ceil(len(base64) / AUDIO_CHARS_PER_TOKEN)


def _is_text(part: Part) -> bool:
    return isinstance(part, Text)


def _count(data: bytes, wanted: bytes) -> int:
    return len(data) - len(data.translate(None, wanted))
