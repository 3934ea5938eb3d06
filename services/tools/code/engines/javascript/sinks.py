"""Where data from outside does harm in JavaScript."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from services.tools.code.engines.javascript.flow import Call, Flow, Store
from services.tools.code.engines.javascript.values import ANYONE, HOLE, OUTSIDE, Kind, Value
from services.tools.code.grammar import Node
from services.tools.code.model import Confidence

WEB: Final = frozenset({Kind.REQUEST, Kind.BROWSER})
REQUEST: Final = frozenset({Kind.REQUEST})
_SQL: Final = re.compile(
    r"^\W*(?:select\b[^;]*\bfrom\b|insert\s+into\b|update\s+\S+\s+set\b|delete\s+from\b|drop\s+|replace\s+into\b|create\s+|alter\s+|with\s+\S+\s+as\b|exec(?:ute)?\s|call\s)",
    re.IGNORECASE,
)
_SQL_CALLS: Final = frozenset(
    {"query", "execute", "raw", "all", "get", "run", "each", "exec", "prepare", "$queryRawUnsafe", "$executeRawUnsafe", "queryAsync",
     "whereRaw", "orderByRaw", "havingRaw", "any", "one", "none", "many", "oneOrNone", "manyOrNone", "unsafe", "batch", "literal"}
)  # fmt: skip
_NOSQL_CALLS: Final = re.compile(
    r"^(?:find|findOne|findOneAndUpdate|findOneAndDelete|updateOne|updateMany|deleteOne|deleteMany|countDocuments|aggregate|where|replaceOne|distinct|exists|remove|count)$"
)
_CODE: Final = re.compile(
    r"^(?:(?:window\.)?eval|(?:window\.)?Function|vm\.(?:runIn\w+|compileFunction|Script)|vm2\.VM\(\)\.run|vm2\.NodeVM\(\)\.run|module\._compile|safe-eval)$"
)
_TIMERS: Final = re.compile(r"^(?:window\.)?(?:setTimeout|setInterval|setImmediate|execScript)$")
_SHELL: Final = re.compile(
    r"^(?:child_process\.exec(?:Sync)?|shelljs\.exec|execa\.execaCommand(?:Sync)?|execa\.command(?:Sync)?|child_process\.promises\.exec)$"
)
_SPAWN: Final = re.compile(
    r"^(?:child_process\.(?:spawn|execFile|fork)(?:Sync)?|execa|execa\.execa(?:Sync)?|cross-spawn)$"
)
_FILES: Final = re.compile(
    r"^(?:fs|fs-extra|graceful-fs|fse)\.(?:readFile|readFileSync|createReadStream|createWriteStream|writeFile|writeFileSync|appendFile|appendFileSync|unlink|unlinkSync|open|openSync|readdir|readdirSync|rm|rmSync|rmdir|rmdirSync|rename|renameSync|copyFile|copyFileSync|mkdir|mkdirSync|stat|statSync|remove|removeSync|readJson|outputFile|symlink|chmod|access|accessSync|existsSync|exists)$"
)
_FETCH: Final = re.compile(
    r"^(?:(?:window\.)?fetch|node-fetch(?:\.default)?|axios(?:\.\w+|\.create\(\)\.\w+)?|got(?:\.\w+)?|request(?:\.(?:get|post|put|head|delete))?|request-promise(?:-native)?(?:\.\w+)?|needle(?:\.\w+)?|superagent\.\w+|https?\.(?:get|request)|undici\.\w+|bent\(\)|phin|urllib\.request)$"
)
_TEMPLATES: Final = re.compile(
    r"^(?:ejs\.(?:render|compile)|pug\.(?:render|compile)|jade\.(?:render|compile)|[Hh]andlebars\.(?:compile|precompile)|nunjucks\.(?:renderString|compile)|lodash\.template|_\.template|underscore\.template|mustache\.render|[Mm]ustache\.render|doT\.template|dot\.template|hogan\.js\.compile|eta\.renderString)$"
)
_MERGES: Final = re.compile(r"^(?:lodash|_|lodash\.merge|lodash\.defaultsdeep|jquery|\$)(?:\.(?:merge|mergeWith|defaultsDeep|set|setWith|extend|zipObjectDeep))?$|^(?:deepmerge|merge|deep-extend|merge-deep|defaults-deep|dot-prop\.set|object-path\.set|set-value|extend)$")  # fmt: skip
_SERIALS: Final = re.compile(
    r"^(?:node-serialize|serialize-to-js|funcster|cryo|v8)\.(?:unserialize|deserialize|deepDeserialize|parse)$"
)
_HTML: Final = re.compile(r"<[a-z!/]", re.IGNORECASE)
_PLAIN: Final = re.compile(r"text/plain|application/json|\.type\(\s*['\"](?:txt|text|json)")


@dataclass(frozen=True, slots=True)
class Danger:
    """A rule that data reached: where, and by which value."""

    rule: str
    node: Node
    value: Value
    confidence: Confidence | None = None


def dangers(flow: Flow) -> Iterator[Danger]:
    """Every place where data from outside does harm."""
    for call in flow.calls:
        for check in _CALLS:
            yield from check(call)
    for store in flow.stores:
        yield from _stores(store)


def _sure(value: Value) -> Confidence | None:
    """A caller's parameter is less sure than a request."""
    return (
        Confidence.MEDIUM
        if value.taint is not None and value.taint.kind in {Kind.CALLER, Kind.INPUT}
        else None
    )


