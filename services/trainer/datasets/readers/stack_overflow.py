"""Stack Overflow's Posts.xml: questions with their accepted answers, streamed, with whom to name.

Answers come before or after their questions, so both are kept until the other one is met: questions in a spool on disk, of
which memory holds a place each. No entity, DTD or external file is ever read: the file is taken apart row by row, and a row
is parsed by a parser that refuses declarations.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, Final
from xml.parsers import expat

from services.trainer.datasets.problems import (
    EMPTY,
    FILE_DAMAGED,
    FILE_EMPTY,
    MISSING_FIELD,
    FileError,
    Found,
    RowError,
)
from services.trainer.datasets.readers.fields import answered
from services.trainer.datasets.readers.html_text import text_of_html
from services.trainer.datasets.readers.spool import Place, Spool
from services.trainer.datasets.rows import Row

LICENCE_URL: Final = "https://stackoverflow.com/a/"
MAX_ROW_BYTES: Final = 1024 * 1024
"""A post's body has at most 30,000 characters; as escaped HTML in XML far less than this."""
_CHUNK: Final = 256 * 1024
_QUESTION: Final = "1"
_ANSWER: Final = "2"
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_LANGUAGE: Final = re.compile(r"[<|]([^<>|]+)[>|]")

Attributes = dict[str, str]


def read_stack_overflow(stream: BinaryIO, name: str) -> Iterator[Found]:
    """Yields each question whose accepted answer is in the file, numbered as the answer's row."""
    with Spool() as spool:
        yield from _Pairs(spool, name).of(stream)


class _Pairs:
    """Brings questions and accepted answers together."""

    def __init__(self, spool: Spool, name: str) -> None:
        self._spool = spool
        self._name = name
        # By id of the accepted answer: where its question lies, and by question's id: answers that came first.
        self._questions: dict[int, Place] = {}
        self._waiting: dict[int, Place] = {}

    def of(self, stream: BinaryIO) -> Iterator[Found]:
        number = 0
        for number, post in enumerate(_posts(stream), start=1):
            try:
                found = self._meet(post)
            except RowError as problem:
                yield Found(number, problem=problem, file=self._name)
            else:
                if found is not None:
                    yield Found(number, found, file=self._name)
        if not number:
            raise FileError(FILE_EMPTY, "the file holds no post")

    def _meet(self, post: Attributes | RowError) -> Row | None:
        if isinstance(post, RowError):
            raise post
        kind = post.get("PostTypeId")
        if kind == _QUESTION and post.get("AcceptedAnswerId"):
            return self._question(post)
        if kind == _ANSWER:
            return self._answer(post)
        return None

    def _question(self, post: Attributes) -> Row | None:
        answer = _id(post, "AcceptedAnswerId")
        title, body = post.get("Title", "").strip(), text_of_html(post.get("Body", ""))
        if not title and not body:
            raise RowError(EMPTY, "the question has neither title nor body")
        tags = ",".join(" ".join(tag.split()) for tag in _LANGUAGE.findall(post.get("Tags", "")))
        text = f"{tags}\n{title}\n\n{body}".rstrip()
        early = self._waiting.pop(answer, None)
        if early is not None:
            return _row(text, self._spool.read(early), answer)
        self._questions[answer] = self._spool.write(text)
        return None

    def _answer(self, post: Attributes) -> Row | None:
        number = _id(post, "Id")
        place = self._questions.pop(number, None)
        body = text_of_html(post.get("Body", ""))
        if place is None:
            # Dumps are sorted by id, so an answer nearly always follows its question; only younger questions can name it.
            parent = post.get("ParentId", "")
            if _NUMBER.fullmatch(parent) and int(parent) > number and body:
                self._waiting[number] = self._spool.write(f"{_author(post)}\n{body}")
            return None
        if not body:
            raise RowError(EMPTY, "the accepted answer is empty")
        if post.get("Score", "").startswith("-"):
            raise RowError(EMPTY, "the accepted answer was voted down")
        return _row(self._spool.read(place), f"{_author(post)}\n{body}", number)


def _row(question: str, answer: str, number: int) -> Row:
    tags, _, asked = question.partition("\n")
    author, _, said = answer.partition("\n")
    facts = {"attribution": f"{author}, {LICENCE_URL}{number}"}
    if tags:
        facts["tags"] = tags
    return answered("code", asked, said, facts)


def _author(post: Attributes) -> str:
    # One line: what follows its end is the answer.
    shown = " ".join(post.get("OwnerDisplayName", "").split())
    return shown or (
        f"user {post['OwnerUserId']}" if post.get("OwnerUserId") else "an author without account"
    )


def _id(post: Attributes, name: str) -> int:
    value = post.get(name, "")
    if not _NUMBER.fullmatch(value):
        raise RowError(MISSING_FIELD, f"{name} is missing or no number")
    return int(value)


def _posts(stream: BinaryIO) -> Iterator[Attributes | RowError]:
    """Yields the attributes of each <row/>; memory holds a chunk and what is left of a row."""
    found: list[Attributes | RowError] = []
    parser = expat.ParserCreate(encoding="UTF-8")
    parser.buffer_text = True

    def start(tag: str, attributes: Attributes) -> None:
        if tag == "row":
            found.append(attributes)

    def refuse(*_: object) -> None:
        raise FileError(FILE_DAMAGED, "it declares a document type or entities, which no dump does")

    parser.StartElementHandler = start
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    since = 0
    while chunk := stream.read(_CHUNK):
        since += len(chunk)
        _feed(parser, chunk, is_final=False)
        if found:
            since = 0
        elif since > MAX_ROW_BYTES:
            raise FileError(FILE_DAMAGED, f"no row ends within {MAX_ROW_BYTES:,} bytes")
        yield from found
        found.clear()
    _feed(parser, b"", is_final=True)
    yield from found


def _feed(parser: expat.XMLParserType, data: bytes, *, is_final: bool) -> None:
    try:
        parser.Parse(data, is_final)
    except expat.ExpatError as error:
        raise FileError(FILE_DAMAGED, f"it is no XML: {error}") from error
