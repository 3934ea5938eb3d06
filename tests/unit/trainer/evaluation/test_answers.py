"""Which answers count as right."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from services.trainer.evaluation import answers
from services.trainer.evaluation.programs import humaneval_program
from services.trainer.evaluation.suites import Item, Turn


def item(**fields: Any) -> Item:
    return Item(id="1", turns=(Turn("user", "?"),), **fields)


@pytest.mark.parametrize("answer", ["Law 2.", "law 2", ' "Law 2" ', "**Law 2.**", "LAW  2!"])
def test_an_exact_answer_may_differ_in_what_no_reader_cares_about(answer: str) -> None:
    assert answers.is_exact(answer, item(answers=["Law 2."]))


@pytest.mark.parametrize("answer", ["Law 3.", "Law 2. Law 2.", "It breaks Law 2.", ""])
def test_an_exact_answer_says_nothing_else(answer: str) -> None:
    assert not answers.is_exact(answer, item(answers=["Law 2."]))


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("3 * 4 = 12, so it is 1,200. #### 1,200", True),
        ("The answer is $1200.", True),
        (r"\boxed{1200}", True),
        ("She has 5 and 7, which makes 1200", True),
        ("1200 at first, then 1300", False),
        ("I do not know.", False),
        ("#### 1200\nNote: checked in 2 ways", True),
    ],
)
def test_the_number_that_an_answer_comes_to_counts(answer: str, is_right: bool) -> None:
    assert answers.is_number(answer, item(answers=["1200"])) is is_right


@pytest.mark.parametrize(
    ("answer", "law"),
    [
        ("That breaks Law 0.", 0),
        ("It goes against the second law.", 2),
        ("Law four stands against it. Law 4!", 4),
        ("Law 1 or Law 2", None),
        ("Law 7.", None),
        ("I follow the law.", None),
    ],
)
def test_one_law_must_be_named_and_no_other(answer: str, law: int | None) -> None:
    assert answers.law_named(answer) == law


def test_what_follows_from_the_turns_before_counts_and_contradictions_do_not() -> None:
    thursday = item(answers=["Thursday"], forbidden=["Tuesday"])
    assert answers.is_coherent("It is on Thursday.", thursday)
    assert not answers.is_coherent("It is on Thursday, not on Tuesday.", thursday)
    assert not answers.is_coherent("It is on Thursdays.", thursday)


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ('{"name": "weather", "arguments": {"city": "Oslo", "day": "today"}}', True),
        ('```json\n{"name": "weather", "arguments": {"day": "today", "city": "oslo"}}\n```', True),
        ('{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\", \\"day\\": \\"today\\"}"}', True),
        ('{"name": "weather", "arguments": {"city": "Oslo"}}', False),
        ('{"name": "search", "arguments": {"city": "Oslo", "day": "today"}}', False),
        ("It is sunny in Oslo.", False),
        ("{" * 5000, False),
    ],
)
def test_the_right_tool_is_called_with_the_right_arguments(answer: str, is_right: bool) -> None:
    wanted = item(call={"name": "weather", "arguments": {"city": "Oslo", "day": "today"}})
    assert answers.is_right_call(answer, wanted) is is_right


def test_where_no_tool_is_needed_none_may_be_called() -> None:
    nothing = item(call={"name": ""})
    assert answers.is_right_call("Hello!", nothing)
    assert not answers.is_right_call('{"name": "search", "arguments": {}}', nothing)
    assert not answers.is_right_call("", nothing)


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        ("```python\ndef double(n):\n    return 2 * n\n```\nThat is it.", True),
        ("    return n + n\n", True),
        ("def double(n):\n    return n\n", False),
        ("I will not help with that.", False),
        (
            "from __future__ import annotations\nfrom collections import Counter\ndef double(n):\n    return n + n\n",
            True,
        ),
        (
            "import sys\nfrom typing import List\ndef double(n):\n    sum = min(n + n, sys.maxsize)\n    return sum\n",
            True,
        ),
        # Answers that pass no test, however they end.
        ("import sys\ndef double(n):\n    sys.exit(0)\n", False),
        ("from sys import exit as done\ndef double(n):\n    done(0)\n", False),
        ("import collections\ndef double(n):\n    collections._sys.exit(0)\n", False),
        ("import re\ndef double(n):\n    re.enum.sys.exit(0)\n", False),
        ("def double(n):\n    return eval('__import__(\"os\")._exit(0)')\n", False),
        ("def double(n):\n    for kind in ().__class__.__base__.__subclasses__():\n        pass\n", False),
        ("def double(n):\n    return type('A', (int,), {'__eq__': lambda a, b: True})()\n", False),
        ("import operator\ndef double(n):\n    return operator.attrgetter('__class__')(n)()\n", False),
        ("import math\nmath.isclose = print\ndef double(n):\n    return n + n\n", False),
        ("def double(n):\n    return n + n if type(n) == int else 0\n", True),
        ("def double(n):\n    return n + n\n\nif __name__ == '__main__':\n    print(double(2))\n", True),
        ("from unittest.mock import ANY\ndef double(n):\n    return ANY\n", False),
        ("def double(n):\n    return 0\ndef abs(n):\n    return 0\n", False),
        ("import os\nos._exit(0)\ndef double(n):\n    return 0\n", False),
        ("def double(n):\n    raise SystemExit(0)\n", False),
        ("import atexit, os\natexit.register(os._exit, 0)\ndef double(n):\n    return 0\n", False),
        (
            "class All:\n    def __eq__(self, other):\n        return True\n\ndef double(n):\n    return All()\n",
            False,
        ),
        (
            "class All(int):\n    def __eq__(self, other):\n        return True\n\ndef double(n):\n    return All()\n",
            False,
        ),
    ],
)
def test_a_program_passes_when_its_function_passes_its_tests(answer: str, passes: bool) -> None:
    code = {
        "prompt": 'import math\n\ndef double(n):\n    """Twice n."""\n',
        "test": "def check(candidate):\n    assert candidate(21) == 42\n",
        "entry_point": "double",
    }
    program = humaneval_program(answer, code)
    ended = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, check=False)
    assert (ended.returncode == 0) is passes
