"""Reading words: quotes, escapes, parameters, substitutions, arithmetic and patterns, by bash's rules or not at all."""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from typing import Final

from services.tools.policy.shell.braces import MAX_BRACES, MAX_EXPANSIONS, expand_braces, joined
from services.tools.policy.shell.syntax import (
    Arithmetic,
    Brace,
    Literal,
    Parameter,
    Part,
    Pattern,
    ProcessFile,
    Script,
    ShellSyntaxError,
    Substitution,
    Word,
)

# What the shell tool takes as one command line: judging so many takes a third of a second at worst. More is a program.
MAX_CHARS: Final = 16_384
# Words that brace expansions may add to one command line.
MAX_EXPANDED: Final = 2_048
# Deeper than anybody writes, and far from the end of this process's stack.
MAX_DEPTH: Final = 24

_BLANKS: Final = " \t"
_METACHARACTERS: Final = frozenset(" \t\n|&;()<>")
_NOT_ASCII: Final = re.compile(r"[^\n\t -~]")
_WORD: Final = re.compile(r"[^ \t\n|&;()<>]*")
_KEYWORD: Final = re.compile(r"[^ \t\n|&;()<>\\'\"$`]+")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SPECIAL_PARAMETERS: Final = "?#$!"
# What may stand in `${name…}` after the name; none of it begins an expansion, a quote or an arithmetic with names.
_TEXT: Final = r"[A-Za-z0-9_./:,+=@ -]*"
_GLOB: Final = r"[A-Za-z0-9_.:,+=@ *?!\[\]-]*"
_GLOB_PATH: Final = r"[A-Za-z0-9_./:,+=@ *?!\[\]-]*"
_OPERATION: Final = re.compile(
    rf"(?::?[-+]{_TEXT}|##?{_GLOB_PATH}|%%?{_GLOB_PATH}|/[/#%]?{_GLOB}(?:/{_TEXT})?|\^\^?|,,?"
    r"|: ?-?[0-9]{1,9}(?:: ?-?[0-9]{1,9})?)(?=\})"
)
_BRACKET: Final = re.compile(r"\[[!^]?\]?(?:\[:[a-z]+:\]|[A-Za-z0-9_.,+@=-])*\]")
_ARITHMETIC: Final = re.compile(
    r"0[xX][0-9a-fA-F]{1,15}(?![0-9A-Za-z_#@])|[0-9]{1,18}(?![0-9A-Za-z_#@])|[A-Za-z_][A-Za-z0-9_]*"
    r"|\$[A-Za-z_][A-Za-z0-9_]*|\$\{[A-Za-z_][A-Za-z0-9_]*\}"
    r"|\*\*|<<|>>|<=|>=|==|!=|&&|\|\||(?!\+\+|--)[-+*/%<>!~&|^?:()]"
)
_SPACES: Final = re.compile(r"[ \t\n]*")
_ANSI: Final = re.compile(
    r"\\(?:([abeEfnrtv\\'\"?])|([0-7]{1,3})|x([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{1,4})|U([0-9a-fA-F]{1,8})|c([\x40-\x7e]))"
)
_ANSI_LETTERS: Final = {
    "a": "\a", "b": "\b", "e": "\x1b", "E": "\x1b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
}  # fmt: skip
_ASCII_END: Final = 0x80


def require_plain_text(text: str) -> None:
    """Raises ShellSyntaxError for text that could show a person something else than what it is, or is too long."""
    if len(text) > MAX_CHARS:
        raise ShellSyntaxError(f"the command has {len(text)} characters; at most {MAX_CHARS} are taken")
    for found in _NOT_ASCII.finditer(text):
        position, char = found.start(), found.group()
        # Controls, directions of writing, invisible joiners, halves of surrogate pairs, private and unassigned ones, and
        # line ends that are not ASCII's.
        if unicodedata.category(char)[0] == "C" or unicodedata.category(char) in {"Zl", "Zp"}:
            raise ShellSyntaxError(
                f"character {position + 1} is U+{ord(char):04X}, which is invisible or moves text; "
                "leave it out, or write it as $'\\u…' inside a word"
            )


