"""What is known of names: where data comes from, what functions do with it, and what cleans it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from services.tools.code.engines.javascript.values import HOLE, Kind, Taint, Value, worst
from services.tools.code.grammar import Node

# Expressions whose value is that of what they hold.
TRANSPARENT: Final = frozenset(
    {
        "parenthesized_expression",
        "await_expression",
        "spread_element",
        "sequence_expression",
        "yield_expression",
    }
)
GLOBALS: Final = {"globalThis": "window", "self": "window", "req": "@req", "request": "@req", "ctx": "@ctx"}
ALIASES: Final = {
    "@ctx.request": "@req", "@ctx.req": "@req", "@ctx.res": "@res", "@ctx.response": "@res", "window.location": "location",
    "document.location": "location", "window.document": "document", "fs.promises": "fs", "fs.default": "fs", "@req.raw": "@req",
}  # fmt: skip
SAME_FUNCTION: Final = frozenset({"util.promisify", "promisify"})

_REQUEST: Final = re.compile(
    r"@req\.(?:body|query|params|cookies|signedCookies|headers|url|originalUrl|path|hostname|files?|rawBody|payload|nextUrl)$"
    r"|@req\.(?:get|header|param|json|text|formData)\(\)$"
    r"|@ctx\.(?:query|params|headers?|url|path|querystring|cookies\.get\(\)|request\.body)$"
    r"|@event\.(?:body|queryStringParameters|pathParameters|headers|multiValueQueryStringParameters)$"
)
_BROWSER: Final = re.compile(
    r"(?:^|\.)location\.(?:search|hash|href)$|^document\.(?:URL|documentURI|referrer)$|^window\.name$|^@dom\.data$"
)
_INPUT: Final = re.compile(
    r"^process\.argv$|^(?:window\.)?prompt\(\)$|readline-sync\.\w+\(\)$|^prompt-sync\(\)\(\)$"
)
_FIELD: Final = re.compile(r"^(?:document\..*|@dom\.(?:target|currentTarget))\.value$")
_QUIET_METHODS: Final = frozenset(
    {
        "test",
        "includes",
        "has",
        "startsWith",
        "endsWith",
        "indexOf",
        "lastIndexOf",
        "hasOwnProperty",
        "some",
        "every",
        "equals",
        "charCodeAt",
        "search",
    }
)
_PASSING: Final = re.compile(
    r"^(?:path\.(?:posix\.|win32\.)?(?:join|resolve|normalize|format|basename|relative)|decodeURI(?:Component)?|unescape|Buffer\.(?:from|concat)|String|url\.(?:parse|resolve|format)"
    r"|(?:window\.)?URL(?:SearchParams)?|url\.URL|querystring\.(?:parse|unescape)|qs\.parse|JSON\.(?:parse|stringify)|util\.format|Object\.(?:assign|keys|values|entries|fromEntries)"
    r"|atob|btoa|Array\.from|Promise\.(?:resolve|all)|lodash\.(?:trim|toString|get|pick|cloneDeep)|structuredClone|encodeURI|Array\.of)$"
)
_NUMBERS: Final = re.compile(
    r"^(?:Number|parseInt|parseFloat|Boolean|BigInt|Number\.\w+|Date|Date\.parse|Math\.\w+)$"
)
_CLEANS: Final = (
    (re.compile(r"basename$|sanitize-filename|sanitizeFilename", re.IGNORECASE), frozenset({"path_traversal"})),
    (re.compile(r"encodeURIComponent$"), frozenset({"cross_site_scripting", "path_traversal", "request_forgery", "open_redirect", "log_injection"})),
    (
        re.compile(r"(?:escape|encode|sanitize|purify|strip)_?-?(?:html|tags)?|DOMPurify|xss\b|\bhe\.|htmlspecialchars|^xss(?:\(\))?$", re.IGNORECASE),
        frozenset({"cross_site_scripting", "log_injection"}),
    ),
    (re.compile(r"(?:mysql2?|connection|conn|pool|db|client|sqlstring|SqlString|pg-format)\.(?:escape|escapeId|escapeLiteral|escapeIdentifier|format)|^pg-format$"), frozenset({"sql_injection"})),
    (re.compile(r"shell-?_?(?:escape|quote)|shellEscape|quote\(?\)?$", re.IGNORECASE), frozenset({"command_injection"})),
    (re.compile(r"escape-?_?(?:string-?_?)?reg_?-?exp?|escapeRegex|lodash\.escapeRegExp", re.IGNORECASE), frozenset({"regex_injection"})),
    (re.compile(r"mongo-sanitize|mongoSanitize|ObjectId", re.IGNORECASE), frozenset({"nosql_injection"})),
    (re.compile(r"ldap-?_?escape|escapeXpath|escapeLdap|ldapEscape", re.IGNORECASE), frozenset({"xpath_injection"})),
)  # fmt: skip
_VALIDATES: Final = re.compile(
    r"(?:^|\.)_?(?:safe|clean|sanitize|sanitise|validate|validated|assert|check|allow|whitelist|parse(?:Safe|Id))[A-Z]\w*$|\.(?:parse|parseAsync|safeParse|validate|validateAsync|validateSync)$"
)
_SCHEMA: Final = re.compile(r"schema|zod|joi|yup|ajv|validator", re.IGNORECASE)
_REMOVES: Final = re.compile(r"^/\[\^[^\]]+\]\+?/\w*g")


def operator(node: Node) -> str:
    """The operator of a binary or assignment expression."""
    left, right = node.fields["left"], node.fields["right"]
    between = node.tree.data[left.end : right.start].decode("utf-8", "replace")
    return re.sub(r"/\*.*?\*/|//[^\n]*|[\s()]", "", between)


def is_handler_pattern(text: str) -> bool:
    """Whether a pattern of parameters takes a request apart."""
    return re.match(r"\{\s*(?:\w+\s*,\s*)*(?:query|body|params|cookies)\s*[,:}]", text) is not None


def parameter_name(name: str, index: int) -> str:  # noqa: PLR0911 - a table of names
    """What a parameter is by its name; empty when it is anybody's."""
    if re.fullmatch(r"_?(?:req|request)", name):
        return "@req"
    if re.fullmatch(r"_?(?:res|resp|response|reply|rep)", name) and index:
        return "@res"
    if name in {"ctx", "context"} and index == 0:
        return "@ctx"
    if name in {"e", "ev", "evt", "event"} and index == 0:
        return "@event" if name == "event" else "@dom"
    if re.fullmatch(r"(?:err|error|e)", name):
        return "@error"
    if re.fullmatch(r"next|cb|callback|done|resolve|reject|i|index|_", name):
        return "@other"
    return ""


