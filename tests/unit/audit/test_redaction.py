"""Masking content: what was found is gone, the rest is byte for byte the same, and nothing unsearched is kept."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kala.errors import FailedPreconditionError
from kala.inference.v1 import inference_pb2
from services.audit.entries import NewEntry, PlainPayload
from services.audit.privacy.redaction import MAX_SEARCHED_BYTES, Span, is_redacted, masked, redact
from services.audit.wire_structure import structure_of

EMAIL = re.compile(r"[\w.]+@[\w.]+")


class EmailFinder:
    """Finds what looks like an address, and the bytes before it that a careless pattern takes along."""

    def find(self, text: str) -> Iterable[Span]:
        for found in EMAIL.finditer(text):
            yield found.span()
            yield found.start(), found.start() + 1


class BrokenFinder:
    def find(self, text: str) -> Iterable[Span]:
        raise RuntimeError("a pattern broke")


def entry(*payloads: PlainPayload) -> NewEntry:
    return NewEntry(b"k" * 16, {"subject_key_id": None, "tenant": "t"}, 0, b"d" * 32, payloads)


def chat(text: str) -> bytes:
    action = inference_pb2.ChatAction(model="auto")
    message = action.messages.add(role=inference_pb2.ROLE_USER)
    message.content.add(text=text)
    return action.SerializeToString(deterministic=True)


def test_a_find_is_committed_to_and_kept_masked_beside_it() -> None:
    said = PlainPayload("released", b"Ask bob@example.com today.", store=True)
    (committed, copy) = redact(entry(said), EmailFinder()).payloads
    assert committed == PlainPayload("released", said.data, store=False)
    assert copy == PlainPayload("released.redacted", b"Ask ############### today.", store=True)
    assert is_redacted(copy.kind)
    assert not is_redacted(committed.kind)


def test_a_copy_that_could_not_be_asked_for_by_its_name_is_not_kept() -> None:
    said = PlainPayload("k" * 60, b"Ask bob@example.com today.", store=True)
    assert list(redact(entry(said), EmailFinder()).payloads) == [said._replace(store=False)]


def test_content_without_a_find_is_kept_as_it_is() -> None:
    said = PlainPayload("released", b"Nothing personal.", store=True)
    assert list(redact(entry(said), EmailFinder()).payloads) == [said]


def test_content_that_is_not_kept_is_not_searched() -> None:
    said = PlainPayload("request", b"bob@example.com", store=False)
    assert list(redact(entry(said), BrokenFinder()).payloads) == [said]


@pytest.mark.parametrize(
    ("data", "finder"),
    [(b"bob@example.com", BrokenFinder()), (b"a" * (MAX_SEARCHED_BYTES + 1), EmailFinder())],
    ids=["broken finder", "too long"],
)
def test_what_cannot_be_searched_is_not_kept(data: bytes, finder: EmailFinder | BrokenFinder) -> None:
    said = PlainPayload("released", data, store=True)
    assert list(redact(entry(said), finder).payloads) == [said._replace(store=False)]


def test_the_record_digest_stays_the_producers() -> None:
    one = entry(PlainPayload("released", b"bob@example.com", store=True))
    assert redact(one, EmailFinder()).record_digest == one.record_digest


# Lengths that are letters, quotes and controls: a careless pattern would mask them as part of the word.
@pytest.mark.parametrize("padding", [*range(40), 60, 65, 97, 120, 200, 20_000])
def test_a_masked_message_parses_as_before(padding: int) -> None:
    words = f"bob@example.com {'x' * padding} carol@example.com"
    read = inference_pb2.ChatAction.FromString(masked(chat(words), EmailFinder()))
    assert read.messages[0].content[0].text == f"{'#' * 15} {'x' * padding} {'#' * 17}"
    assert read.model == "auto"


@given(st.text(max_size=80), st.text(max_size=80))
def test_masking_changes_only_what_was_found_and_no_length(before: str, after: str) -> None:
    data = f"{before} bob@example.com {after}".encode("utf-8", "surrogatepass")
    result = masked(data, EmailFinder())
    assert len(result) == len(data)
    assert all(new in {old, ord("#")} for new, old in zip(result, data, strict=True))


@pytest.mark.parametrize(
    "text",
    [
        "He said: write to bob@example.com.",
        "zebra",
        '{"text":"bob@example.com"}',
        "\n\n  bob@example.com  \n",
        "Bob, bob@example.com, is here",
        "",
    ],
)
def test_plain_text_is_not_taken_for_a_message(text: str) -> None:
    assert not structure_of(text.encode())
    assert b"@" not in masked(text.encode(), EmailFinder())


@given(st.binary(max_size=300))
def test_no_bytes_break_it(data: bytes) -> None:
    assert len(masked(data, EmailFinder())) == len(data)


@pytest.fixture(scope="module")
def presidio() -> object:
    pytest.importorskip("presidio_analyzer", reason="needs the extra audit-pii")
    from services.audit.privacy.presidio_finder import PresidioFinder

    return PresidioFinder()


@pytest.mark.parametrize(
    "personal",
    [
        "alice@example.com",
        "+49 30 901820",
        "4111 1111 1111 1111",
        "DE89370400440532013000",
        "536-90-4399",
        "192.168.1.44",
        "00:1A:2B:3C:4D:5E",
        "12345678Z",
        "RSSMRA85T10A562S",
        "44051401359",
    ],
)
def test_presidio_finds_what_it_has_patterns_for(
    presidio: EmailFinder, personal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("the finder went to the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    result = masked(f"Dear Sir, it is {personal} as you know.".encode(), presidio)
    assert personal.encode() not in result
    assert result.startswith(b"Dear Sir, it is #")


@pytest.mark.parametrize(
    "harmless",
    [
        "The year 2026 had 365 days.",
        "version 3.11.7 of Python",
        "order 12345678 of 1,000,000 rows",
        "def add(a, b): return a + b",
        "0f" * 32,
    ],
)
def test_presidio_leaves_ordinary_text_alone(presidio: EmailFinder, harmless: str) -> None:
    assert masked(harmless.encode(), presidio) == harmless.encode()


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from services.audit.privacy.presidio_finder import PresidioFinder

    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(FailedPreconditionError, match="audit-pii"):
        PresidioFinder()