class WordReader(ABC):
    """Reads words of one text from a position on; `depth` counts what they stand in."""

    def __init__(self, text: str, depth: int = 0) -> None:
        self.text = text
        self.at = 0
        self.depth = depth
        self._word_end = 0
        self._expanded = 0

    @abstractmethod
    def read_until_parenthesis(self) -> Script:
        """The script up to a closing parenthesis, which is passed."""

    @abstractmethod
    def read_other(self, text: str) -> Script:
        """The script of another text, one deeper."""

    def error(self, problem: str) -> ShellSyntaxError:
        """An error that says where."""
        line = self.text.count("\n", 0, self.at) + 1
        column = self.at - self.text.rfind("\n", 0, self.at)
        return ShellSyntaxError(f"line {line}, column {column}: {problem}")

    def peek(self, length: int = 1) -> str:
        """The next characters; fewer at the end."""
        return self.text[self.at : self.at + length]

    def take(self, token: str) -> bool:
        """Pass the token if it is next."""
        found = self.text.startswith(token, self.at)
        if found:
            self.at += len(token)
        return found

    def skip_blanks(self) -> None:
        """Pass blanks, joined lines and a comment."""
        while True:
            if self.peek() and self.peek() in _BLANKS:
                self.at += 1
            elif not self.take("\\\n"):
                break
        if self.peek() == "#":
            end = self.text.find("\n", self.at)
            self.at = len(self.text) if end < 0 else end

    def read_words(self) -> list[Word]:
        """One word with its braces expanded, so one or more; none when no word is next."""
        parts = self._read_parts()
        if not parts:
            return []
        expanded = expand_braces(parts)
        if expanded is not None:
            self._expanded += len(expanded) - 1
        if expanded is None or self._expanded > MAX_EXPANDED:
            raise self.error(
                f"brace expansions may make {MAX_EXPANSIONS} words, {MAX_EXPANDED} in all, of {MAX_BRACES} braces; quote them"
            )
        return [Word(joined(each)) for each in expanded]

    def read_word(self) -> Word | None:
        """One word whose braces mean themselves, as in an assignment."""
        parts = self._read_parts()
        return Word(joined(parts)) if parts else None

    def read_quoted_rest(self) -> Word:
        """All that is left, as if it stood between double quotes, where a " means itself."""
        return Word(joined(self._double_quoted("")))

    def read_keyword(self) -> str:
        """The next word when it is written plainly, without passing it; "" otherwise."""
        found = _KEYWORD.match(self.text, self.at)
        if not found:
            return ""
        after = self.text[found.end() : found.end() + 1]
        return found.group() if not after or after in _METACHARACTERS else ""

    def _read_parts(self) -> list[Part]:
        parts: list[Part] = []
        begin = self.at
        while self.at < len(self.text):
            char = self.peek()
            if char in "<>" and self.peek(2) in {"<(", ">("}:
                parts.append(self._process_file())
            elif char in _METACHARACTERS:
                break
            elif char == "~" and self.at == begin:
                parts.append(self._tilde())
            elif not self.take("\\\n"):
                parts += self._next_parts(char)
        return parts

    def _next_parts(self, char: str) -> list[Part]:  # noqa: PLR0911 - one for each kind of quoting
        if char == "\\":
            return [self._escaped()]
        if char == "'":
            return [Literal(self._single_quoted())]
        if char == '"':
            self.at += 1
            return self._double_quoted('"')
        if char == "$":
            return [self._dollar(quoted=False)]
        if char == "`":
            return [Substitution(self._backquoted("`\\$"), quoted=False)]
        if char == "[":
            return [self._bracket()]
        self.at += 1
        if char in "*?":
            return [Pattern(char)]
        return [Brace(char) if char in "{,}" else Literal(char)]

    def _escaped(self) -> Literal:
        self.at += 1
        if self.at >= len(self.text):
            raise self.error("the text ends after a backslash")
        self.at += 1
        return Literal(self.text[self.at - 1])

    def _single_quoted(self) -> str:
        end = self.text.find("'", self.at + 1)
        if end < 0:
            raise self.error("this ' is never closed")
        text = self.text[self.at + 1 : end]
        self.at = end + 1
        return text

    def _double_quoted(self, end: str) -> list[Part]:
        """Up to the closing quote, which is passed; with an end of "" up to the end of the text, as in a here-document."""
        # Empty quotes are an argument too.
        parts: list[Part] = [Literal("")]
        escapable = "$`\\" + end
        while not (end and self.take(end)):
            char = self.peek()
            if not char:
                if not end:
                    break
                raise self.error('a " is never closed')
            if char == "\\" and self.text[self.at + 1 : self.at + 2] in {*escapable, "\n"}:
                self.at += 2
                parts.append(Literal(self.text[self.at - 1].replace("\n", "")))
            elif char == "$":
                parts.append(self._dollar(quoted=True))
            elif char == "`":
                parts.append(Substitution(self._backquoted("`\\$" + end), quoted=True))
            else:
                self.at += 1
                parts.append(Literal(char))
        return parts

    def _tilde(self) -> Part:
        self.at += 1
        if self.peek() not in {"", "/"} and self.peek() not in _METACHARACTERS:
            raise self.error("~ with a name is not taken; write the path out")
        return Literal("/workspace")

    def _bracket(self) -> Part:
        found = _BRACKET.match(self.text, self.at)
        if found and found.group() not in {"[]", "[!]", "[^]"}:
            self.at = found.end()
            return Pattern(found.group())
        if self._is_closed_in_word():
            raise self.error(
                "this bracket expression is not taken; quote the [, or use letters, digits, ranges and classes"
            )
        self.at += 1
        return Literal("[")

    def _is_closed_in_word(self) -> bool:
        close = self.text.find("]", self.at)
        if self.at >= self._word_end:
            found = _WORD.match(self.text, self.at)
            self._word_end = found.end() if found else self.at
        return self.at < close < self._word_end

    def _process_file(self) -> Part:
        if self.take(">("):
            raise self.error("output to a process, >(…), is not taken; use a pipe")
        self.take("<(")
        return ProcessFile(self.read_until_parenthesis())

    def _backquoted(self, escapable: str) -> Script:
        begin = self.at
        self.at += 1
        text = []
        while not self.take("`"):
            char = self.peek()
            if not char:
                self.at = begin
                raise self.error("this ` is never closed")
            escape = char == "\\" and self.text[self.at + 1 : self.at + 2] in {*escapable}
            self.at += 2 if escape else 1
            text.append(self.text[self.at - 1])
        return self.read_other("".join(text))

    def _dollar(self, *, quoted: bool) -> Part:  # noqa: PLR0911 - one for each kind of expansion
        if self.take("$(("):
            return Arithmetic(self._arithmetic(), quoted)
        if self.take("$("):
            return Substitution(self.read_until_parenthesis(), quoted)
        if self.take("${"):
            return self._braced_parameter(quoted=quoted)
        if self.peek(2) == "$[":
            raise self.error("$[…] is not taken; write $((…))")
        if not quoted and self.peek(2) == "$'":
            self.at += 1
            return Literal(self._ansi_quoted())
        if not quoted and self.peek(2) == '$"':
            raise self.error('$"…" is not taken; leave the $ out')
        self.at += 1
        name = _NAME.match(self.text, self.at)
        if name:
            self.at = name.end()
            return Parameter(name.group(), quoted)
        if self.peek() and self.peek() in _SPECIAL_PARAMETERS:
            self.at += 1
            return Parameter(self.text[self.at - 1], quoted)
        if self.peek() and self.peek() in "0123456789@*-_":
            raise self.error(f"${self.peek()} is not taken: a command line has no arguments of its own")
        return Literal("$")

    def _braced_parameter(self, *, quoted: bool) -> Part:
        length = self.peek(2)[:1] == "#" and self.peek(2) not in {"#}", "#"}
        self.at += length
        name = _NAME.match(self.text, self.at)
        if name:
            self.at = name.end()
        elif self.peek() and self.peek() in _SPECIAL_PARAMETERS:
            self.at += 1
        else:
            raise self.error("only plain names are taken in ${…}; no indirection, no arrays, no arguments")
        parameter = name.group() if name else self.text[self.at - 1]
        if self.take("}"):
            return Parameter(parameter, quoted, length=length)
        operation = _OPERATION.match(self.text, self.at)
        if not operation or not self.text.startswith("}", operation.end()) or length or not name:
            raise self.error(
                "in ${name…} only -, +, #, %, /, ^, a comma and :offset:length are taken, with plain text after them"
            )
        self.at = operation.end() + 1
        return Parameter(parameter, quoted, operation.group())

    def _arithmetic(self) -> tuple[str, ...]:
        tokens: list[str] = []
        depth = 0
        while True:
            self._skip_spaces()
            if depth == 0 and self.take("))"):
                return tuple(tokens)
            found = _ARITHMETIC.match(self.text, self.at)
            token = found.group() if found else ""
            depth += (token == "(") - (token == ")")
            if not found or depth < 0:
                raise self.error("in $((…)) only numbers, names and operators are taken, and no assignment")
            self.at = found.end()
            tokens.append(token.strip("${}"))

    def _skip_spaces(self) -> None:
        found = _SPACES.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def _ansi_quoted(self) -> str:
        """From the opening ' on."""
        begin = self.at
        self.at += 1
        text: list[str] = []
        while not self.take("'"):
            if self.peek() != "\\":
                if not self.peek():
                    self.at = begin
                    raise self.error("this ' is never closed")
                text.append(self.peek())
                self.at += 1
                continue
            escape = _ANSI.match(self.text, self.at)
            if not escape:
                raise self.error("this escape is not known in $'…'")
            text.append(self._unescaped(escape))
            self.at = escape.end()
        return "".join(text)

    def _unescaped(self, escape: re.Match[str]) -> str:
        letter, octal, hexadecimal, short, long, control = escape.groups()
        if letter:
            return _ANSI_LETTERS.get(letter, letter)
        if control:
            raise self.error("\\c is not taken in $'…'; write \\x")
        number = int(octal, 8) if octal else int(hexadecimal or short or long, 16)
        is_character = bool(short or long)
        if number == 0 or (not is_character and number >= _ASCII_END):
            raise self.error(
                "$'…' may not make a NUL or a byte that is no character; write \\u and its code point"
            )
        if number > 0x10FFFF or 0xD800 <= number <= 0xDFFF:  # noqa: PLR2004 - the limits of Unicode
            raise self.error("this is no character of Unicode")
        return chr(number)