def source_of(name: str) -> Kind | None:
    """Where data of this dotted name comes from."""
    if _REQUEST.search(name):
        return Kind.REQUEST
    if _BROWSER.search(name) or name == "@event.data":
        return Kind.BROWSER
    if _INPUT.search(name):
        return Kind.INPUT
    return Kind.CALLER if _FIELD.search(name) else None


def callback_source(name: str, method: str, receiver: Value, event: str) -> Kind | None:
    """What a function gets that is handed to this call."""
    if method in {"on", "once", "addListener"}:
        if receiver.name == "@req" and event == "data":
            return Kind.REQUEST
        if event in {"message", "data"} and re.search(
            r"ws|sock|conn|client|wss|stream", receiver.name + name, re.IGNORECASE
        ):
            return Kind.REQUEST
        if event == "line" or (event == "data" and receiver.name == "process.stdin"):
            return Kind.INPUT
        if re.search(r"socket", receiver.name, re.IGNORECASE) and event not in {
            "",
            "error",
            "close",
            "connect",
            "connection",
            "disconnect",
        }:
            return Kind.REQUEST
    return Kind.INPUT if method == "question" else None


def taint_after(name: str, method: str, receiver: Value, args: tuple[Value, ...]) -> Taint | None:  # noqa: PLR0911 - a table of functions
    """What comes out of a call of what went in."""
    if _NUMBERS.search(name):
        return None
    inputs = [receiver, *args]
    taint = worst(inputs)
    if taint is None:
        return None
    if _SCHEMA.search(receiver.name) and _VALIDATES.search(f".{method}"):
        return None
    if receiver.taint is None and re.search(
        r"^[\w.]*(?:validate|sanitize|allow|check|whitelist)\w*$", name.rpartition(".")[2], re.IGNORECASE
    ):
        return None
    for pattern, rules in _CLEANS:
        if pattern.search(name or method):
            return replace(taint, cleared=taint.cleared | rules, whole=False)
    if receiver.taint is not None:
        if method in _QUIET_METHODS:
            return None
        return _replaced(receiver.taint, method, args)
    if _PASSING.search(name):
        return replace(
            taint, whole=name != "String" and not name.startswith(("path.", "JSON.stringify")) and taint.whole
        )
    return taint if method in {"concat", "join"} else None


def is_fixed(name: str, args: tuple[Value, ...]) -> bool:
    """Whether a call makes the same bytes each time."""
    if name == "Buffer.from" and args:
        return bool(args[0].constant)
    return (name == "Buffer.alloc" and len(args) == 1) or (
        name == "CryptoJS.enc.Utf8.parse" and bool(args and args[0].constant)
    )


def text_after(name: str, args: tuple[Value, ...]) -> str | None:
    """The text that a call makes, as far as it is known."""
    if re.fullmatch(r"path\.(?:posix\.)?(?:join|resolve)", name) and args:
        return "/".join(HOLE if each.text is None else each.text for each in args)
    if name in {"url.URL", "URL", "String"} and len(args) == 1:
        return args[0].text
    return None


def _replaced(taint: Taint, method: str, args: tuple[Value, ...]) -> Taint:  # noqa: PLR0911 - a table of methods
    if method in {"toString", "trim", "toLowerCase", "toUpperCase", "slice", "substring"}:
        return replace(taint, whole=False)
    if method in {"replace", "replaceAll"} and args:
        pattern = args[0].name or args[0].constant
        if _REMOVES.search(pattern):
            return replace(taint, cleared=taint.cleared | {"*"}, whole=False)
        if "<" in pattern and "/g" in pattern + "/g" * (method == "replaceAll"):
            return replace(taint, cleared=taint.cleared | {"cross_site_scripting"}, whole=False)
        if re.search(r"\\[nr]", pattern):
            return replace(taint, cleared=taint.cleared | {"log_injection"}, whole=False)
        if "\\\\$&" in args[-1].constant or "\\$&" in args[-1].constant:
            return replace(taint, cleared=taint.cleared | {"regex_injection"}, whole=False)
        return replace(taint, whole=False)
    return taint
