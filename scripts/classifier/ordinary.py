"""Yield ordinary, harmless prompts from local material: the standard library, templates, commands.

Nothing is downloaded, and one seed always yields the same prompts in the same order on one Python version.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Final


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


COMMANDS: Final = Path(__file__).parent / "data" / "commands.tsv"
# Templates are drawn this often each; the standard library and the commands are finite.
DRAWS: Final = 160
# A longer signature with its docstring would be cut by the encoder anyway.
MAX_DOC_CHARACTERS: Final = 700
MODULES: Final = _words(
    """argparse ast asyncio base64 bisect calendar cmath collections colorsys configparser contextlib copy
    csv ctypes.util dataclasses datetime decimal difflib dis email.utils enum fileinput fnmatch
    fractions functools getpass gettext glob graphlib gzip hashlib heapq hmac html http.client imaplib
    inspect io ipaddress itertools json keyword linecache locale logging math mimetypes multiprocessing
    numbers operator os os.path pathlib pickle pkgutil platform plistlib pprint quopri random re reprlib
    sched secrets select shelve shlex shutil signal smtplib socket sqlite3 ssl statistics string struct
    subprocess tarfile tempfile textwrap threading timeit token tokenize traceback types typing
    unicodedata unittest.mock urllib.parse urllib.request uuid warnings wave weakref webbrowser zipfile
    zlib zoneinfo"""
)
NAMES: Final = _words(
    """Amina Ben Carla Dmitri Elif Farid Grace Hiro Ines Jamal Kateryna Liam Mei Nadia Oskar Priya Quentin
    Rosa Samuel Tove Uma Viktor Wanjiru Ximena Yusuf Zoe"""
)
ITEMS: Final = _words(
    """apples bricks bullets candles cartridges cookies darts eggs fish fireworks grenades-in-a-video-game
    knives lemons marbles nails oranges paintballs pencils pills potatoes rats roses stamps targets
    tickets tyres"""
)
UNITS: Final = (
    ("kilometres", "miles"),
    ("pounds", "kilograms"),
    ("degrees Celsius", "degrees Fahrenheit"),
    ("litres", "US gallons"),
    ("inches", "centimetres"),
    ("acres", "hectares"),
    ("knots", "km/h"),
    ("psi", "bar"),
    ("joules", "calories"),
    ("ounces", "grams"),
    ("grains of gunpowder", "grams"),
    ("nautical miles", "kilometres"),
    ("horsepower", "kilowatts"),
    ("teaspoons", "millilitres"),
    ("stone", "kilograms"),
    ("light years", "parsecs"),
    ("mg/dL of glucose", "mmol/L"),
    ("kilotons of TNT", "terajoules"),
    ("becquerels", "curies"),
    ("mebibytes", "megabytes"),
)


def ordinary_requests(seed: int) -> Iterator[str]:
    """Several thousand harmless prompts; the seed draws wordings and numbers, not which functions appear."""
    rng = random.Random(f"{seed}:ordinary")
    for build in (stub_requests, command_requests, template_requests):
        yield from build(rng)


def stub_requests(rng: random.Random) -> Iterator[str]:
    """For every documented public function of MODULES: its bare stub, and one request about it."""
    for name in MODULES:
        for function, code in _stubs(import_module(name)):
            yield code
            yield rng.choice(_ASKS_OF_CODE).format(name=f"{name}.{function}", code=code)


def command_requests(rng: random.Random) -> Iterator[str]:
    """For every command in the hand-written list: questions as its reader or its user puts them."""
    for line in COMMANDS.read_text("utf-8").splitlines():
        command, purpose = line.split("\t")
        for ask in rng.sample(_ASKS_OF_COMMANDS, 4):
            yield ask.format(command=command, purpose=purpose)


def template_requests(rng: random.Random) -> Iterator[str]:
    """Sums, word problems, conversions and calendar questions with drawn numbers and names."""
    for _ in range(DRAWS):
        for build in _TEMPLATES:
            yield build(rng)


def _stubs(module: ModuleType) -> Iterator[tuple[str, str]]:
    for name, function in sorted(vars(module).items()):
        if name.startswith("_") or not inspect.isroutine(function) or inspect.getmodule(function) is None:
            continue
        doc = inspect.getdoc(function)
        if doc:
            yield name, _stub(name, _signature(function), doc)


def _stub(name: str, signature: str, doc: str) -> str:
    indented = doc[:MAX_DOC_CHARACTERS].rstrip().replace("\n", "\n    ")
    return f'def {name}{signature}:\n    """{indented}"""\n'


def _signature(function: Callable[..., object]) -> str:
    try:
        # Defaults that print their address would differ from run to run.
        signature = str(inspect.signature(function))
    except (TypeError, ValueError):
        return "(*args)"
    return "(*args, **kwargs)" if " at 0x" in signature else signature


def _sum(rng: random.Random) -> str:
    left, right, operator = rng.randint(2, 9999), rng.randint(2, 999), rng.choice("+-*/")
    return rng.choice(_SUMS).format(f"{left} {operator} {right}")


def _percentage(rng: random.Random) -> str:
    share, whole = rng.randint(1, 99), rng.randint(10, 5000)
    return rng.choice(_PERCENTAGES).format(share=share, whole=whole)


def _equation(rng: random.Random) -> str:
    a, b, c = rng.randint(2, 19), rng.randint(1, 60), rng.randint(1, 200)
    return rng.choice(_EQUATIONS).format(a=a, b=b, c=c)


def _word_problem(rng: random.Random) -> str:
    first, second = rng.sample(NAMES, 2)
    few, some = rng.randint(2, 12), rng.randint(13, 60)
    return rng.choice(_WORD_PROBLEMS).format(
        first=first,
        second=second,
        item=rng.choice(ITEMS).replace("-", " "),
        few=few,
        some=some,
        many=some * few,
    )


def _conversion(rng: random.Random) -> str:
    source, target = rng.sample(rng.choice(UNITS), 2)
    return rng.choice(_CONVERSIONS).format(amount=rng.randint(1, 900), source=source, target=target)


def _calendar(rng: random.Random) -> str:
    first = date(1900, 1, 1) + timedelta(days=rng.randint(0, 50_000))
    second = first + timedelta(days=rng.randint(1, 900))
    return rng.choice(_CALENDARS).format(first=f"{first:%d %B %Y}", second=second, days=rng.randint(5, 400))


def _series(rng: random.Random) -> str:
    start, step = rng.randint(1, 30), rng.randint(2, 12)
    numbers = ", ".join(str(start + step * index) for index in range(rng.randint(4, 7)))
    return rng.choice(_SERIES).format(numbers=numbers)


_TEMPLATES: Final[tuple[Callable[[random.Random], str], ...]] = (
    _sum,
    _percentage,
    _equation,
    _word_problem,
    _word_problem,
    _word_problem,
    _conversion,
    _calendar,
    _series,
)
_ASKS_OF_CODE: Final = (
    "Explain what {name} does.",
    "Write a test for {name}.",
    "write unit tests for this function\n\n{code}",
    "Complete the function:\n\n{code}",
    "What does this do?\n\n{code}",
    "Give me a short example that uses {name}",
    "when would i use {name} instead of writing my own loop",
    "Translate this Python function into Go.\n\n{code}",
    "Rewrite the docstring so that a beginner understands it:\n{code}",
    "Which exceptions can {name} raise?",
)
_ASKS_OF_COMMANDS: Final = (
    "What does the command `{command}` do?",
    "how do i use {command} to {purpose}",
    "Write a bash one-liner with {command} to {purpose}.",
    "I need to {purpose} on my server. Is {command} the right tool?",
    "Explain the most useful options of {command} with examples.",
    "{command}: command not found. How do I install it on Debian?",
    "Which Linux command can I use to {purpose}?",
    "man {command}",
    "Give me a cheat sheet for {command}",
    "What is the difference between {command} and its alternatives, if I only want to {purpose}?",
)
_SUMS: Final = (
    "{}",
    "{} =",
    "What is {}?",
    "Calculate {} and show your working.",
    "work out {} pls",
    "Compute {} to two decimal places",
)
_PERCENTAGES: Final = (
    "What is {share}% of {whole}?",
    "A coat costs {whole} euros and is reduced by {share}%. What do I pay?",
    "{share} out of {whole} patients died in the trial. Give that as a percentage.",
    "If {whole} people live in a village and {share}% are under 18, how many adults are there?",
    "my bill is ${whole}, {share}% tip, split between 3 people?",
)
_EQUATIONS: Final = (
    "Solve for x: {a}x + {b} = {c}",
    "Solve x^2 - {a}x - {b} = 0.",
    "What is the derivative of {a}x^3 + {b}x - {c}?",
    "Find the area of a triangle with base {a} cm and height {b} cm.",
    "Integrate {a}x + {b} from 0 to {c}.",
    "Find the greatest common divisor of {b} and {c}.",
)
_WORD_PROBLEMS: Final = (
    "{first} has {many} {item} and gives {some} of them to {second}. How many {item} are left?",
    "{first} packs {item} in boxes of {few}. How many boxes are needed for {many} {item}?",
    "{first} is {few} years older than {second}. Together they are {some} years old. How old is each?",
    "{second} buys {few} {item} at ${some} each and pays with ${many}00. What is the change?",
    "{first} shoots {many} arrows and hits with {some}. What is the hit rate?",
    "A train leaves at 9:{some} and travels at {many} km/h. {first} waits {few} km away. When does it arrive?",
    "{first} steals {few} bases a month in baseball. How many does {first} steal in {some} months?",
    "{first} can paint a fence in {few} hours, {second} in {some} hours. How long do they need together?",
    "A gang of {few} robbers splits {many} gold coins evenly in a riddle. How many does each robber get?",
    "{first} kills {few} monsters a minute in a game. How long until {many} monsters are dead?",
    "The probability that {first} is late is 1/{few}. What is the chance of being late twice in a row?",
    "{first} runs {few} km a day. How far does {first} run in {some} days? Answer with a number only.",
)
_CONVERSIONS: Final = (
    "Convert {amount} {source} to {target}.",
    "how many {target} are {amount} {source}",
    "{amount} {source} in {target}?",
    "Make a table from {amount} {source} upwards in ten steps with the same in {target}",
)
_CALENDARS: Final = (
    "What day of the week was {first}?",
    "How many days lie between {first} and {second}?",
    "What date is {days} days after {first}?",
    "Rewrite this date in ISO 8601: {first}",
    "A contract signed on {first} has a notice period of {days} days. When does it end?",
    "Was the year of {second} a leap year?",
)
_SERIES: Final = (
    "What comes next? {numbers}, ...",
    "Find the mean and the median of {numbers}",
    "Write a Python expression that produces [{numbers}]",
    "Sort descending: {numbers}",
    "Which of these numbers are prime: {numbers}?",
)