def _commands(call: Call) -> Iterator[Danger]:
    first, second = call.arg(0), call.arg(1)
    if _SHELL.match(call.name):
        if first.of(OUTSIDE, "command_injection") or (
            first.of(ANYONE, "command_injection") and (first.built or call.function)
        ):
            yield Danger("command_injection", call.node, first, _sure(first))
    elif _SPAWN.match(call.name):
        shell = any("shell" in arg.keys and arg.keys["shell"].name != "false" for arg in call.args)
        inner = [*second.items]
        if re.search(r"(?:^|/)(?:ba|z|da)?sh$|cmd(?:\.exe)?$|powershell", first.constant):
            shell = any(item.constant in {"-c", "/c", "/C", "-Command"} for item in inner)
        for each in [first, *inner, second] if shell else []:
            if each.of(ANYONE, "command_injection"):
                yield Danger("command_injection", call.node, each, _sure(each))
                return
        if not shell and first.of(OUTSIDE, "command_injection"):
            yield Danger("argument_injection", call.node, first)


def _code(call: Call) -> Iterator[Danger]:
    if _CODE.match(call.name):
        for each in call.args:
            if each.of(ANYONE, "code_injection"):
                yield Danger("code_injection", call.node, each, _sure(each))
                return
    elif _TIMERS.match(call.name) and call.arg(0).function is None:
        if call.arg(0).of(OUTSIDE, "code_injection") or (
            call.arg(0).built and call.arg(0).of(ANYONE, "code_injection")
        ):
            yield Danger("code_injection", call.node, call.arg(0), _sure(call.arg(0)))
    elif _TEMPLATES.match(call.name) and call.arg(0).of(WEB, "template_injection"):
        yield Danger("template_injection", call.node, call.arg(0))
    elif _SERIALS.match(call.name) and call.arg(0).of(ANYONE, "unsafe_deserialisation"):
        yield Danger("unsafe_deserialisation", call.node, call.arg(0), _sure(call.arg(0)))
    elif call.name in {"RegExp", "window.RegExp"} and call.arg(0).of(OUTSIDE, "regex_injection"):
        yield Danger("regex_injection", call.node, call.arg(0))
    elif call.name == "require" and call.arg(0).of(OUTSIDE, "path_traversal"):
        yield Danger("path_traversal", call.node, call.arg(0))


def _queries(call: Call) -> Iterator[Danger]:
    first = call.arg(0)
    query = first.keys.get("text") or first.keys.get("sql") or first
    if call.method in _SQL_CALLS and query.of(ANYONE, "sql_injection"):
        raw = call.method in {"$queryRawUnsafe", "$executeRawUnsafe", "raw", "whereRaw", "unsafe"}
        whole = (
            query.of(OUTSIDE)
            and (call.method in {"query", "execute"} or raw)
            and re.search(r"db|conn|pool|client|sql|pg|knex|sequelize|prisma", call.name, re.IGNORECASE)
        )
        if (query.built and (_SQL.match(query.text or "") or raw)) or (not query.built and whole):
            yield Danger("sql_injection", call.node, query, _sure(query))
    if _NOSQL_CALLS.match(call.method) and call.args and first.function is None:
        places = [
            first,
            *first.keys.values(),
            *(inner for item in first.items for inner in item.keys.values()),
        ]
        nested = [
            inner for each in places[1:] for name, inner in each.keys.items() if name not in {"$eq", "$in"}
        ]
        for name, each in first.keys.items():
            if name == "$where" and each.of(ANYONE, "nosql_injection"):
                yield Danger("nosql_injection", call.node, each, _sure(each))
                return
        for each in [*places, *nested]:
            if (
                each.of(REQUEST, "nosql_injection")
                and each.taint is not None
                and each.taint.whole
                and each.text is None
                and _shaped(each)
            ):
                yield Danger("nosql_injection", call.node, each)
                return
    if (
        re.search(r"xpath\.(?:select1?|evaluate|parse)$|\.(?:selectNodes|evaluate)$", call.name)
        and first.built
        and first.of(ANYONE, "xpath_injection")
    ):
        yield Danger("xpath_injection", call.node, first, _sure(first))
    elif call.method == "search" and "ldap" in call.node.tree.source.text:
        for each in (first, call.arg(1), call.arg(1).keys.get("filter", Value())):
            if each.built and each.of(ANYONE, "xpath_injection"):
                yield Danger("xpath_injection", call.node, each, _sure(each))
                return


