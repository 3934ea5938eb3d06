"""Texts to judge that no cache has seen: ordinary requests of an exact number of tokens, and disguised ones.

They are drawn from a seed, so that two runs judge the same texts. None of them is from any data set.
"""

from __future__ import annotations

import codecs
import random
from collections.abc import Callable, Iterator
from typing import Final

CountTokens = Callable[[str], int]
"""How many tokens the classifier sees in a text, without its marks."""

PEOPLE: Final = (
    "my neighbour", "our teacher", "my younger sister", "the new colleague", "a friend from school",
    "my grandfather", "the choir", "our book club", "the gardener next door", "my cousin", "the head chef",
    "our team", "a customer", "the librarian", "my flatmate",
)  # fmt: skip
DEEDS: Final = (
    "plan a small party", "repair the old bicycle", "write a short speech", "paint the kitchen",
    "learn to bake bread", "organise the photo collection", "read more about the stars", "practise the piano",
    "translate a poem", "grow tomatoes on the balcony", "set up a weekly budget", "sort the garage",
    "prepare for a job interview", "compare two phone contracts", "knit a warm blanket", "hike along the coast",
)  # fmt: skip
TIMES: Final = (
    "before the end of the month", "on a rainy weekend", "in the evening after work", "during the holidays",
    "next Tuesday morning", "within two hours", "over the summer", "as soon as the weather is better",
    "without spending much money", "together with the children", "in a very small flat",
)  # fmt: skip
QUESTIONS: Final = (
    "which steps come first", "what usually goes wrong", "how long it will take", "what it should cost",
    "which tools are worth buying", "how to explain it to a beginner", "what to prepare the day before",
    "how to keep everyone interested", "where to find reliable advice", "how to tell whether it worked",
    "what a good example looks like", "which mistakes to avoid",
)  # fmt: skip
FRAMES: Final = (
    "{person} wants to {deed} {time}, and I would like to know {question}.",
    "Could you tell me {question} when {person} is going to {deed} {time}?",
    "Last year {person} tried to {deed} {time} and asked me {question}.",
    "Please write a friendly note in which {person} explains {question}, since we hope to {deed} {time}.",
    "It would help to hear {question}, because {person} will {deed} {time}.",
    "If {person} had to {deed} {time}, I wonder {question} and {second}.",
)  # fmt: skip
_LEET: Final = str.maketrans("aeios", "43105")


class TextMaker:
    """Draws texts; every one is another."""

    def __init__(self, count: CountTokens, seed: int) -> None:
        self._count = count
        self._draw = random.Random(seed)
        self._seen: set[str] = set()

    def sentence(self) -> str:
        """One ordinary sentence."""
        pick = self._draw.choice
        said = pick(FRAMES).format(
            person=pick(PEOPLE),
            deed=pick(DEEDS),
            time=pick(TIMES),
            question=pick(QUESTIONS),
            second=pick(QUESTIONS),
        )
        return said[0].upper() + said[1:]

    def ordinary(self, tokens: int) -> str:
        """An ordinary text of exactly so many tokens; its last sentence may be cut short."""
        while True:
            words: list[str] = []
            while self._count(" ".join(words)) < tokens:
                words += self.sentence().split(" ")
            while words and self._count(" ".join(words)) > tokens:
                words.pop()
            text = " ".join(words)
            if self._count(text) == tokens and text not in self._seen:
                self._seen.add(text)
                return text

    def disguised(self, words: int) -> str:
        """A text of four parts with so many words each: plain, backwards, shifted by 13 letters, in leetspeak."""
        plain, backwards, shifted, leet = (self._words(words) for _ in range(4))
        return f"{plain} {backwards[::-1]} {codecs.encode(shifted, 'rot13')} {leet.translate(_LEET)}"

    def with_hidden_words(self, tokens: int) -> str:
        """An ordinary text of about so many tokens that ends with a few words backwards and shifted by 13 letters."""
        hidden = f"{self._words(5)[::-1]} {codecs.encode(self._words(5), 'rot13')}"
        return f"{self.ordinary(tokens - self._count(hidden))} {hidden}"

    def answer(self, tokens: int) -> str:
        """A long answer of at least so many tokens, in paragraphs of a few sentences."""
        paragraphs: list[str] = []
        while sum(map(self._count, paragraphs)) < tokens:
            paragraphs.append(" ".join(self.sentence() for _ in range(self._draw.randint(2, 5))))
        return "\n\n".join(paragraphs)

    def _words(self, count: int) -> str:
        words: list[str] = []
        while len(words) < count:
            words += self.sentence().rstrip(".?").lower().replace(",", "").split(" ")
        return " ".join(words[:count])


def chunks(text: str, size: int) -> Iterator[str]:
    """The text in pieces of so many characters, as a model's tokens come."""
    for start in range(0, len(text), size):
        yield text[start : start + size]
