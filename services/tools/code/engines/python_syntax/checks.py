"""Checks that are easily passed, files that others can foretell, steps that others can come between."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from services.tools.code.engines.python_syntax.backtracking import is_exponential
from services.tools.code.model import Hit
from services.tools.code.python.facts import Call
from services.tools.code.python.subject import Check, Subject
from services.tools.code.python.values import ANYONE, OUTSIDE, skeleton

_REGEX: Final = re.compile(
    r"^(?:re|regex)\.(?:compile|search|match|fullmatch|findall|finditer|sub|subn|split)$"
)
_USES: Final = frozenset(
    {
        "open",
        "os.remove",
        "os.unlink",
        "os.rename",
        "shutil.copy",
        "shutil.move",
        "os.mkdir",
        "os.makedirs",
        "os.rmdir",
        "io.open",
        "os.open",
        "os.stat",
        "os.chmod",
        "os.replace",
        "shutil.copyfile",
        "shutil.rmtree",
        "os.symlink",
    }
)
_TESTS: Final = frozenset(
    {
        "os.path.exists",
        "os.path.isfile",
        "os.access",
        "os.path.islink",
        "os.path.lexists",
        "os.path.isdir",
        "os.stat",
        "os.lstat",
    }
)
_HOST_TEXT: Final = re.compile(
    r"^(?:https?://)?(?:[\w-]+\.)+(?:com|org|net|io|edu|gov|co|dev|app|de|uk|fr|eu|local|example|internal|test)(?:[:/].*)?$",
    re.IGNORECASE,
)


def patterns(subject: Subject) -> Iterator[Hit]:
    """Regular expressions that take forever, or check only a part."""
    for call in subject.facts.calls:
        pattern = call.arg(0, "pattern").string
        if not (_REGEX.match(call.name) and pattern):
            continue
        if is_exponential(pattern):
            yield subject.hit("regex_dos", call.node)
        if call.method in {"match", "search"} and call.arg(1, "string").from_(ANYONE):
            yield from _partial(subject, call, pattern)


def _partial(subject: Subject, call: Call, pattern: str) -> Iterator[Hit]:
    """A match that decides over data from outside must cover all of it."""
    decides = isinstance(
        subject.tree.parents.get(call.node),
        ast.If | ast.UnaryOp | ast.BoolOp | ast.IfExp | ast.Return | ast.Compare | ast.Call,
    )
    host = re.search(r"https?|(?:com|org|net|io)\b|www|domain|example", pattern)
    open_end = not re.search(r"(?:\$|\\Z|\\b/?)\)?$", pattern) or (
        call.method == "search" and not pattern.startswith(("^", "\\A"))
    )
    loose_dot = bool(
        host and re.search(r"(?<!\\)\.(?:com|org|net|io|example)\b|\w(?<!\\)\.(?:com|org|net|io)\b", pattern)
    )
    address = re.search(r"\\d\{1,3\}|0x|ip", pattern + call.scope.name, re.IGNORECASE)
    checking = re.search(r"valid|check|is_|verify|allow|safe", call.scope.name, re.IGNORECASE)
    if decides and (
        (host and (open_end or loose_dot))
        or (
            open_end and (address or checking) and pattern.startswith("^") is False and call.method == "match"
        )
        or (open_end and checking and call.arg(1).from_(ANYONE))
    ):
        yield subject.hit("unanchored_regex", call.node)


def addresses(subject: Subject) -> Iterator[Hit]:
    """Hosts that are looked for anywhere in an address."""
    for compare in subject.facts.compares:
        if (
            isinstance(compare.operator, ast.In | ast.NotIn)
            and _HOST_TEXT.match(compare.left.string)
            and compare.right.from_(ANYONE)
            and not compare.right.items
        ):
            yield subject.hit("url_substring", compare.node)
    for call in subject.facts.calls:
        if call.method in {"startswith", "endswith"} and call.receiver.from_(ANYONE):
            text = call.arg(0).string
            start = call.method == "startswith" and re.fullmatch(r"https?://[\w.-]+\.[a-z]{2,}", text)
            end = call.method == "endswith" and re.fullmatch(
                r"[\w-]+(?:\.[\w-]+)*\.(?:com|org|net|io|edu|gov)", text
            )
            if start or end:
                yield subject.hit("url_substring", call.node)
        elif call.method == "find" and _HOST_TEXT.match(call.arg(0).string) and call.receiver.from_(ANYONE):
            yield subject.hit("url_substring", call.node)
    for node in subject.tree.all(ast.GeneratorExp):
        text = subject.tree.text(node)
        if re.search(
            r"\b(\w+) in \w*(?:url|uri|link|host|target|next|redirect)\w* for \1 in", text, re.IGNORECASE
        ) and re.search(r"\bany\(", subject.tree.text(subject.tree.parents.get(node, node))):
            yield subject.hit("url_substring", node)


def filters(subject: Subject) -> Iterator[Hit]:
    """Filters that take out some bad texts and leave others."""
    for call in subject.facts.calls:
        first = call.arg(0).string
        if call.method == "replace" and call.receiver.from_(ANYONE):
            if re.fullmatch(r"(?:\.\./?|\.\.\\|/\.\.)", first) and call.arg(1).const == "":
                yield subject.hit("weak_path_filter", call.node)
            elif (
                re.search(r"</?script|javascript:|onerror|<img", first, re.IGNORECASE)
                or (re.fullmatch(r"<|>", first) and call.arg(1).const == "")
                or (
                    first in {"'", '"'}
                    and call.arg(1).string in {"''", "\\'", '\\"', '""'}
                    and re.search(r"\bselect\b.*\bfrom\b|insert into|sql", subject.source.text, re.IGNORECASE)
                )
            ):
                yield subject.hit("weak_filter", call.node)
        elif (
            re.match(r"re\.(?:sub|search|match|findall|compile)$", call.name)
            and re.search(
                r"<\s*/?\s*\(?\??:?\s*(?:script|iframe|style)|<\[\^?<?>\]\*|<\.\*\??>", first, re.IGNORECASE
            )
            and (call.method == "sub" or "script" in first.lower())
        ):
            yield subject.hit("weak_filter", call.node)
    for compare in subject.facts.compares:
        if (
            isinstance(compare.operator, ast.In | ast.NotIn)
            and re.fullmatch(
                r"<script>?|</script>|javascript:|--|;|' or '|drop table", compare.left.string, re.IGNORECASE
            )
            and compare.right.from_(OUTSIDE)
        ):
            yield subject.hit("weak_filter", compare.node)


def temporary(subject: Subject) -> Iterator[Hit]:
    """Temporary files with a name or a place that others know."""
    for call in subject.facts.calls:
        if call.name in {"tempfile.mktemp", "os.tempnam", "os.tmpnam", "os.tmpfile"}:
            yield subject.hit("insecure_temporary", call.node)
        elif (
            call.name
            in {"open", "io.open", "os.open", "codecs.open", "pathlib.Path().open", "os.mkdir", "os.makedirs"}
            and call.args
        ):
            path = skeleton(call.arg(0))
            mode = call.arg(1, "mode").string
            in_temp = re.match(r"/(?:var/)?tmp/|/dev/shm/", path) or (
                call.arg(0).built
                and path.startswith("\x00/")
                and any(c.name == "tempfile.gettempdir" for c in subject.facts.calls)
            )
            writes = (bool(re.search(r"[wax+]", mode)) and "x" not in mode) or (
                call.name in {"os.open", "os.mkdir", "os.makedirs"}
                and not re.search(r"O_EXCL|S_IRWXU|0o?700|448", subject.tree.text(call.node))
            )
            if in_temp and writes:
                yield subject.hit("insecure_temporary", call.node)
    for store in subject.facts.stores:
        if (
            isinstance(store.target, ast.Attribute)
            and store.target.attr == "tempdir"
            and "tempfile" in store.base.origin
        ):
            yield subject.hit("insecure_temporary", store.node)


def races(subject: Subject) -> Iterator[Hit]:
    """Checks of a file before its use, and shared numbers that threads change."""
    by_scope: dict[object, list[Call]] = {}
    for call in subject.facts.calls:
        by_scope.setdefault(call.scope.node, []).append(call)
    for calls in by_scope.values():
        tests = [
            call
            for call in calls
            if call.name in _TESTS or (call.method in {"exists", "is_file"} and "pathlib" in call.name)
        ]
        for use in calls:
            if use.name not in _USES and not (
                use.method in {"unlink", "open", "write_text", "read_text"} and "pathlib" in use.name
            ):
                continue
            path = (
                subject.tree.text(use.node.args[0])
                if use.node.args
                else subject.tree.text(use.node.func).rpartition(".")[0]
            )
            for test in tests:
                tested = (
                    subject.tree.text(test.node.args[0])
                    if test.node.args
                    else subject.tree.text(test.node.func).rpartition(".")[0]
                )
                if (test.name == "os.access" and tested == path and _guarded(subject, test, use)) or (
                    tested == path
                    and test.node.lineno < use.node.lineno
                    and _guarded(subject, test, use)
                    and not _serves(use)
                    and "exist_ok" not in use.keywords
                ):
                    yield subject.hit("race_condition", test.node)
    yield from _threads(subject)


def _guarded(subject: Subject, test: Call, use: Call) -> bool:
    """The use depends on the test, and nobody catches what happens when it was wrong."""
    condition = subject.tree.enclosing(test.node, ast.If)
    if condition is None or not any(part is test.node for part in ast.walk(condition.test)):
        return False
    handled = subject.tree.enclosing(use.node, ast.Try)
    inside = any(
        part is use.node for statement in condition.body + condition.orelse for part in ast.walk(statement)
    )
    caught = handled is not None and any(
        re.search(
            r"FileNotFound|FileExists|OSError|IOError|Permission",
            subject.tree.text(h.type) if h.type else "OSError",
        )
        for h in handled.handlers
    )
    return inside and not caught and use.name not in {"os.makedirs", "os.mkdir"}


def _serves(use: Call) -> bool:
    """Reading one's own file after a look at it is no weakness worth a word."""
    if use.name in {"open", "io.open"}:
        return not re.search(r"[wax+]", use.arg(1, "mode").string)
    return use.name in {"os.remove", "os.unlink", "os.rmdir", "shutil.rmtree", "os.stat"} or use.method in {
        "read_text",
        "open",
        "unlink",
    }