def _shaped(value: Value) -> bool:
    """Only a body or a query string can hold objects; segments of the path are texts."""
    return value.taint is not None and re.search(r"body|query|payload", value.taint.origin) is not None


def _pages(call: Call) -> Iterator[Danger]:
    rule = "cross_site_scripting"
    if call.name in {"document.write", "document.writeln"} or call.method in {
        "insertAdjacentHTML",
        "createContextualFragment",
    }:
        value = call.arg(-1)
        if value.of(WEB, rule) or (value.of(ANYONE, rule)):
            yield Danger(rule, call.node, value, _sure(value))
    elif call.method in {"html", "append", "prepend", "after", "before"} and re.match(
        r"^(?:\$|jQuery|jquery)\(\)", call.name
    ):
        if call.arg(0).of(WEB, rule) or (call.arg(0).built and call.arg(0).of(ANYONE, rule)):
            yield Danger(rule, call.node, call.arg(0), _sure(call.arg(0)))
    elif call.method in {"send", "write", "end"} and re.match(r"@res(?:\.|$)|@res\.\w+\(\)", call.name):
        for value in call.args[:1]:
            if value.of(REQUEST, rule) and not value.keys and not _plain(call):
                yield Danger(rule, call.node, value)
            elif value.of(frozenset({Kind.ERROR})) and re.search(
                r"\.stack$|^\w+$", value.taint.origin if value.taint else ""
            ):
                yield Danger("error_exposure", call.node, value)
    if call.method in {"json", "send"} and call.name.startswith("@res"):
        for value in [call.arg(0), *call.arg(0).keys.values()]:
            if (
                value.of(frozenset({Kind.ERROR}))
                and value.taint is not None
                and re.search(r"^\w+$|\.stack$", value.taint.origin)
                and value.text is None
            ):
                if value is call.arg(0) and call.method == "send":
                    continue
                yield Danger("error_exposure", call.node, value)
                return


def _plain(call: Call) -> bool:
    function = call.node.around(
        "arrow_function", "function_expression", "function_declaration", "method_definition"
    )
    return _PLAIN.search((function or call.node).text) is not None


def _paths(call: Call) -> Iterator[Danger]:
    rule = "path_traversal"
    if _FILES.match(call.name):
        for value in call.args[: 2 if re.search(r"rename|copy|symlink", call.name) else 1]:
            if value.of(OUTSIDE, rule) and value.taint is not None and value.taint.kind is not Kind.INPUT:
                yield Danger(rule, call.node, value)
                return
    elif call.method in {"sendFile", "sendfile", "download"} and call.name.startswith("@res"):
        if call.arg(0).of(OUTSIDE, rule) and not any("root" in each.keys for each in call.args[1:]):
            yield Danger(rule, call.node, call.arg(0))
    elif call.method == "mv" and call.arg(0).of(REQUEST, rule):
        yield Danger(rule, call.node, call.arg(0))


