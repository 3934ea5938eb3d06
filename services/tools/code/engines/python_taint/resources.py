"""Sizes, times, processes and memory that a caller chooses."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from services.tools.code.model import Hit
from services.tools.code.python.subject import Check, Subject
from services.tools.code.python.values import ANYONE, OUTSIDE, REMOTE, Label


def amounts(subject: Subject) -> Iterator[Hit]:
    """Sizes and times from outside."""
    for call in subject.facts.calls:
        if call.name in {
            "range",
            "time.sleep",
            "asyncio.sleep",
            "bytearray",
            "bytes",
            "itertools.repeat",
            "xrange",
            "os.urandom",
            "numpy.zeros",
            "numpy.ones",
        } or call.name.endswith("ctypes.create_string_buffer"):
            taints = tuple(
                taint
                for value in call.args
                for taint in value.from_(REMOTE if call.name in {"range", "xrange"} else OUTSIDE, Label.SIZE)
            )
            numbers = [
                taint
                for taint in taints
                if Label.SQL in taint.cleared or any(isinstance(step, ast.arg) for step, _ in taint.steps)
            ]
            if numbers:
                yield subject.hit("uncontrolled_resource", call.node, numbers)


def targets(subject: Subject) -> Iterator[Hit]:
    """Processes, files and memory that a caller chooses."""
    for call in subject.facts.calls:
        if call.name in {
            "os.kill",
            "os.killpg",
            "os.chown",
            "psutil.Process().kill",
            "signal.pthread_kill",
        }:
            owned = tuple(taint for value in call.args for taint in value.from_(OUTSIDE))
            if owned:
                yield subject.hit("unverified_ownership", call.node, owned)
        elif call.name in {
            "ctypes.memmove",
            "ctypes.memset",
            "ctypes.string_at",
            "libc.memcpy",
            "libc.strcpy",
        } or call.method in {"memmove", "memcpy", "strcpy", "strcat", "memset"}:
            yield subject.hit(
                "unsafe_memory",
                call.node,
                tuple(taint for value in call.args for taint in value.from_(ANYONE)),
            )


def counts(subject: Subject) -> Iterator[Hit]:
    """Repetitions and places in lists that are read from outside where they are used."""
    for node in subject.tree.all(ast.BinOp):
        if (
            isinstance(node.op, ast.Mult)
            and isinstance(node.left, ast.Constant | ast.List)
            and (not isinstance(node.left, ast.Constant) or isinstance(node.left.value, str | bytes))
            and re.search(r"int\((?:flask\.)?(?:request\.|input\()", subject.tree.text(node.right))
        ):
            yield subject.hit("uncontrolled_resource", node)
    for item in subject.tree.all(ast.Subscript):
        if (
            isinstance(item.slice, ast.Call)
            and re.match(r"int\((?:input\(|request\.|sys\.argv)", subject.tree.text(item.slice))
            and isinstance(item.value, ast.Name)
        ):
            yield subject.hit("unchecked_index", item)


CHECKS: Final[tuple[Check, ...]] = (amounts, targets, counts)
