"""Reading commands: lists, pipelines, blocks, loops and redirections; what this grammar does not know is refused."""

from __future__ import annotations

import re
from typing import Final

from services.tools.policy.shell.syntax import (
    AndOr,
    Assignment,
    Block,
    Case,
    Command,
    For,
    HereDocument,
    If,
    Literal,
    Loop,
    Pipeline,
    Redirection,
    Script,
    Simple,
    Word,
)
from services.tools.policy.shell.words import MAX_DEPTH, WordReader, require_plain_text

_ASSIGNMENT: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\+?)=")
_DESCRIPTOR: Final = re.compile(r"([0-9]+)(?=[<>])")
_OPERATORS: Final = ("&>>", "<<<", "<<-", "&>", "<<", "<&", ">&", ">>", ">|", "<>", "<", ">")
_ENDS: Final = frozenset({"then", "elif", "else", "fi", "do", "done", "esac", "}"})
_NOT_TAKEN: Final = {
    "function": "functions are not taken; write the commands out",
    "select": "select is not taken; there is nobody to ask",
    "coproc": "coproc is not taken; use a pipe",
    "time": "time is not taken; the result says how long the run took",
    "[[": "[[ … ]] is not taken; use [ … ]",
}


def read_script(text: str) -> Script:
    """The command line's structure; raises ShellSyntaxError."""
    require_plain_text(text)
    return _Reader(text).read_all()