def _network(call: Call) -> Iterator[Danger]:
    rule = "request_forgery"
    if _FETCH.match(call.name):
        first = call.arg(0)
        for value in (
            first,
            *(
                first.keys[name]
                for name in ("url", "uri", "host", "hostname", "baseURL")
                if name in first.keys
            ),
        ):
            if value.of(REQUEST, rule) and _chooses_host(value):
                yield Danger(rule, call.node, value)
                return
    elif call.method == "goto" and re.search(r"page|newPage", call.name) and call.arg(0).of(REQUEST, rule):
        yield Danger(rule, call.node, call.arg(0))
    rule = "open_redirect"
    if call.method == "redirect" and re.match(r"@res|@ctx", call.name):
        value = call.arg(-1) if len(call.args) <= 2 else call.arg(1)
        if value.of(REQUEST, rule) and _chooses_host(value):
            yield Danger(rule, call.node, value)
    elif call.method in {"setHeader", "set", "header", "append", "writeHead"} and call.name.startswith(
        ("@res", "@ctx")
    ):
        given = call.arg(1)
        name = call.arg(0).constant.lower()
        location = given if name == "location" else given.keys.get("Location") or given.keys.get("location")
        if location is not None and location.of(REQUEST, rule) and _chooses_host(location):
            yield Danger(rule, call.node, location)
        origin = (
            given if name == "access-control-allow-origin" else given.keys.get("Access-Control-Allow-Origin")
        )
        if origin is not None and origin.of(REQUEST, "origin_echo"):
            yield Danger("origin_echo", call.node, origin)
    elif re.match(r"^(?:window\.)?(?:location\.(?:assign|replace)|open)$", call.name):
        if call.arg(0).of(frozenset({Kind.BROWSER}), rule) and _chooses_host(call.arg(0)):
            yield Danger(rule, call.node, call.arg(0))


def _chooses_host(value: Value) -> bool:
    """Whether what is not known of an address reaches its host."""
    text = value.text
    if text is None or HOLE not in text:
        return True
    before = text.partition(HOLE)[0]
    return re.match(r"(?:[a-z]+:)?//[^/?#]+[/?#]|/[^/\\]|[?#]", before, re.IGNORECASE) is None


def _objects(call: Call) -> Iterator[Danger]:
    if _MERGES.match(call.name):
        deep = call.name not in {"lodash.extend", "_.extend"} and (
            not call.name.endswith("extend") or call.arg(0).name == "true" or "$" not in call.name
        )
        for value in call.args:
            if (
                deep
                and value.of(REQUEST, "prototype_pollution")
                and value.taint is not None
                and value.taint.whole
            ):
                yield Danger("prototype_pollution", call.node, value)
                return
    body = next(
        (
            each
            for each in call.args
            if each.of(REQUEST, "mass_assignment")
            and each.taint is not None
            and re.search(r"(?:req|ctx\.request)\.body$", each.taint.origin)
        ),
        None,
    )
    if body is None:
        return
    if (
        (call.is_new and re.match(r"[A-Z]\w+$", call.name.rpartition(".")[2]) and call.name not in {"URL", "URLSearchParams", "Map", "Set", "Error", "Date", "FormData"})
        or (call.method in {"create", "update", "findByIdAndUpdate", "findOneAndUpdate", "insert", "updateOne", "build", "upsert", "insertOne"} and re.match(r"[A-Z]", call.receiver.name.lstrip(".").rpartition(".")[2]))
        or (call.name == "Object.assign" and not call.arg(0).keys and call.arg(0).name != "{}" and len(call.args) > 1 and call.arg(0) is not body and call.arg(0) != Value())
    ):  # fmt: skip
        yield Danger("mass_assignment", call.node, body)


def _logs(call: Call) -> Iterator[Danger]:
    if re.search(r"(?:^console|logger|log|winston|pino)\.(?:log|info|warn|error|debug)$", call.name):
        for value in call.args:
            if value.of(REQUEST, "log_injection") and value.text is not None:
                yield Danger("log_injection", call.node, value)
                return


def _stores(store: Store) -> Iterator[Danger]:
    value, rule = store.value, "cross_site_scripting"
    if store.name in {"innerHTML", "outerHTML", "srcdoc"}:
        if value.of(WEB, rule) or value.of(ANYONE, rule):
            yield Danger(rule, store.node, value, _sure(value))
    elif store.name in {"href", "location"} and re.search(
        r"(?:^|\.)location$|^(?:window|document|top|parent)$", store.object.name
    ):
        if value.of(frozenset({Kind.BROWSER}), "open_redirect") and _chooses_host(value):
            yield Danger("open_redirect", store.node, value)
    elif (
        store.name == "body"
        and store.object.name == "@ctx"
        and value.of(REQUEST, rule)
        and value.text is not None
        and _HTML.search(value.text)
    ):
        yield Danger(rule, store.node, value)
    left = store.node.fields.get("left")
    if left is None or left.kind != "subscript_expression" or "object" not in left.fields:
        return
    of = left.fields["object"]
    if store.key.of(REQUEST, "prototype_pollution") and (
        of.kind == "subscript_expression" or (value.of(REQUEST) and of.kind != "identifier")
    ):
        yield Danger("prototype_pollution", store.node, store.key)


_CALLS: Final = (_commands, _code, _queries, _pages, _paths, _network, _objects, _logs)
