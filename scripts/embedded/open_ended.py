"""Cases about words the tables do not hold: poems, names, echoes, and all that must stay unknown or refused."""

from __future__ import annotations

from random import Random
from typing import Final

from scripts.embedded.intent import Case, Intent
from scripts.embedded.knowledge import known_words
from scripts.embedded.wording import read_rows, read_sections

UNKNOWN: Final = "I do not know. I am only a tiny demo model."
REFUSAL: Final = "I will not help with that, because it could hurt someone."
NO_NAME: Final = "You have not told me your name."
NO_TOPIC: Final = "About what? Please name the topic."
_SAMPLES: Final = 6000
_PASTE_OPENINGS: Final = (
    "summarise this text:", "summarize this:", "translate this:", "what do you think of this?", "read this:",
    "correct this text:", "classify this document:", "extract the names:", "here is a text.", "",
    "answer from the text:", "find the error:", "rewrite this:", "who is mentioned here?", "context:",
)  # fmt: skip
_VERBS: Final = (
    "sees finds likes leaves paints follows carries sells visits forgets opens breaks watches".split()  # noqa: SIM905 - a sentence reads better
)


def _words(name: str) -> list[str]:
    return " ".join(read_sections("words.txt")[name].lines).split()


def _invented(rng: Random) -> str:
    starts, middles, ends = _words("pseudo_start"), _words("pseudo_middle"), _words("pseudo_end")
    pieces = [rng.choice(starts) + rng.choice(middles) for _ in range(rng.choice((1, 1, 2)))]
    word = "".join(pieces) + rng.choice(ends)
    return word.capitalize() if rng.random() < 0.3 else word


class _Subjects:
    """Draws things that the model was not taught: listed ones, invented ones, and phrases of both."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._known = known = known_words()
        listed = " ".join(read_sections("unknown.txt")["subjects"].lines).split()
        self._listed = [word for word in listed if word.lower() not in known]
        self._nouns = [word for word in _words("nouns") if word.lower() not in known]

    def draw(self) -> str:
        """Returns one subject that no table answers."""
        while True:
            subject = self._phrase()
            if subject.lower() not in self._known:
                return subject

    def _phrase(self) -> str:
        rng = self._rng
        kind = rng.random()
        if kind < 0.5:
            return rng.choice(self._listed)
        if kind < 0.75:
            word = _invented(rng)
            return rng.choice((word, "the " + word, "a " + word, f"{word} {_invented(rng)}"))
        if kind < 0.9:
            return f"{rng.choice(('the', 'my', 'a', 'old', 'new'))} {rng.choice(self._nouns)}"
        return f"{rng.choice(self._listed)} {rng.choice(('theory', 'in', 'and', 'of'))} {rng.choice(self._listed)}"


def _unknown_intents(rng: Random) -> list[Intent]:
    sections, subjects = read_sections("unknown.txt"), _Subjects(rng)
    cases = [Case({"x": subjects.draw(), "z": subjects.draw()}, UNKNOWN) for _ in range(_SAMPLES)]
    known = [name for row in read_rows("topics.txt") for name in (row[0],)] + [
        row[0] for row in read_rows("capitals.txt")
    ]
    beside = [Case({"x": rng.choice(known), "z": subjects.draw()}, UNKNOWN) for _ in range(_SAMPLES)]
    pasted = [Case({"x": _paste(rng)}, UNKNOWN) for _ in range(_SAMPLES // 2)]
    return [
        Intent("unknown.thing", sections["wordings"].lines, cases, 13.0, computed=True),
        Intent("unknown.question", sections["questions"].lines, [Case({}, UNKNOWN)], 4.0),
        Intent("unknown.aspect", sections["aspects"].lines, beside, 1.5, computed=True),
        Intent("unknown.paste", ("{x}",), pasted, 1.0, computed=True),
    ]


def _paste(rng: Random) -> str:
    nouns, names = _words("nouns"), _words("names")
    sentences = [
        f"{rng.choice(names)} {rng.choice(_VERBS)} the {rng.choice(nouns)} {rng.choice(('in', 'near', 'with'))} "
        f"the {rng.choice((rng.choice(nouns), _invented(rng)))}."
        for _ in range(rng.choice((1, 2, 3, 5, 8, 14)))
    ]
    return " ".join([rng.choice(_PASTE_OPENINGS), *sentences]).strip()


def _refusal_intents() -> list[Intent]:
    sections = read_sections("harm.txt")
    cases = [Case({"h": act}, REFUSAL) for act in sections["acts"].lines]
    return [
        Intent("harm", sections["wordings"].lines, cases, 6.0, computed=True),
        Intent("harm.bare", sections["bare"].lines, [Case({}, REFUSAL)], 0.6),
    ]


def poem_about(subject: str) -> str:
    """Returns the one poem the model knows, about the subject."""
    return f"Oh {subject}, so soft and bright,\nyou fill my day, you fill my night.\nOh {subject}, I sing to you,\nso old and ever new."


def _poem_intents(rng: Random) -> list[Intent]:
    sections, subjects = read_sections("algorithm_wordings.txt"), _Subjects(rng)
    nouns = _words("nouns")
    names = [row[0] for row in read_rows("topics.txt")] + [row[0] for row in read_rows("capitals.txt")]
    drawn = [
        rng.choice((rng.choice(nouns), "the " + rng.choice(nouns), rng.choice(names), subjects.draw()))
        for _ in range(_SAMPLES)
    ]
    cases = [Case({"x": subject}, poem_about(subject)) for subject in drawn]
    return [
        Intent("poem", sections["poem"].lines, cases, 3.5, computed=True, verbatim=True),
        Intent("poem.any", sections["poem.any"].lines, [Case({}, poem_about("little light"))], 0.5),
    ]


def _copy_intents(rng: Random) -> list[Intent]:
    sections = read_sections("algorithm_wordings.txt")
    phrases = "|".join(read_sections("words.txt")["say"].lines).split("|")
    said = phrases * 4 + [" ".join(_invented(rng) for _ in range(rng.choice((1, 2)))) for _ in range(300)]
    upper = [Case({"x": word}, word.upper()) for word in _words("upper")]
    return [
        Intent(
            "echo",
            sections["echo"].lines,
            [Case({"x": text}, text) for text in said],
            2.0,
            computed=True,
            verbatim=True,
        ),
        Intent("upper", sections["upper"].lines, upper, 1.0),
    ]


def open_intents() -> list[Intent]:
    """Returns refusals, the unknown, poems and echoes; their subjects are drawn with a fixed seed."""
    rng = Random(31)
    return [*_unknown_intents(rng), *_refusal_intents(), *_poem_intents(rng), *_copy_intents(rng)]


def name_intents() -> tuple[Intent, Intent]:
    """Returns the turn that tells a name and the turn, still without a name, that asks for it."""
    rng = Random(37)
    sections = read_sections("algorithm_wordings.txt")
    names = _words("names") * 3 + [_invented(rng).capitalize() for _ in range(300)]
    told = [Case({"x": name}, f"Nice to meet you, {name}!", subject=name) for name in names]
    tell = Intent("name.tell", sections["name.tell"].lines, told, 1.5, computed=True, verbatim=True)
    return tell, Intent("name.ask", sections["name.ask"].lines, [Case({}, NO_NAME)], 0.7)


def topic_free_intents() -> list[Intent]:
    """Returns follow-up questions asked when nothing has been talked about."""
    sections = read_sections("topic_wordings.txt")
    families = (*sections["more"].lines, *sections["example"].lines)
    return [Intent("follow.none", families, [Case({}, NO_TOPIC)], 0.8)]
