"""What calls, settings and comparisons of a JavaScript file say by themselves."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from services.tools.code.engines.javascript.flow import FUNCTIONS, Call, Flow
from services.tools.code.engines.javascript.known import operator
from services.tools.code.engines.javascript.values import Value
from services.tools.code.engines.python_syntax.backtracking import is_exponential
from services.tools.code.engines.secrets.texts import is_placeholder
from services.tools.code.grammar import Node

Found = Iterator[tuple[str, Node]]
_LEAST_ROUNDS: Final = 100_000
_LEAST_BITS: Final = 2048
_LEAST_COST: Final = 10
_SECRET_WORD: Final = re.compile(
    r"token|secret|passw|otp|session|nonce|salt|apikey|api_key|csrf|verification|reset|invite|\bpin\b|\bkey\b|credential|\biv\b",
    re.IGNORECASE,
)
_PASSWORD: Final = re.compile(r"passw(?:or)?d|passphrase|\bpwd\b", re.IGNORECASE)
_HARMLESS: Final = re.compile(r"etag|cache|checksum|gravatar|fingerprint|dedup", re.IGNORECASE)
_MAX_PATTERN: Final = 500


def _crypto(call: Call) -> Found:
    first, second, third = call.arg(0), call.arg(1), call.arg(2)
    statement = (
        call.node.around(
            "expression_statement", "lexical_declaration", "return_statement", "variable_declaration"
        )
        or call.node
    )
    if re.search(r"(?:^|\.)create(?:Hash|Hmac|Sign)$", call.name):
        if re.match(r"(?:rsa-)?(?:md[245]|sha-?1|ripemd)", first.constant, re.IGNORECASE) and not (
            call.method == "createHmac" and "sha1" in first.constant.lower()
        ):
            if not _HARMLESS.search(statement.text):
                yield "weak_hash", call.node
        elif call.method == "createHash" and _PASSWORD.search(statement.text):
            yield "fast_password_hash", call.node
    elif re.search(
        r"(?:crypto-?js|CryptoJS)\.(?:MD5|SHA1)$|^(?:md5|sha1|js-md5|blueimp-md5)$", call.name, re.IGNORECASE
    ):
        yield "weak_hash", call.node
    elif re.search(r"\.create(?:C|Dec)ipher$", call.name) or re.search(
        r"CryptoJS\.(?:DES|TripleDES|RC4|RC4Drop|Rabbit)\.", call.name, re.IGNORECASE
    ):
        yield "weak_cipher", call.node
    elif re.search(r"\.create(?:C|Dec)ipheriv$", call.name):
        if re.search(r"^(?:des|rc[24]|bf|blowfish)|ecb$", first.constant, re.IGNORECASE):
            yield "weak_cipher", call.node
        if _fixed(second):
            yield "hardcoded_key", call.node
        if call.method == "createCipheriv" and _fixed(third) and "ecb" not in first.constant.lower():
            yield "fixed_iv", call.node
    elif re.search(r"\.pbkdf2(?:Sync)?$", call.name) and 0 < _number(third) < _LEAST_ROUNDS:
        yield "few_iterations", call.node
    elif re.search(r"bcrypt\w*\.(?:hash|genSalt)(?:Sync)?$", call.name):
        if 0 < _number(second if "hash" in call.method else first) < _LEAST_COST:
            yield "few_iterations", call.node
    elif (
        re.search(r"\.generateKeyPair(?:Sync)?$", call.name)
        and 0 < _number(second.keys.get("modulusLength", Value())) < _LEAST_BITS
    ):
        yield "weak_key", call.node
    elif call.name == "Math.random":
        function = call.node.around(*FUNCTIONS)
        named = function.fields.get("name") if function is not None else None
        declared = call.node.around("variable_declarator", "assignment_expression", "pair")
        names = " ".join(
            each.text
            for each in (
                named,
                None
                if declared is None
                else declared.fields.get("name") or declared.fields.get("left") or declared.fields.get("key"),
            )
            if each is not None
        )
        if (
            function is not None
            and function.parent is not None
            and function.parent.kind == "variable_declarator"
        ):
            names += " " + function.parent.fields["name"].text
        if _SECRET_WORD.search(re.sub(r"([a-z])([A-Z])", r"\1_\2", names)):
            yield "insecure_random", call.node


def _fixed(value: Value) -> bool:
    """A literal, or bytes that are made from one."""
    return bool(value.constant) or value.name == "$fixed"


def _number(value: Value) -> int:
    digits = value.name.replace("_", "")
    return int(digits) if digits.isdigit() and len(digits) < 10 else 0


def _tokens(call: Call) -> Found:
    if re.search(r"^(?:jsonwebtoken|jwt|jwt-simple)\.(?:sign|verify|encode|decode)$", call.name):
        key = call.arg(1)
        if key.constant and not re.search(r"BEGIN PUBLIC|^public", key.constant) and call.method != "decode":
            yield "hardcoded_key", call.node
        options = call.arg(2)
        algorithms = [item.constant for item in options.keys.get("algorithms", Value()).items] + [
            options.keys.get("algorithm", Value()).constant
        ]
        if (
            "none" in [each.lower() for each in algorithms]
            or (call.name == "jwt-simple.decode" and call.arg(2).name == "true")
            or (
                call.name in {"jsonwebtoken.decode", "jwt.decode"}
                and not re.search(r"\.verify\(", call.node.tree.source.text)
            )
        ):
            yield "signature_unchecked", call.node
    elif (
        call.name in {"jwt-decode", "jwt-decode.jwtDecode", "jwtDecode"}
        and "express" in call.node.tree.source.text
    ):
        yield "signature_unchecked", call.node


def _cookies(call: Call) -> Found:
    if call.method == "cookie" and call.name.startswith("@res") and len(call.args) >= 2:
        options = call.arg(2).keys
        secret = re.search(
            r"sess|sid|token|auth|jwt|login|user|remember", call.arg(0).constant, re.IGNORECASE
        )
        missing = [
            name for name in ("httpOnly", "secure") if name not in options or options[name].name == "false"
        ]
        off = any(name in options and options[name].name == "false" for name in ("httpOnly", "secure"))
        if (secret and missing and call.arg(2).name == "" and (options or len(call.args) == 2)) or off:
            yield "cookie_flags", call.node
    elif call.name in {"express-session", "cookie-session", "session"}:
        options = call.arg(0).keys
        cookie = options.get("cookie", Value()).keys or (options if call.name == "cookie-session" else {})
        if options and options.get("secret", Value()).constant:
            yield "hardcoded_key", call.node
        if options and (
            not cookie
            or any(cookie[name].name == "false" for name in ("secure", "httpOnly") if name in cookie)
        ):
            yield "cookie_flags", call.node
    elif call.name == "cookie-parser" and call.arg(0).constant:
        yield "hardcoded_key", call.node


def _origins(call: Call) -> Found:
    if call.name in {"cors", "@fastify.cors"}:
        origin = call.arg(0).keys.get("origin")
        if not call.args or (
            origin is not None
            and (origin.constant == "*" or (origin.name == "true" and "credentials" in call.arg(0).keys))
        ):
            yield "any_origin", call.node
    elif (
        call.method in {"setHeader", "header", "set", "append"}
        and call.arg(0).constant.lower() == "access-control-allow-origin"
    ):
        if call.arg(1).constant == "*":
            yield "any_origin", call.node
    elif call.method == "writeHead" and any(
        name.lower() == "access-control-allow-origin" and value.constant == "*"
        for arg in call.args
        for name, value in arg.keys.items()
    ):
        yield "any_origin", call.node
    elif call.method == "postMessage" and len(call.args) >= 2 and call.arg(1).constant == "*":
        yield "message_origin", call.node
    elif (
        call.method == "addEventListener"
        and call.arg(0).constant == "message"
        and re.match(r"window|addEventListener|$", call.name.partition(".")[0])
    ):
        handler = call.arg(1).function
        if handler is not None and "origin" not in handler.text and ".data" in handler.text:
            yield "message_origin", call.node


def _files(call: Call) -> Found:
    modes = [value.name.lower() for arg in call.args for value in (arg, *arg.keys.values())]
    if re.match(r"^(?:fs|fs-extra)\.", call.name):
        if any(re.fullmatch(r"0o?[0-7]?[0-7]{2}[2367]|511|438", mode) for mode in modes) or (
            call.method.startswith("chmod") and re.fullmatch(r"0?7?[67]{2}[2367]", call.arg(1).constant)
        ):
            yield "open_permissions", call.node
        path = call.arg(0).text or ""
        if (
            re.match(r"(?:write|append|createWrite|open)", call.method)
            and re.match(r"/(?:var/)?tmp/[^\0]*$", path)
            and not any(each.constant == "wx" for arg in call.args for each in (arg, *arg.keys.values()))
        ):
            yield "insecure_temporary", call.node
    elif re.match(r"libxmljs2?\.parseXml", call.name) and any(
        arg.keys.get("noent", Value()).name == "true" for arg in call.args
    ):
        yield "entity_parser", call.node
    elif call.name == "multer" and "fileFilter" not in call.arg(0).keys and call.arg(0).name == "":
        yield "unrestricted_upload", call.node
    elif re.match(
        r"^(?:node-serialize|serialize-to-js|funcster)\.(?:unserialize|deserialize|deepDeserialize)$",
        call.name,
    ):
        yield "unsafe_library", call.node


def _routes(call: Call) -> Found:
    text = call.node.tree.source.text
    if (
        re.match(r"(?:express\(\)|express\.Router\(\)|app|router)\.(?:delete|put|post)$", call.name)
        and re.search(r"/(?:admin|users?|accounts?|settings|roles?)\b", call.arg(0).constant)
        and (call.method == "delete" or "admin" in call.arg(0).constant)
        and len(call.args) == 2
        and not re.search(r"req\.(?:user|session|auth)|auth|token|jwt|passport|require_?login|permission|isAdmin|login", text, re.IGNORECASE)
    ):  # fmt: skip
        yield "missing_authentication", call.node


def _options(flow: Flow) -> Found:
    """Settings that stand in any object, and places that are set to them."""
    for node in flow.tree.root.walk():
        if node.kind == "pair" and "key" in node.fields and "value" in node.fields:
            key, value = node.fields["key"].text.strip("'\""), node.fields["value"].text.strip("'\"`")
            if (
                (key in {"rejectUnauthorized", "strictSSL", "verifySSL"} and value == "false")
                or (key == "NODE_TLS_REJECT_UNAUTHORIZED" and value == "0")
                or (
                    key == "checkServerIdentity"
                    and re.match(
                        r"\(?[\w, ]*\)?\s*=>\s*(?:undefined|null|\{\s*(?:return;?)?\s*\}|true)\s*$", value
                    )
                )
            ):
                yield "certificate_unchecked", node
            elif (key == "secureProtocol" and re.match(r"SSLv[23]|TLSv1(?:_1)?_", value)) or (
                key in {"minVersion", "maxVersion"} and value in {"TLSv1", "TLSv1.1"}
            ):
                yield "weak_tls", node
        elif node.kind == "assignment_expression" and "left" in node.fields and "right" in node.fields:
            if (
                re.search(r"NODE_TLS_REJECT_UNAUTHORIZED['\"\]]*$", node.fields["left"].text)
                and node.fields["right"].text.strip("'\"") == "0"
            ):
                yield "certificate_unchecked", node
        elif node.kind == "regex" and "pattern" in node.fields:
            pattern = node.fields["pattern"].text
            if len(pattern) <= _MAX_PATTERN and is_exponential(pattern):
                yield "regex_dos", node
        elif node.kind == "binary_expression" and "left" in node.fields and "right" in node.fields:
            yield from _comparison(node)
        elif node.kind in FUNCTIONS:
            yield from _merge(node)


def _comparison(node: Node) -> Found:
    left, right = node.fields["left"], node.fields["right"]
    for one, other in ((left, right), (right, left)):
        if (
            one.kind in {"identifier", "member_expression"}
            and other.kind == "string"
            and _PASSWORD.search(one.text.rpartition(".")[2])
            and len(other.text) > 5
            and operator(node) in {"===", "==", "!==", "!="}
            and not is_placeholder(other.text[1:-1])
        ):
            yield "hardcoded_decision", node


def _merge(node: Node) -> Found:
    """A function that copies keys into a target, calls itself for objects, and refuses no key."""
    name = node.fields.get("name") or (
        node.parent.fields.get("name")
        if node.parent is not None and node.parent.kind == "variable_declarator"
        else None
    )
    if name is None or not re.match(r"[\w$]+$", name.text):
        return
    text = node.text
    loop = re.search(
        r"for\s*\(\s*(?:const|let|var)\s+(\w+)\s+(?:in|of)\b|\.forEach\(\s*\(?(\w+)\)?\s*=>", text
    )
    if loop is None or "__proto__" in text or re.search(r"hasOwn|Object\.create\(null\)|new Map", text):
        return
    key = re.escape(loop[1] or loop[2])
    if re.search(rf"\w\[{key}\]\s*=", text) and re.search(
        rf"(?<![\w.]){re.escape(name.text)}\(\s*\w+\[{key}\]", text
    ):
        yield "merge_keys", node


_CHECKS: Final[tuple[Callable[[Call], Found], ...]] = (_crypto, _tokens, _cookies, _origins, _files, _routes)


def settings(flow: Flow) -> Found:
    """Every weakness that needs no data from outside."""
    for call in flow.calls:
        for check in _CHECKS:
            yield from check(call)
    yield from _options(flow)
