"""Exercises with answers: MBPP, GSM8K, MATH, textbook problems, secure coding and bug fixes."""

from __future__ import annotations

import re
from typing import Final

from services.trainer.datasets.problems import EMPTY, MISSING_FIELD, WRONG_VALUE, RowError, quoted
from services.trainer.datasets.readers.fields import (
    Fields,
    answered,
    optional_text,
    subject_of,
    text_of,
    texts_of,
)
from services.trainer.datasets.rows import Row

# MBPP's published split by task_id: 1 to 10 for prompts, 11 to 510 for tests; the rest may be trained on.
_MBPP_LAST_TEST: Final = 510
_TASK: Final = re.compile(r"[0-9]{1,9}")
_GSM8K_ANSWER: Final = re.compile(r"\n?#### *(-?[\d,.]+)\s*\Z")
_CALCULATOR: Final = re.compile(r"<<[^<>]*>>")
_BOXED: Final = "\\boxed"
_NUMBER: Final = re.compile(r"-?\d")
# A result without a unit is right only where it has none: a ratio, a count, an angle as a number.
_NO_UNIT: Final = frozenset({"", "1", "none", "dimensionless", "-"})


def read_mbpp(row: Fields) -> Row:
    """`text` or `prompt`, `code`, and `test_list` as part of the question; the test part is refused by `task_id`."""
    if "task_id" not in row:
        raise RowError(MISSING_FIELD, "task_id is missing; without it MBPP's test part cannot be told apart")
    # Exports of tables write numbers as texts or as 11.0.
    task = str(row["task_id"]).strip().removesuffix(".0")
    if not _TASK.fullmatch(task):
        raise RowError(WRONG_VALUE, f"task_id is {quoted(row['task_id'])}, no whole number")
    if int(task) <= _MBPP_LAST_TEST:
        raise RowError(WRONG_VALUE, f"task_id {task} is in MBPP's test part, which is for evaluation only")
    asked, code = text_of(row, "text", "prompt"), text_of(row, "code")
    tests = texts_of(row, "test_list")
    question = f"{asked}\nYour code must pass:\n```python\n{chr(10).join(tests)}\n```"
    return answered("code", question, f"```python\n{_plain_lines(code)}\n```")


def read_gsm8k(row: Fields) -> Row:
    """`question` and `answer` ending in `#### <number>`; marks for a calculator are taken out."""
    question, answer = text_of(row, "question"), text_of(row, "answer")
    found = _GSM8K_ANSWER.search(answer)
    if found is None:
        raise RowError(WRONG_VALUE, "answer does not end with #### and a number")
    steps = _CALCULATOR.sub("", answer[: found.start()]).strip()
    return answered(
        "mathematics", question, f"{steps}\nThe answer is {found[1]}.".strip(), {"answer": found[1]}
    )


def read_math(row: Fields) -> Row:
    r"""`problem` and `solution` with a \boxed{} answer; `level` and `type` are kept beside the row."""
    problem, solution = text_of(row, "problem"), text_of(row, "solution")
    answer = boxed(solution)
    if not answer:
        raise RowError(WRONG_VALUE, "solution has no \\boxed{} answer")
    facts = {key: optional_text(row, key) for key in ("level", "type")}
    facts["answer"] = answer
    return answered("mathematics", problem, solution, {key: value for key, value in facts.items() if value})


def boxed(solution: str) -> str:
    r"""Returns what stands in the last \boxed{}, braces inside it balanced; empty where there is none."""
    start = solution.rfind(_BOXED)
    if start < 0:
        return ""
    rest = solution[start + len(_BOXED) :].lstrip()
    if not rest.startswith("{"):
        return rest.split()[0].strip("$.,") if rest else ""
    depth = 0
    for index, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:index].strip()
    return ""


def read_textbook(row: Fields) -> Row:
    """`problem`, `steps` (a list or a text), `answer` and `unit`; a number without a unit is refused."""
    problem, answer = text_of(row, "problem", "question"), text_of(row, "answer")
    unit = optional_text(row, "unit") or optional_text(row, "units")
    if "unit" not in row and "units" not in row and _NUMBER.match(answer):
        raise RowError(MISSING_FIELD, "unit is missing; write 1 for a number without one")
    result = answer if unit in _NO_UNIT or answer.endswith(unit) else f"{answer} {unit}"
    steps = row.get("steps", row.get("solution"))
    lines = [text_of(row, "steps", "solution")] if isinstance(steps, str) else texts_of(row, "steps")
    numbered = (
        lines if len(lines) == 1 else [f"{number}. {line}" for number, line in enumerate(lines, start=1)]
    )
    facts = {"answer": result}
    topic = optional_text(row, "topic") or optional_text(row, "subject")
    if topic and not subject_of(row):
        facts["topic"] = topic
    return answered("physics", problem, "\n".join([*numbered, f"Result: {result}"]), facts)


def read_secure_coding(row: Fields) -> Row:
    """`question` and `answer`; or `vulnerable`, `fixed` and `explanation`. `cwe` is kept beside the row."""
    facts = {"cwe": cwe} if (cwe := optional_text(row, "cwe")) else {}
    if "vulnerable" not in row:
        return answered("secure_coding", text_of(row, "question"), text_of(row, "answer"), facts)
    language = optional_text(row, "language")
    vulnerable, fixed = text_of(row, "vulnerable"), text_of(row, "fixed")
    if vulnerable == fixed:
        raise RowError(WRONG_VALUE, "vulnerable and fixed are equal")
    question = f"Find the weakness in this code and fix it:\n{_fenced(language, vulnerable)}"
    return answered(
        "secure_coding", question, f"{text_of(row, 'explanation')}\n{_fenced(language, fixed)}", facts
    )


def read_bug_fix(row: Fields) -> Row:
    """`before` or `buggy`, `after` or `fixed`; `message` says what was wrong."""
    before, after = text_of(row, "before", "buggy"), text_of(row, "after", "fixed")
    return bug_fix(before, after, optional_text(row, "message"), optional_text(row, "language"))


def bug_fix(before: str, after: str, message: str, language: str) -> Row:
    """Returns a pair of code before and after a fix as a question with its answer."""
    if before == after:
        raise RowError(WRONG_VALUE, "before and after are equal")
    if not after.strip():
        raise RowError(EMPTY, "after is empty")
    question = f"This code has a bug. Fix it.\n{_fenced(language, before)}"
    answer = _fenced(language, after)
    return answered("bug_fix", question, f"{message}\n{answer}" if message else answer)


def _fenced(language: str, code: str) -> str:
    return f"```{language}\n{_plain_lines(code)}\n```"


def _plain_lines(code: str) -> str:
    return code.replace("\r\n", "\n").strip("\n")
