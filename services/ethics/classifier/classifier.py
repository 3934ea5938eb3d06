"""Ask the network about texts: off the event loop, with what it answered before kept in a bounded cache.

It keeps no text: the cache knows digests of token ids. One `Classifier` belongs to one verified constitution.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from kala.errors import ConstitutionError
from services.ethics.classifier.calibration import (
    CALIBRATION_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
    Calibration,
    read_calibration,
)
from services.ethics.classifier.encoding import CLS, PAD, SEP, Encoded, arrange
from services.ethics.classifier.model import Network
from services.ethics.judge import Stage
from services.ethics.laws import Law

INTENTS: Final = 3
# The columns before the categories: unsafe, jailbreak, injection, the laws, the intents.
LAWS_FROM, INTENTS_FROM, CATEGORIES_FROM = 3, 8, 11
# More threads than this on one process would rather fight over the memory's bandwidth than help.
MAX_WORKERS: Final = 4
# Of a longer word the tokenizer says only that it does not know it.
MAX_WORD_CHARS: Final = 100
# Some 400 bytes each: a few MB, and room for some hundred conversations.
CACHED_ANSWERS: Final = 8192


@dataclass(frozen=True, slots=True)
class Question:
    """One pass: a text of a stage, and for an answer the request before it. A longer text keeps its two ends."""

    text: str
    stage: Stage
    context: str = ""


@dataclass(frozen=True, slots=True)
class Scores:
    """Probabilities, 0 to 1. Laws and categories are given that the text is unsafe; each of these adds up to 1."""

    unsafe: float
    jailbreak: float
    injection: float
    laws: tuple[float, ...]
    intents: tuple[float, ...]
    categories: tuple[float, ...]


class Classifier:
    """The network with its tokenizer and calibration; make it with `load_classifier`."""

    def __init__(
        self,
        network: Network,
        tokenizer: Tokenizer,
        calibration: Calibration,
        *,
        workers: int | None = None,
        cached: int = CACHED_ANSWERS,
    ) -> None:
        self.calibration = calibration
        self.tokenizer = tokenizer
        self._network = network
        self._workers = workers or min(MAX_WORKERS, os.cpu_count() or 1)
        self._executor = ThreadPoolExecutor(self._workers, thread_name_prefix="classifier")
        self._cache = _Cache(cached)

    async def ask(self, questions: Sequence[Question]) -> list[Scores]:
        """The answers in order, found on other threads; one call never takes more than its share of them."""
        found: list[Scores | None] = [None] * len(questions)
        loop = asyncio.get_running_loop()

        async def answer_every(first: int, step: int) -> None:
            # One at a time: a long text of many windows lets the questions of others in between.
            for index in range(first, len(questions), step):
                found[index] = await loop.run_in_executor(self._executor, self._ask_one, questions[index])

        lanes = min(self._workers, len(questions))
        async with asyncio.TaskGroup() as group:
            for lane in range(lanes):
                group.create_task(answer_every(lane, lanes))
        return [scores for scores in found if scores is not None]

    def ask_now(self, questions: Sequence[Question]) -> list[Scores]:
        """As `ask`, on this thread."""
        return [self._ask_one(question) for question in questions]

    def _ask_one(self, question: Question) -> Scores:
        encoded = self._encode(question)
        key = _digest(encoded)
        row = self._cache.get(key)
        if row is None:
            row = self._network.columns(encoded)
            self._cache.put(key, row)
        return scores_of(row, self.calibration)

    def _encode(self, question: Question) -> Encoded:
        text = self.tokenizer.encode(question.text, add_special_tokens=False).ids
        # In lower case, as views are: the tokenizer takes "[SEP]" for its own mark, which no request may set.
        context = self.tokenizer.encode(question.context.lower(), add_special_tokens=False).ids
        return arrange(text, context, question.stage)


def load_classifier(
    files: Mapping[str, bytes], laws: Sequence[Law], *, workers: int | None = None
) -> Classifier:
    """The classifier in a verified constitution's files; ConstitutionError names the file or field that is wrong."""
    for name in (MODEL_FILE, TOKENIZER_FILE, CALIBRATION_FILE):
        if name not in files:
            raise ConstitutionError(f"{name}: missing from the signed files")
    law_of = {category: law.number for law in laws for category in law.categories}
    calibration = read_calibration(files[CALIBRATION_FILE], law_of)
    for name, promised in (
        (MODEL_FILE, calibration.model_sha256),
        (TOKENIZER_FILE, calibration.tokenizer_sha256),
    ):
        if hashlib.sha256(files[name]).hexdigest() != promised:
            raise ConstitutionError(f"{name}: is not the file that {CALIBRATION_FILE} was measured with")
    tokenizer = _read_tokenizer(files[TOKENIZER_FILE])
    network = Network(files[MODEL_FILE], CATEGORIES_FROM + len(calibration.categories))
    return Classifier(network, tokenizer, calibration, workers=workers)