class _Reader(WordReader):
    def __init__(self, text: str, depth: int = 0) -> None:
        super().__init__(text, depth)
        self._waiting: list[HereDocument] = []

    def read_all(self) -> Script:
        script = self._script()
        if self.at < len(self.text):
            raise self.error(f"{self.peek()!r} is not expected here")
        if self._waiting:
            raise self.error(f"the here-document {self._waiting[0].delimiter!r} is never closed")
        return script

    def read_until_parenthesis(self) -> Script:
        outer, self._waiting = self._waiting, []
        script = self._nested()
        if self._waiting:
            raise self.error("a here-document must end before the ) that it stands in")
        self._waiting = outer
        if not self.take(")"):
            raise self.error("a ) is missing")
        return script

    def read_other(self, text: str) -> Script:
        if self.depth >= MAX_DEPTH:
            raise self._too_deep()
        return _Reader(text, self.depth + 1).read_all()

    def _nested(self) -> Script:
        if self.depth >= MAX_DEPTH:
            raise self._too_deep()
        self.depth += 1
        script = self._script()
        self.depth -= 1
        return script

    def _too_deep(self) -> Exception:
        return self.error(f"is nested more than {MAX_DEPTH} deep; split it into several calls")

    def _script(self) -> Script:
        lists: list[AndOr] = []
        while True:
            self._skip_lines()
            if not self.peek() or self.peek() == ")" or self.peek(2) == ";;" or self.read_keyword() in _ENDS:
                return Script(tuple(lists))
            lists.append(self._and_or())
            self.skip_blanks()
            if self.peek() == "&" and self.peek(2) != "&&":
                raise self.error(
                    "& is not taken: nothing may go on behind the call; run the commands in order"
                )
            if self.peek(2) != ";;" and not self.take(";") and self.peek() not in {"\n", ")", ""}:
                raise self.error(f"{self.peek()!r} is not expected here")

    def _skip_lines(self) -> None:
        self.skip_blanks()
        while self.take("\n"):
            self._read_here_documents()
            self.skip_blanks()

    def _and_or(self) -> AndOr:
        pipelines = [self._pipeline()]
        operators: list[str] = []
        while True:
            self.skip_blanks()
            operator = self.peek(2)
            if operator not in {"&&", "||"}:
                return AndOr(tuple(pipelines), tuple(operators))
            self.at += 2
            operators.append(operator)
            self._skip_lines()
            pipelines.append(self._pipeline())

    def _pipeline(self) -> Pipeline:
        self.skip_blanks()
        negated = False
        while self.read_keyword() == "!":
            negated = not negated
            self.at += 1
            self.skip_blanks()
        commands = [self._command()]
        while True:
            self.skip_blanks()
            if self.peek() != "|" or self.peek(2) == "||":
                return Pipeline(tuple(commands), negated)
            self.at += 1
            if self.take("&"):
                commands[-1] = _with_errors(commands[-1])
            self._skip_lines()
            commands.append(self._command())

    def _command(self) -> Command:
        if self.peek(2) == "((":
            raise self.error("(( … )) is not taken; use [ … ], or put a space between the parentheses")
        if self.take("("):
            script = self.read_until_parenthesis()
            if not script.lists:
                raise self.error("a command is missing between the parentheses")
            return Block(script, is_subshell=True, redirections=self._redirections())
        keyword = self.read_keyword()
        if keyword in _NOT_TAKEN:
            raise self.error(_NOT_TAKEN[keyword])
        if keyword in _ENDS or keyword == "in":
            raise self.error(f"{keyword!r} is not expected here")
        if keyword in {"if", "while", "until", "for", "case", "{"}:
            self.at += len(keyword)
            return self._compound(keyword)
        return self._simple()

    def _compound(self, keyword: str) -> Command:
        if keyword == "{":
            script = self._body("}")
            return Block(script, is_subshell=False, redirections=self._redirections())
        if keyword == "if":
            return self._if()
        if keyword == "for":
            return self._for()
        if keyword == "case":
            return self._case()
        condition = self._body("do")
        body = self._body("done")
        return Loop(keyword, condition, body, self._redirections())

    def _body(self, end: str) -> Script:
        """One command or more up to a keyword, which is passed."""
        script = self._nested()
        if not script.lists:
            raise self.error("a command is missing")
        self._expect(end)
        return script

    def _expect(self, keyword: str) -> None:
        self._skip_lines()
        if self.read_keyword() != keyword:
            raise self.error(f"{keyword!r} is missing")
        self.at += len(keyword)

    def _if(self) -> If:
        branches = []
        while True:
            condition = self._body("then")
            body = self._nested()
            if not body.lists:
                raise self.error("a command is missing after then")
            branches.append((condition, body))
            if self.read_keyword() != "elif":
                break
            self.at += len("elif")
        otherwise = None
        if self.read_keyword() == "else":
            self.at += len("else")
            otherwise = self._body("fi")
        else:
            self._expect("fi")
        return If(tuple(branches), otherwise, self._redirections())

    def _for(self) -> For:
        self.skip_blanks()
        if self.peek() == "(":
            raise self.error("for ((…)) is not taken; use: for i in {1..9}")
        name = self.read_keyword()
        if not name.isascii() or not name.isidentifier():
            raise self.error("a plain name is missing after for")
        self.at += len(name)
        self._skip_lines()
        if self.read_keyword() != "in":
            raise self.error("'in' is missing: a command line has no arguments of its own to loop over")
        self.at += len("in")
        words = self._words()
        self.skip_blanks()
        if not self.take(";") and self.peek() != "\n":
            raise self.error("a ; is missing before do")
        self._expect("do")
        body = self._body("done")
        return For(name, words, body, self._redirections())

    def _words(self) -> tuple[Word, ...]:
        words: list[Word] = []
        while True:
            self.skip_blanks()
            found = self.read_words()
            if not found:
                return tuple(words)
            words += found

    def _case(self) -> Case:
        self.skip_blanks()
        word = self.read_word()
        if word is None:
            raise self.error("a word is missing after case")
        self._expect("in")
        arms = []
        while True:
            self._skip_lines()
            if self.read_keyword() == "esac":
                break
            patterns = self._patterns()
            body = self._nested()
            arms.append((patterns, body))
            self._skip_lines()
            if self.peek(3) == ";;&" or self.peek(2) == ";&":
                raise self.error("only ;; is taken at the end of an arm of case")
            if not self.take(";;") and self.read_keyword() != "esac":
                raise self.error("';;' is missing")
        self._expect("esac")
        return Case(word, tuple(arms), self._redirections())

    def _patterns(self) -> tuple[Word, ...]:
        self.take("(")
        patterns = []
        while True:
            self.skip_blanks()
            pattern = self.read_word()
            if pattern is None:
                raise self.error("a pattern is missing in case")
            patterns.append(pattern)
            self.skip_blanks()
            if self.take(")"):
                return tuple(patterns)
            if not self.take("|"):
                raise self.error("a ) is missing after the pattern of case")

    def _simple(self) -> Simple:
        assignments: list[Assignment] = []
        words: list[Word] = []
        redirections: list[Redirection] = []
        while True:
            self.skip_blanks()
            redirection = self._redirection()
            if redirection is not None:
                redirections.append(redirection)
                continue
            assignment = None if words else self._assignment()
            if assignment is not None:
                assignments.append(assignment)
                continue
            found = self.read_words()
            if not found:
                break
            words += found
        if self.peek() == "(":
            raise self.error("( is not expected here: functions, arrays and extended patterns are not taken")
        if not (assignments or words or redirections):
            raise self.error(
                f"a command is missing before {self.peek()!r}" if self.peek() else "a command is missing"
            )
        return Simple(tuple(assignments), tuple(words), tuple(redirections))

    def _assignment(self) -> Assignment | None:
        found = _ASSIGNMENT.match(self.text, self.at)
        if not found:
            return None
        self.at = found.end()
        if self.peek() == "(":
            raise self.error("arrays are not taken; use plain variables or a for loop")
        value = self.read_word() or Word((Literal(""),))
        return Assignment(found[1], value, appends=bool(found[2]))

    def _redirections(self) -> tuple[Redirection, ...]:
        """Those after a compound command."""
        found: list[Redirection] = []
        while True:
            self.skip_blanks()
            redirection = self._redirection()
            if redirection is None:
                return tuple(found)
            found.append(redirection)

    def _redirection(self) -> Redirection | None:
        begin = self.at
        number = _DESCRIPTOR.match(self.text, self.at)
        if number:
            self.at = number.end()
        operator = next((each for each in _OPERATORS if self.text.startswith(each, self.at)), None)
        if operator is None or (self.peek(2) in {"<(", ">("} and not number):
            self.at = begin
            return None
        self.at += len(operator)
        self.skip_blanks()
        if number and len(number[1]) > 1:
            raise self.error("only descriptors 0 to 9 are taken")
        descriptor = int(number[1]) if number else None
        if operator in {"<<", "<<-"}:
            return Redirection(operator, self._here_document(strips=operator == "<<-"), descriptor)
        word = self.read_word()
        if word is None:
            raise self.error(f"a target is missing after {operator}")
        return Redirection(operator, word, descriptor)

    def _here_document(self, *, strips: bool) -> HereDocument:
        begin = self.at
        word = self.read_word()
        delimiter = None if word is None else word.known
        if not delimiter or "\n" in delimiter:
            raise self.error("a here-document needs a plain word as its end")
        is_quoted = any(char in self.text[begin : self.at] for char in "\\'\"")
        document = HereDocument(delimiter, expands=not is_quoted, strips_tabs=strips)
        self._waiting.append(document)
        return document

    def _read_here_documents(self) -> None:
        waiting, self._waiting = self._waiting, []
        for document in waiting:
            text = self._here_text(document)
            if document.expands:
                inner = _Reader(text, self.depth + 1)
                document.content = inner.here_content()
            else:
                document.content = Word((Literal(text),))

    def here_content(self) -> Word:
        """All of the text as what an unquoted here-document becomes."""
        if self.depth > MAX_DEPTH:
            raise self._too_deep()
        return self.read_quoted_rest()

    def _here_text(self, document: HereDocument) -> str:
        lines: list[str] = []
        while self.at < len(self.text):
            end = self.text.find("\n", self.at)
            end = len(self.text) if end < 0 else end
            line = self.text[self.at : end]
            self.at = min(end + 1, len(self.text))
            if document.strips_tabs:
                line = line.lstrip("\t")
            if line == document.delimiter:
                return "".join(f"{each}\n" for each in lines)
            if document.expands and _is_continued(line):
                raise self.error("a here-document's line may not end in a backslash; quote its end word")
            lines.append(line)
        raise self.error(f"the here-document {document.delimiter!r} is never closed")


def _is_continued(line: str) -> bool:
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def _with_errors(command: Command) -> Command:
    """The same with its errors where its output goes: what `|&` means."""
    joined = Redirection(">&", Word((Literal("1"),)), 2)
    redirections = (*command.redirections, joined)
    if isinstance(command, Simple):
        return Simple(command.assignments, command.words, redirections)
    return Block(Script((AndOr((Pipeline((command,)),)),)), is_subshell=False, redirections=(joined,))
