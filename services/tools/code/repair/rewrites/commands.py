"""Commands: a list of arguments instead of a text that a shell reads."""

from __future__ import annotations

import re
import shlex
from typing import ClassVar, Final

import libcst as cst

from services.tools.code.repair.model import DeclinedError, Place, Proposal
from services.tools.code.repair.rewrites.base import Named
from services.tools.code.repair.texts import pieces_of
from services.tools.code.repair.tree import Tree, is_true, keyword, without

_RULES: Final = frozenset({"kala.python.command_injection", "bandit.B602", "bandit.B605", "bandit.B607"})
# What a shell does more with than to take it as it is.
_SHELL: Final = re.compile(r"[|&;<>()$`\\*?\[\]{}#~!\n\r]")
_BUILTINS: Final = frozenset(
    {
        *(
            ".",
            ":",
            "alias",
            "bg",
            "cd",
            "command",
            "eval",
            "exec",
            "exit",
            "export",
            "fg",
            "hash",
            "jobs",
            "read",
        ),
        *("set", "shift", "source", "times", "trap", "type", "ulimit", "umask", "unalias", "unset", "wait"),
    }
)
_CALLS: Final = tuple(f"subprocess.{name}" for name in ("run", "call", "check_call", "check_output", "Popen"))
# Stand for values while the text is split; no program's text holds them.
_MARK: Final = re.compile("\ue000(\\d+)\ue001")


class SubprocessShellFalse(Named):
    """`run(f"ls {x}", shell=True)` becomes `run(["ls", x])`."""

    name = "subprocess_shell_false"
    rules: ClassVar[frozenset[str]] = _RULES
    note = (
        "The same program gets the same arguments without a shell between: a value is one argument, whatever it holds. A "
        "program that does not exist raises FileNotFoundError instead of ending with 127."
    )

    def propose(self, tree: Tree, place: Place) -> Proposal | None:
        """Find the call at the place."""
        for call, _ in tree.calls(place, *_CALLS):
            shell = keyword(call, "shell")
            if shell is None or not is_true(shell.value):
                continue
            if not call.args or call.args[0].star or call.args[0].keyword is not None:
                raise DeclinedError("the command is not the call's first argument")
            if keyword(call, "executable") is not None:
                raise DeclinedError("the call names the shell to use")
            command = argument_list(tree, call.args[0].value)
            first = call.args[0].with_changes(value=cst.parse_expression(command))
            return self.proposal(
                tree.replaced(call, without(call.with_changes(args=[first, *call.args[1:]]), "shell"))
            )
        return None


class OsSystemList(Named):
    """`os.system("ls " + x)` becomes `subprocess.run(["ls", x], check=False)`."""

    name = "os_system_list"
    rules: ClassVar[frozenset[str]] = _RULES
    note = (
        "The same program gets the same arguments without a shell between: a value is one argument, whatever it holds. A "
        "program that does not exist raises FileNotFoundError; where the result is looked at, it is the exit code."
    )

    def propose(self, tree: Tree, place: Place) -> Proposal | None:
        """Find the call at the place."""
        for call, name in tree.calls(place, "os.system", "os.popen"):
            if len(call.args) != 1 or call.args[0].star:
                raise DeclinedError("the call has more than a command")
            module, imports = tree.module_alias("subprocess")
            command = argument_list(tree, call.args[0].value)
            if name == "os.popen":
                return self._read(tree, call, module, command, imports)
            run = f"{module}.run({command}, check=False)"
            if isinstance(tree.parent(call), cst.Expr):
                return self.proposal(tree.replaced(call, run), imports=imports)
            if not _is_looked_at_for_zero(tree, call):
                raise DeclinedError(
                    "the call's result is used, and it is another number than a program's exit code"
                )
            return self.proposal(tree.replaced(call, f"{run}.returncode"), imports=imports)
        return None

    def _read(
        self, tree: Tree, call: cst.Call, module: str, command: str, imports: frozenset[str]
    ) -> Proposal:
        """`os.popen(…).read()` is the whole output."""
        above = tree.parent(call)
        whole = None if above is None else tree.parent(above)
        is_read = isinstance(above, cst.Attribute) and above.attr.value == "read"
        if not is_read or not isinstance(whole, cst.Call) or whole.args:
            raise DeclinedError("the output is not read at once")
        run = f"{module}.run({command}, check=False, stdout={module}.PIPE, text=True).stdout"
        return self.proposal(tree.replaced(whole, run), imports=imports)


def argument_list(tree: Tree, command: cst.BaseExpression) -> str:
    """Write a command's text as a list; DeclinedError where a shell does more than to split it."""
    pieces = pieces_of(tree, command)
    if pieces is None:
        raise DeclinedError("the command is not put together in the call, so its arguments are not known")
    text, values = "", list[str]()
    for piece in pieces:
        for part in piece.parts:
            if isinstance(part, str):
                if _SHELL.search(part):
                    raise DeclinedError(
                        "the command uses what only a shell can do (pipes, patterns, variables)"
                    )
                text += part
            else:
                text += f"\ue000{len(values)}\ue001"
                values.append(tree.code(part))
    try:
        words = shlex.split(text)
    except ValueError:
        raise DeclinedError("the command's quotes cannot be followed") from None
    if not words or _MARK.search(words[0]):
        raise DeclinedError("which program runs is not known before it runs")
    if words[0] in _BUILTINS or "=" in words[0]:
        raise DeclinedError("the command's first word is the shell's own")
    if isinstance(command, cst.BinaryOperation) and isinstance(command.operator, cst.Add):
        # What is added to a text is one.
        is_text = [f"str({value})" not in tree.code(command) for value in values]
    else:
        is_text = [False] * len(values)
    return f"[{', '.join(_word(word, values, is_text) for word in words)}]"


def _word(word: str, values: list[str], is_text: list[bool]) -> str:
    whole = _MARK.fullmatch(word)
    if whole is not None:
        index = int(whole[1])
        return values[index] if is_text[index] else f"str({values[index]})"
    if not _MARK.search(word):
        return f'"{word}"' if '"' not in word and "\\" not in word else repr(word)
    parts = _MARK.split(word)
    said = ""
    for index, part in enumerate(parts):
        source = values[int(part)] if index % 2 else ""
        if index % 2 and any(character in source for character in "\"'\\{}!\n"):
            raise DeclinedError("a value is too intricate to be put into another text")
        said += f"{{{source}}}" if index % 2 else part
    if '"' in said:
        raise DeclinedError("the command's quotes cannot be followed")
    return f'f"{said}"'


def _is_looked_at_for_zero(tree: Tree, call: cst.Call) -> bool:
    above = tree.parent(call)
    if isinstance(above, cst.Comparison):
        operator, other = above.comparisons[0].operator, above.comparisons[0].comparator
        is_zero = isinstance(other, cst.Integer) and other.value == "0"
        is_equal = isinstance(operator, cst.Equal | cst.NotEqual)
        return above.left is call and len(above.comparisons) == 1 and is_zero and is_equal
    return isinstance(above, cst.If | cst.UnaryOperation)
