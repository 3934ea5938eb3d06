"""Estimates of tokens: near to what tokenizers count, and rather over than under."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from services.inference import dispatch
from services.inference.chat import Audio, Image, Message, Role, Text, Tool, ToolCall
from services.inference.context.estimate import (
    IMAGE_TOKENS,
    LOW_DETAIL_IMAGE_TOKENS,
    estimate_media,
    estimate_prompt,
    estimate_text,
)
from tests.fakes.images import PIXEL

ROOT = Path(__file__).parents[3]

PROSE = (
    "The committee met on Thursday to discuss the proposed changes to the library's opening hours. "
    "Several members argued that the building should stay open until nine in the evening."
)
"""34 words; GPT-4's, Llama 3's and Pythia's vocabularies make 31 to 33 tokens of it."""


@pytest.mark.parametrize(
    ("text", "fewest", "most"),
    [
        pytest.param("", 0, 0, id="nothing"),
        pytest.param(PROSE, 33, 48, id="prose"),
        pytest.param("1234567890" * 10, 34, 60, id="digits"),
        pytest.param("多言語のモデルを使います" * 10, 80, 360, id="Japanese"),
        pytest.param("{}[]();" * 10, 20, 70, id="marks"),
        pytest.param("\n" * 10, 1, 10, id="empty lines"),
        pytest.param("\ud800", 1, 3, id="half a surrogate"),
    ],
)
def test_a_text_is_estimated_within_the_range_of_real_tokenizers(text: str, fewest: int, most: int) -> None:
    assert fewest <= estimate_text(text) <= most


def test_source_code_is_estimated_on_the_high_side() -> None:
    source = inspect.getsource(dispatch)
    assert len(source) / 5 < estimate_text(source) < len(source) / 2


def test_english_and_code_are_not_estimated_below_a_vocabulary_of_30000_tokens() -> None:
    tokenizer = Tokenizer.from_file(str(ROOT / "constitution" / "classifier" / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    files = ("SECURITY.md", "services/inference/README.md", "services/inference/dispatch.py")
    for text in ((ROOT / name).read_text() for name in files):
        counted = len(tokenizer.encode(text, add_special_tokens=False).ids)
        assert counted <= estimate_text(text) < 1.4 * counted


def test_everything_of_a_prompt_counts() -> None:
    plain = (Message(Role.USER, (Text("Hello there"),)),)
    call = ToolCall("c", "look_up", '{"word": "tree"}', 0)
    richer = [
        (*plain, Message(Role.USER, (Text("More"),))),
        (Message(Role.USER, (Text("Hello there"), Text("again"))),),
        (Message(Role.USER, (Text("Hello there"), Image(PIXEL, ""))),),
        (Message(Role.USER, (Text("Hello there"), Audio("QQ==" * 1000, "wav"))),),
        (*plain, Message(Role.ASSISTANT, (), tool_calls=(call,))),
        (Message(Role.USER, (Text("Hello there"),), name="Ada"),),
    ]
    least = estimate_prompt(plain)
    assert all(estimate_prompt(messages) > least for messages in richer)
    assert estimate_prompt(plain, [Tool("f", "Looks a word up", '{"type":"object"}')]) > least


def test_an_image_counts_by_its_detail_and_not_by_its_bytes() -> None:
    def message(detail: str, uri: str = PIXEL) -> Message:
        return Message(Role.USER, (Image(uri, detail), Text("What?")))

    assert estimate_media([message("high")]) == IMAGE_TOKENS
    assert estimate_media([message("", PIXEL * 1000)]) == IMAGE_TOKENS
    assert estimate_media([message("low")]) == LOW_DETAIL_IMAGE_TOKENS
    assert estimate_media([Message(Role.USER, (Text("What?"),))]) == 0
