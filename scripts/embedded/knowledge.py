"""Cases whose answers are remembered: topics, capitals, small talk, facts, pairs of words and lists."""

from __future__ import annotations

from random import Random
from typing import Final

from scripts.embedded.intent import Case, Intent
from scripts.embedded.wording import Section, read_rows, read_sections

CAPITAL: Final = "capital"
_LIST_COUNTS: Final = {"two": 2, "three": 3, "four": 4, "five": 5, "2": 2, "3": 3, "4": 4, "5": 5, "some": 3}
# Sampled pairs of countries; all of them would be thousands of cases of one kind.
_COUNTRY_PAIRS: Final = 3000


def _aliases(row: list[str]) -> list[str]:
    return [row[0], *(alias for alias in row[1].split(";") if alias)]


def topic_intents() -> list[Intent]:
    """Returns definitions, details and examples of every topic, asked with its name."""
    rows = read_rows("topics.txt")
    sections = read_sections("topic_wordings.txt")

    def cases(column: int) -> list[Case]:
        return [Case({"t": name}, row[column], subject=row[0]) for row in rows for name in _aliases(row)]

    return [
        Intent("define", sections["define"].lines, cases(2), 15.0),
        Intent("more_named", sections["more_named"].lines, cases(3), 4.0),
        Intent("example_named", sections["example_named"].lines, cases(4), 4.0),
    ]


def topic_follow_ups() -> dict[str, dict[str, Intent]]:
    """Returns, by topic, the follow-up questions that leave the topic unnamed."""
    sections = read_sections("topic_wordings.txt")
    follow: dict[str, dict[str, Intent]] = {}
    for row in read_rows("topics.txt"):
        follow[row[0]] = {
            kind: Intent(
                f"follow.{kind}",
                sections[kind].lines,
                [Case({"_": row[0]}, row[column], subject=row[0])],
                1.0,
            )
            for kind, column in (("more", 3), ("example", 4))
        }
    return follow


def _capital_answer(country: str, capital: str) -> str:
    return f"The capital of {country} is {capital}."


def _two_capitals(first: list[str], second: list[str]) -> Case:
    answer = f"The capital of {first[0]} is {first[1]}, and the capital of {second[0]} is {second[1]}."
    return Case({"c": first[0], "d": second[0]}, answer, subject=CAPITAL)


def capital_intents() -> list[Intent]:
    """Returns questions about one capital, two capitals, and the country of a capital."""
    rows, sections = read_rows("capitals.txt"), read_sections("capital_wordings.txt")
    rng = Random(23)
    single = [Case({"c": country}, _capital_answer(country, town), subject=CAPITAL) for country, town in rows]
    double = [_two_capitals(*rng.sample(rows, 2)) for _ in range(_COUNTRY_PAIRS)]
    countries = [
        Case({"k": town}, f"{town} is the capital of {country}.", subject="country")
        for country, town in rows
        if country != "England"
    ]
    return [
        Intent("capital", sections["capital"].lines, single, 5.0),
        Intent("capital.two", sections["capital.two"].lines, double, 2.0, computed=True),
        Intent("country", sections["country"].lines, countries, 2.5),
    ]


def capital_follow_ups() -> list[Intent]:
    """Returns what may follow a question about a capital: other countries, without the word capital."""
    rows, sections = read_rows("capitals.txt"), read_sections("capital_wordings.txt")
    rng = Random(29)
    single = [Case({"c": country}, _capital_answer(country, town), subject=CAPITAL) for country, town in rows]
    double = [_two_capitals(*rng.sample(rows, 2)) for _ in range(_COUNTRY_PAIRS)]
    return [
        Intent("follow.capital", sections["capital.follow"].lines, single, 2.0),
        Intent("follow.capital_two", sections["capital.follow_two"].lines, double, 1.0, computed=True),
    ]


def fixed_intents() -> list[Intent]:
    """Returns small talk, fixed facts and code: sections with one answer each."""
    groups = {"smalltalk.txt": 0.3, "facts.txt": 0.1, "code.txt": 0.25}
    return [
        _fixed(section, base) for name, base in groups.items() for section in read_sections(name).values()
    ]


def _fixed(section: Section, base: float) -> Intent:
    case = Case({}, section.answers[0], section.answers[1:])
    # More families need more looks; the root keeps large sections from crowding out small ones.
    weight = base * section.weight * (len(section.lines) / 10) ** 0.5
    return Intent(section.name, section.lines, [case], weight)


def pair_intents() -> list[Intent]:
    """Returns questions about pairs of words, such as opposites, translations and the day after."""
    tables = {name: [line.split("|") for line in s.lines] for name, s in read_sections("pairs.txt").items()}
    tables["before_day"] = tables["after_day"]
    tables["before_month"] = tables["after_month"]
    intents = []
    for name, section in read_sections("pair_wordings.txt").items():
        template = section.answers[0]
        cases = [Case({"k": k, "v": v}, template.format(k=k, v=v)) for k, v in tables[name]]
        intents.append(Intent(name, section.lines, cases, 0.15 * len(cases) ** 0.5))
    return intents


def list_intents() -> list[Intent]:
    """Returns requests for the first few members of a kind."""
    sections = read_sections("algorithm_wordings.txt")
    rows = [(plural, single, members.split(", ")) for plural, single, members in read_rows("lists.txt")]
    several = [
        Case({"n": word, "x": plural}, _join(members[:count]))
        for plural, _, members in rows
        for word, count in _LIST_COUNTS.items()
    ]
    one = [Case({"y": single}, f"{members[0]}.".capitalize()) for _, single, members in rows]
    return [
        Intent("list.kind", sections["list.kind"].lines, several, 2.5),
        Intent("list.one", sections["list.one"].lines, one, 0.8),
    ]


def _join(members: list[str]) -> str:
    text = ", ".join(members[:-1]) + " and " + members[-1] + "."
    return text[0].upper() + text[1:]


def known_words() -> frozenset[str]:
    """Returns every name that has an answer, in lower case, so that no unknown subject repeats one."""
    names = {name for row in read_rows("topics.txt") for name in _aliases(row)}
    names |= {cell for row in read_rows("capitals.txt") for cell in row}
    names |= {row[0] for row in read_rows("lists.txt")}
    return frozenset(name.lower() for name in names)