def scores_of(row: NDArray[np.float32], calibration: Calibration) -> Scores:
    """The probabilities that one row of logits stands for."""
    logits = row.astype(np.float64)
    temperatures = calibration.temperatures
    return Scores(
        unsafe=_sigmoid(logits[0] / temperatures.unsafe),
        jailbreak=_sigmoid(logits[1] / temperatures.jailbreak),
        injection=_sigmoid(logits[2] / temperatures.injection),
        laws=_softmax(logits[LAWS_FROM:INTENTS_FROM]),
        intents=_softmax(logits[INTENTS_FROM:CATEGORIES_FROM]),
        categories=_softmax(logits[CATEGORIES_FROM:]),
    )


class _Cache:
    """What the network answered lately, oldest use forgotten first; safe from several threads."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._rows: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: bytes) -> NDArray[np.float32] | None:
        with self._lock:
            row = self._rows.get(key)
            if row is not None:
                self._rows.move_to_end(key)
            return row

    def put(self, key: bytes, row: NDArray[np.float32]) -> None:
        with self._lock:
            self._rows[key] = row
            while len(self._rows) > self._kept:
                self._rows.popitem(last=False)


def _digest(encoded: Encoded) -> bytes:
    """Names what the network reads: stage, context and text are all in the token ids and their segments."""
    seen = hashlib.sha256(encoded.ids.tobytes())
    seen.update(encoded.types.tobytes())
    return seen.digest()


def _read_tokenizer(data: bytes) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # noqa: BLE001 - the library raises plain Exception
        raise ConstitutionError(f"{TOKENIZER_FILE}: {str(error).partition(chr(10))[0][:200]}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    _read_every_word(tokenizer)
    marks = {"[PAD]": PAD, "[CLS]": CLS, "[SEP]": SEP}
    if any(tokenizer.token_to_id(mark) != number for mark, number in marks.items()):
        raise ConstitutionError(f"{TOKENIZER_FILE}: has other marks than the network was trained with")
    return tokenizer


def _read_every_word(tokenizer: Tokenizer) -> None:
    """Have the words read that it would give up as unknown: those with a strange character in them, and endless ones.

    Otherwise one emoji at every word would leave the network nothing to read.
    """
    vocabulary = tokenizer.get_vocab()
    chars = {
        char for char in vocabulary if len(char) == 1 and not char.isascii() and f"##{char}" in vocabulary
    }
    strange = f"[^\\x00-\\x7f{_escaped(chars)}]"
    marks = f"[{_escaped(char for char in chars if not char.isalpha())}]"
    # One mark at a time: a flood of them takes no more time than other text.
    glued = Regex(f"(?<=[a-z0-9]){strange}|{strange}(?=[a-z0-9])|(?<=[a-z]){marks}(?=[a-z])")
    tokenizer.normalizer = normalizers.Sequence([tokenizer.normalizer, normalizers.Replace(glued, " ")])
    # A long row of hexadecimal digits is a number, not words: one token says as much.
    pieces = Regex(rf"^[0-9a-f]+$|[\s\S]{{1,{MAX_WORD_CHARS}}}")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [tokenizer.pre_tokenizer, pre_tokenizers.Split(pieces, "isolated")]
    )


def _escaped(chars: Iterable[str]) -> str:
    return "".join(map(re.escape, sorted(chars)))


def _sigmoid(logit: float) -> float:
    return float(1.0 / (1.0 + np.exp(-np.clip(logit, -60.0, 60.0))))


def _softmax(logits: NDArray[np.float64]) -> tuple[float, ...]:
    raised = np.exp(logits - logits.max())
    return tuple(float(value) for value in raised / raised.sum())