def _threads(subject: Subject) -> Iterator[Hit]:
    """A global or an attribute that is read and written again, in code that threads run, with no lock in the file."""
    text = subject.source.text
    if re.search(r"Lock\(|RLock|Semaphore|Queue\(|Condition\(|fcntl|flock|Value\(", text):
        return
    run_by_threads = _threaded(subject)
    for function in subject.tree.functions():
        if function.name not in run_by_threads:
            continue
        shared = {name for part in ast.walk(function) if isinstance(part, ast.Global) for name in part.names}
        for part in ast.walk(function):
            if (isinstance(part, ast.AugAssign) and _is_shared(part.target, shared, subject)) or (
                isinstance(part, ast.Assign)
                and isinstance(part.targets[0], ast.Name)
                and part.targets[0].id in shared
                and not isinstance(part.value, ast.Constant)
            ):
                yield subject.hit("missing_lock", part)


def _threaded(subject: Subject) -> set[str]:
    """Give the names of functions that threads run, and of what these call in this file."""
    names: set[str] = set()
    for call in subject.facts.calls:
        if call.method in {
            "Thread",
            "Process",
            "Timer",
            "submit",
            "map",
            "start_new_thread",
            "apply_async",
        } and re.search(r"thread|process|pool|executor", call.name, re.IGNORECASE):
            for value in (
                *call.args[:2],
                *(call.keywords[key] for key in ("target", "function") if key in call.keywords),
            ):
                names.add(value.origin.rpartition(".")[2])
    for node in subject.tree.all(ast.ClassDef):
        if any(subject.tree.text(base).endswith("Thread") for base in node.bases):
            names.add("run")
    functions = {node.name: node for node in subject.tree.all(ast.FunctionDef)}
    waiting = [name for name in names if name in functions]
    while waiting:
        for part in ast.walk(functions[waiting.pop()]):
            if isinstance(part, ast.Call):
                called = (
                    part.func.id
                    if isinstance(part.func, ast.Name)
                    else part.func.attr
                    if isinstance(part.func, ast.Attribute)
                    else ""
                )
                if called in functions and called not in names:
                    names.add(called)
                    waiting.append(called)
    return names


def _is_shared(target: ast.expr, shared: set[str], subject: Subject) -> bool:
    if isinstance(target, ast.Name):
        return target.id in shared
    if isinstance(target, ast.Attribute):
        return isinstance(target.value, ast.Name)
    return (
        isinstance(target, ast.Subscript)
        and isinstance(target.value, ast.Name)
        and target.value.id in _module_names(subject)
    )


def _module_names(subject: Subject) -> set[str]:
    return {
        target.id
        for node in subject.tree.module.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


CHECKS: Final[tuple[Check, ...]] = (patterns, addresses, filters, temporary, races)
