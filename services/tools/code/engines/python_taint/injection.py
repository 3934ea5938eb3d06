"""Text from outside that becomes part of a query, a command or code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from services.tools.code.model import Confidence, Hit
from services.tools.code.python.facts import Call
from services.tools.code.python.subject import Check, Subject
from services.tools.code.python.values import ANYONE, HOLE, OUTSIDE, REMOTE, Label, Taint, Value, skeleton

_SQL: Final = re.compile(
    r"\b(?:select\b.+\bfrom|insert\s+into|update\b.+\bset|delete\s+from|create\s+(?:table|database|user)|drop\s+(?:table|database)|alter\s+table"
    r"|exec(?:ute)?\s|union\s+select|replace\s+into|truncate\s+table|grant\s|where\s|order\s+by|call\s)",
    re.IGNORECASE | re.DOTALL,
)
_SQL_METHODS: Final = frozenset(
    [
        "execute",
        "executemany",
        "executescript",
        "raw",
        "query",
        "run_query",
        "read_sql",
        "read_sql_query",
        "execute_query",
        "executeQuery",
        "mogrify",
        "fetch",
        "fetchrow",
        "fetchval",
        "exec_driver_sql",
        "run",
        "extra",
    ]
)
_SQL_ONLY: Final = frozenset(
    {
        "execute",
        "executemany",
        "executescript",
        "raw",
        "exec_driver_sql",
        "read_sql",
        "read_sql_query",
        "mogrify",
    }
)
_SHELLS: Final = frozenset(
    {
        "os.system",
        "os.popen",
        "os.popen2",
        "os.popen3",
        "os.popen4",
        "subprocess.getoutput",
        "subprocess.getstatusoutput",
        "popen2.popen2",
        "popen2.popen3",
        "asyncio.create_subprocess_shell",
    }
)
_STARTERS: Final = frozenset(
    {
        "subprocess.run",
        "subprocess.call",
        "subprocess.Popen",
        "subprocess.check_call",
        "subprocess.check_output",
        "asyncio.create_subprocess_exec",
        "pexpect.spawn",
        "pexpect.run",
        "pty.spawn",
    }
)
_EXECS: Final = re.compile(r"^os\.(?:exec[lv]p?e?|spawn[lv]p?e?|posix_spawnp?|startfile)$")
_RUNNERS: Final = frozenset(
    {
        "eval",
        "exec",
        "compile",
        "execfile",
        "builtins.eval",
        "builtins.exec",
        "code.InteractiveInterpreter().runsource",
        "code.interact",
        "pandas.eval",
        "numexpr.evaluate",
        "timeit.timeit",
    }
)
_DESERIALISERS: Final = re.compile(
    r"^(?:pickle|marshal|shelve|jsonpickle|joblib|torch|numpy|pandas)\.(?:loads?|open|decode|read_pickle|Unpickler)$|^yaml\.(?:unsafe_load|full_load|load)(?:_all)?$|^pickle\.Unpickler\(\)\.load$|^yaml\.YAML\(\)\.load$"
)
_SAFE_LOADER: Final = re.compile(r"Safe|Base")
_REGEX: Final = frozenset(
    {
        "re.compile",
        "re.search",
        "re.match",
        "re.fullmatch",
        "re.findall",
        "re.finditer",
        "re.sub",
        "re.subn",
        "re.split",
    }
)
_XPATH_METHODS: Final = frozenset({"xpath", "find", "findall", "findtext", "iterfind"})
_XPATH: Final = re.compile(r"//|^\.?/|\[@|\[\w+\s*=|\btext\(\)")
_LDAP_METHODS: Final = frozenset(
    {
        "search",
        "search_s",
        "search_st",
        "search_ext",
        "search_ext_s",
        "simple_bind_s",
        "bind_s",
        "simple_bind",
        "modify_s",
        "add_s",
        "delete_s",
        "paged_search",
    }
)
_LDAP: Final = re.compile(r"\(\s*[&|!]?\s*\(?\s*[\w.;-]+\s*[~<>]?=|\b(?:cn|uid|ou|dc)=", re.IGNORECASE)
_NOSQL_METHODS: Final = frozenset(
    [
        "find",
        "find_one",
        "find_one_and_update",
        "find_one_and_delete",
        "update_one",
        "update_many",
        "delete_one",
        "delete_many",
        "count_documents",
        "aggregate",
        "remove",
        "update",
        "find_and_modify",
        "distinct",
    ]
)


def sql(subject: Subject) -> Iterator[Hit]:
    """Queries put together from text."""
    for call in subject.facts.calls:
        if call.method not in _SQL_METHODS and call.name not in {
            "sqlalchemy.text",
            "sqlalchemy.sql.text",
            "django.db.models.expressions.RawSQL",
        }:
            continue
        query = (
            call.arg(0, "sql")
            if "sql" in call.keywords
            else call.arg(0, "statement")
            if call.method != "extra"
            else call.arg(0, "where")
        )
        query = next((call.keywords[key] for key in ("query", "operation") if key in call.keywords), query)
        taints = query.from_(ANYONE, Label.SQL)
        text = skeleton(query)
        if (
            not query.taints
            and query.built
            and call.method in _SQL_ONLY
            and _SQL.search(text.replace(HOLE, " x "))
            and _has_unknown(subject, text)
        ):
            yield subject.hit("sql_injection", call.node, confidence=Confidence.LOW)
            continue
        if not taints or (HOLE not in text and query.text is not None):
            continue
        remote = query.from_(OUTSIDE, Label.SQL)
        if query.built and _SQL.search(text.replace(HOLE, " x ")):
            yield subject.hit("sql_injection", call.node, remote or taints)
        elif remote and not query.built and call.method in _SQL_ONLY and _is_database(call):
            yield subject.hit("sql_injection", call.node, remote)


def _has_unknown(subject: Subject, text: str) -> bool:
    """Whether a value of unknown origin, no constant and no placeholder, was put into a text."""
    for _, value, _scope in subject.facts.texts:
        if value.text == text:
            for item in value.items:
                name = item.origin.rpartition(".")[2]
                unknown = not item.known and (item.text is None or (HOLE in item.text and item.built))
                if (
                    unknown
                    and name
                    and not name.isupper()
                    and not name.endswith(("()", "[]"))
                    and not re.search(r"table|column|placeholder|field|schema", name, re.IGNORECASE)
                ):
                    return True
    return False


def _is_database(call: Call) -> bool:
    return bool(
        re.search(r"cursor|conn|connect|\bdb\b|session|engine|\bcur\b|objects|sql", call.name, re.IGNORECASE)
    )


def commands(subject: Subject) -> Iterator[Hit]:
    """Commands put together from text, and programs chosen from outside."""
    for call in subject.facts.calls:
        if call.name in _SHELLS:
            yield from _shell(subject, call, call.arg(0, "cmd"))
        elif call.name in _STARTERS:
            command = call.arg(0, "args")
            if call.arg(-1, "shell").const is True or _is_shell(command):
                yield from _shell(subject, call, command)
            else:
                yield from _program(subject, call, command)
        elif _EXECS.match(call.name):
            for value in call.args:
                taints = value.from_(OUTSIDE, Label.SHELL)
                if taints:
                    yield subject.hit("argument_injection", call.node, taints)
                    break
        elif call.method in {"exec_command", "send_command", "sudo", "invoke_shell"} or call.name in {
            "fabric.api.run",
            "fabric.api.sudo",
            "fabric.api.local",
            "invoke.run",
        }:
            taints = call.arg(0, "command").from_(OUTSIDE, Label.SHELL)
            if taints:
                yield subject.hit("command_injection", call.node, taints)


def _shell(subject: Subject, call: Call, command: Value) -> Iterator[Hit]:
    taints = command.from_(ANYONE, Label.SHELL)
    if taints:
        yield subject.hit("command_injection", call.node, taints)


def _is_shell(command: Value) -> bool:
    """`["sh", "-c", text]` is a shell too."""
    return (
        len(command.items) >= 3
        and bool(re.search(r"(?:^|/)(?:ba|z|da|k)?sh$|cmd(?:\.exe)?$|powershell", command.items[0].string))
        and command.items[1].string in {"-c", "/c", "-Command", "-lc"}
    )


def _program(subject: Subject, call: Call, command: Value) -> Iterator[Hit]:
    first = command.items[0] if command.items else command
    taints = first.from_(OUTSIDE, Label.SHELL)
    if not taints and not command.items:
        taints = tuple(taint for taint in command.from_(OUTSIDE, Label.SHELL) if command.built)
    if not taints and command.items:
        # A value that may begin with "-" is an option; after "--" it is not.
        plain = [item.const for item in command.items]
        taints = tuple(
            taint
            for item in command.items[1:]
            for taint in item.from_(REMOTE, Label.SHELL)
            if "--" not in plain and not item.built
        )
        taints = (
            taints
            if command.items[0].string.rsplit("/", 1)[-1]
            in {
                "find",
                "tar",
                "git",
                "ssh",
                "curl",
                "wget",
                "sh",
                "bash",
                "python",
                "python3",
                "rsync",
                "sed",
                "awk",
                "env",
                "xargs",
                "sudo",
            }
            else ()
        )
    if taints:
        yield subject.hit("argument_injection", call.node, taints)


def code(subject: Subject) -> Iterator[Hit]:
    """Text that is run as Python."""
    for call in subject.facts.calls:
        if call.name in _RUNNERS:
            taints = call.arg(0).from_(ANYONE, Label.CODE)
            if taints:
                yield subject.hit("code_injection", call.node, taints)
        elif call.name in {"exec", "eval"} and call.args and call.args[0].origin.startswith("requests."):
            yield subject.hit("code_download", call.node)


def downloads(subject: Subject) -> Iterator[Hit]:
    """Downloaded text or files that are run at once."""
    fetched = [
        c
        for c in subject.facts.calls
        if c.name
        in {
            "urllib.request.urlretrieve",
            "requests.get",
            "urllib.request.urlopen",
            "httpx.get",
            "wget.download",
        }
    ]
    if not fetched:
        return
    for call in subject.facts.calls:
        if call.name in _RUNNERS and any(taint.kind.name == "NETWORK" for taint in call.arg(0).taints):
            yield subject.hit("code_download", call.node, call.arg(0).taints)
    text = subject.source.text
    if re.search(r"hashlib|hmac|verify|checksum|signature|gpg|sha256", text, re.IGNORECASE):
        return
    starts = [
        c
        for c in subject.facts.calls
        if c.name in _STARTERS | _SHELLS
        or c.name in {"importlib.import_module", "runpy.run_path", "exec", "os.startfile", "ctypes.CDLL"}
    ]
    writes = [c for c in fetched if c.name in {"urllib.request.urlretrieve", "wget.download"}] or (
        fetched if any(c.method in {"write", "write_bytes"} for c in subject.facts.calls) else []
    )
    for call in writes:
        if (
            starts
            or any(c.method in {"extractall", "unpack_archive", "chmod"} for c in subject.facts.calls)
            or re.search(
                r"\.(?:py|sh|exe|whl|tar\.gz|zip|deb|msi|bin|so|dll)\b",
                "".join(skeleton(value) for value in call.args),
            )
        ):
            yield subject.hit("code_download", call.node)


def deserialisation(subject: Subject) -> Iterator[Hit]:
    """Data from outside that becomes objects."""
    for call in subject.facts.calls:
        if not _DESERIALISERS.match(call.name) and not (
            call.method == "load" and call.receiver.origin.startswith("pickle.Unpickler")
        ):
            continue
        if call.name.startswith("yaml."):
            loader = _loader(subject, call)
            if call.name.startswith("yaml.load") and _SAFE_LOADER.search(loader):
                continue
            if "YAML()" in call.name and not any(
                c.name == "yaml.YAML" and c.arg(0, "typ").string == "unsafe" for c in subject.facts.calls
            ):
                continue
            yield subject.hit("unsafe_deserialisation", call.node, call.arg(0).from_(ANYONE))
            continue
        if call.name.startswith(("torch.", "numpy.", "pandas.")) and (
            call.arg(-1, "weights_only").const is True
            or (call.name.startswith("numpy") and call.arg(-1, "allow_pickle").const is not True)
        ):
            continue
        taints = call.arg(0).from_(ANYONE) or call.receiver.from_(ANYONE)
        if taints and (
            call.arg(0).from_(OUTSIDE) or call.name.startswith(("pickle", "marshal", "jsonpickle", "shelve"))
        ):
            yield subject.hit("unsafe_deserialisation", call.node, taints)


def _loader(subject: Subject, call: Call) -> str:
    """Give all that the file says of the loader: its name, the text that makes it, and the bases of a class of its own."""
    value = call.arg(1, "Loader")
    said = [value.origin, subject.tree.text(value.node) if value.node is not None else ""]
    for node in subject.tree.all(ast.ClassDef):
        if node.name == value.origin:
            said.extend(subject.tree.text(base) for base in node.bases)
    return " ".join(said)


def ldap(subject: Subject) -> Iterator[Hit]:
    """Directory filters and names put together from text."""
    if not subject.facts.imports_any("ldap", "ldap3"):
        return
    for call in subject.facts.calls:
        if call.method not in _LDAP_METHODS:
            continue
        for value in (*call.args, *call.keywords.values()):
            taints = value.from_(ANYONE, Label.LDAP)
            if taints and (
                (value.built and _LDAP.search(skeleton(value)))
                or (not value.built and value.from_(REMOTE, Label.LDAP) and call.method.startswith("search"))
            ):
                yield subject.hit("ldap_injection", call.node, taints)
                break


def xpath(subject: Subject) -> Iterator[Hit]:
    """XPath and XQuery expressions put together from text."""
    for call in subject.facts.calls:
        if call.method not in _XPATH_METHODS and call.name not in {
            "lxml.etree.XPath",
            "lxml.etree.XPathEvaluator()",
            "elementpath.select",
        }:
            continue
        for value in call.args[:2]:
            taints = value.from_(ANYONE, Label.XML)
            is_path = value.built and _XPATH.search(skeleton(value))
            if taints and (
                is_path or (call.method in {"xpath", "XPath"} and value.from_(OUTSIDE, Label.XML))
            ):
                yield subject.hit("xpath_injection", call.node, taints)
                break


def nosql(subject: Subject) -> Iterator[Hit]:
    """Documents of queries that a caller can shape."""
    if not subject.facts.imports_any(
        "pymongo", "flask_pymongo", "mongoengine", "motor", "bson", "couchdb", "tinydb"
    ):
        return
    for call in subject.facts.calls:
        if call.method not in _NOSQL_METHODS:
            continue
        for value in (*call.args[:1], *(call.keywords[k] for k in ("filter", "query") if k in call.keywords)):
            where = "$where" in value.keys
            taints = value.from_(ANYONE) if where else value.from_(OUTSIDE, Label.NOSQL)
            parsed = [taint for taint in taints if where or not _from_path(taint)]
            if parsed:
                yield subject.hit("nosql_injection", call.node, parsed)


def _from_path(taint: Taint) -> bool:
    """A part of a path is a text and holds no operators."""
    return isinstance(taint.steps[0][0], ast.arg)


def patterns(subject: Subject) -> Iterator[Hit]:
    """Regular expressions and format texts from outside."""
    for call in subject.facts.calls:
        if call.name in _REGEX:
            taints = call.arg(0, "pattern").from_(OUTSIDE, Label.REGEX)
            if taints:
                yield subject.hit("regex_injection", call.node, taints)
        elif (
            call.method in {"format", "format_map"} and not call.receiver.built and call.receiver.text is None
        ):
            taints = call.receiver.from_(OUTSIDE, Label.CODE)
            if taints:
                yield subject.hit("format_string", call.node, taints)
        elif call.method in {"format", "format_map"} and call.receiver.built:
            taints = call.receiver.from_(REMOTE, Label.CODE)
            if taints and call.args + tuple(call.keywords.values()):
                yield subject.hit("format_string", call.node, taints)


CHECKS: Final[tuple[Check, ...]] = (
    sql,
    commands,
    code,
    downloads,
    deserialisation,
    ldap,
    xpath,
    nosql,
    patterns,
)
