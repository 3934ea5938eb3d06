"""Certificates, TLS, tokens' signatures and protocols without encryption."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from services.tools.code.model import Hit
from services.tools.code.python.facts import Call
from services.tools.code.python.subject import Check, Subject
from services.tools.code.python.values import HOLE, Kind, skeleton

_HTTP: Final = re.compile(
    r"^(?:requests|httpx|aiohttp|urllib3|self\.session|session|client)\b.*\.(?:get|post|put|patch|delete|head|options|request|Client|AsyncClient|Session|session|send|stream)$"
)
_OLD_TLS: Final = re.compile(
    r"(?:PROTOCOL_(?:SSLv2|SSLv3|SSLv23|TLSv1|TLSv1_1)|SSLv2_METHOD|SSLv3_METHOD|SSLv23_METHOD|TLSv1_METHOD|TLSv1_1_METHOD|TLSVersion\.(?:SSLv3|TLSv1|TLSv1_1|MINIMUM_SUPPORTED))$"
)
_LOCAL: Final = re.compile(
    r"http://(?:localhost|127\.|0\.0\.0\.0|\[::1|www\.w3\.org|schemas\.|\x00|example\.)"
)
_CLEAR: Final = {
    "ftplib.FTP": "FTP",
    "telnetlib.Telnet": "Telnet",
    "poplib.POP3": "POP3",
    "imaplib.IMAP4": "IMAP",
    "http.client.HTTPConnection": "HTTP",
    "httplib.HTTPConnection": "HTTP",
    "xmlrpc.client.ServerProxy": "HTTP",
}


def certificates(subject: Subject) -> Iterator[Hit]:
    """Certificates and host names that nobody looks at."""
    for call in subject.facts.calls:
        verify = call.keywords.get("verify")
        if (
            (verify is not None and verify.const is False and _HTTP.match(call.name))
            or call.name in {"ssl._create_unverified_context", "ssl._create_stdlib_context"}
            or (
                call.name == "ssl.wrap_socket"
                and not call.keywords.get("cert_reqs", call.arg(-1)).origin.endswith("CERT_REQUIRED")
            )
        ):
            yield subject.hit("certificate_unchecked", call.node)
        elif call.method == "set_missing_host_key_policy" and re.search(
            r"AutoAdd|Warning", call.arg(0).origin
        ):
            yield subject.hit("host_key_unchecked", call.node)
        elif (
            (call.arg(-1, "ssl").const is False and call.name.startswith("aiohttp."))
            or call.arg(-1, "cert_reqs").string == "CERT_NONE"
            or call.arg(-1, "ssl_verify").const is False
            or (call.arg(-1, "verify_ssl").const is False)
        ) or (call.method == "set_verify" and call.arg(0).origin.endswith("VERIFY_NONE")):
            yield subject.hit("certificate_unchecked", call.node)
    for store in subject.facts.stores:
        target = store.target
        if isinstance(target, ast.Attribute):
            if target.attr == "verify_mode" and store.value.origin.endswith("CERT_NONE"):
                yield subject.hit("certificate_unchecked", store.node)
            elif target.attr == "check_hostname" and store.value.const is False:
                yield subject.hit("hostname_unchecked", store.node)
            elif (
                target.attr == "verify" and store.value.const is False
            ) or target.attr == "_create_default_https_context":
                yield subject.hit("certificate_unchecked", store.node)
    yield from _plain_context(subject)


def _plain_context(subject: Subject) -> Iterator[Hit]:
    """A bare SSLContext verifies nothing until it is told to."""
    told = re.search(
        r"CERT_REQUIRED|check_hostname\s*=\s*True|load_verify_locations|load_default_certs|PROTOCOL_TLS_CLIENT|PROTOCOL_TLS_SERVER|create_default_context",
        subject.source.text,
    )
    for call in subject.facts.calls:
        if call.name == "ssl.SSLContext" and not told and not _OLD_TLS.search(call.arg(0, "protocol").origin):
            yield subject.hit("certificate_unchecked", call.node)


def versions(subject: Subject) -> Iterator[Hit]:
    """Outdated versions of TLS."""
    for call in subject.facts.calls:
        for value in (*call.args, *call.keywords.values()):
            if (
                _OLD_TLS.search(value.origin)
                and ("ssl" in value.origin.lower())
                and not (value.origin.endswith("SSLv23") and re.search(r"OP_NO_TLSv1", subject.source.text))
            ):
                yield subject.hit("old_tls", call.node)
                break
        if call.method == "set_ciphers" and re.search(
            r"(?<!!)(?:RC4|DES|MD5|NULL|EXP|ADH|aNULL)\b", call.arg(0).string
        ):
            yield subject.hit("old_tls", call.node)
    for store in subject.facts.stores:
        if (
            isinstance(store.target, ast.Attribute)
            and store.target.attr in {"minimum_version", "maximum_version", "ssl_version"}
            and _OLD_TLS.search(store.value.origin)
        ):
            yield subject.hit("old_tls", store.node)


def tokens(subject: Subject) -> Iterator[Hit]:
    """Tokens whose signature nobody looks at."""
    for call in subject.facts.calls:
        if call.method in {"loads_unsafe", "load_unsafe", "verify_unsafe"}:
            yield subject.hit("signature_unchecked", call.node)
            continue
        if not re.search(
            r"(?:^|\.)(?:jwt|jose|pyjwt|authlib)\b.*\.(?:decode|process_jwt|get_unverified_claims|get_unverified_header|encode)$",
            call.name,
        ):
            continue
        if call.method in {"get_unverified_claims", "process_jwt"}:
            yield subject.hit("signature_unchecked", call.node)
        elif call.method == "decode":
            options = call.arg(3, "options")
            unverified = any(
                key == "verify_signature" and value.const is False
                for key, value in zip(options.keys, options.items, strict=False)
            )
            none = any(item.string.lower() == "none" for item in call.arg(2, "algorithms").items)
            if (
                unverified
                or none
                or call.arg(-1, "verify").const is False
                or call.arg(2).const is False
                or (call.given(1, "key") and call.arg(1, "key").const is None)
            ) or (not call.given(2, "algorithms") and not call.given(1, "key")):
                yield subject.hit("signature_unchecked", call.node)
        elif call.method == "encode":
            algorithm = call.arg(2, "algorithm")
            if algorithm.string.lower() == "none" or algorithm.const is None:
                yield subject.hit("signature_unchecked", call.node)
    yield from _unsigned(subject)


def _unsigned(subject: Subject) -> Iterator[Hit]:
    """A token taken apart by hand: its middle part is decoded, its signature is left alone."""
    text = subject.source.text
    if re.search(r"hmac|verify|compare_digest|signature\s*[!=]=", text):
        return
    for call in subject.facts.calls:
        if (
            re.fullmatch(r"base64\.\w*decode", call.name)
            and any(
                taint.kind in {Kind.HTTP, Kind.PARAMETER} for value in call.args for taint in value.taints
            )
            and re.search(r"split\(['\"]\.['\"]\)", text)
        ):
            yield subject.hit("signature_unchecked", call.node)
            return


def protocols(subject: Subject) -> Iterator[Hit]:
    """Protocols that send everything in the clear."""
    for call in subject.facts.calls:
        if call.name in _CLEAR:
            address = skeleton(call.arg(0))
            if call.name in {
                "http.client.HTTPConnection",
                "httplib.HTTPConnection",
                "xmlrpc.client.ServerProxy",
            } and re.match(r"(?:http://)?(?:localhost|127\.)|https://|\x00", address):
                continue
            yield subject.hit(
                "cleartext_protocol", call.node, detail=f"{_CLEAR[call.name]} is not encrypted."
            )
        elif (
            call.name == "smtplib.SMTP"
            and "starttls" not in subject.source.text
            and "login" in subject.source.text
        ):
            yield subject.hit(
                "cleartext_protocol", call.node, detail="SMTP is not encrypted without starttls."
            )
        elif _HTTP.match(call.name) or call.name.startswith("urllib.request."):
            yield from _http(subject, call)
        elif (
            call.name in {"ldap.initialize", "ldap3.Server"}
            and skeleton(call.arg(0)).startswith("ldap://")
            and "start_tls" not in subject.source.text
            and re.search(r"bind", subject.source.text)
            and not re.match(r"ldap://(?:localhost|127)", skeleton(call.arg(0)))
        ):
            yield subject.hit(
                "cleartext_protocol", call.node, detail="LDAP is not encrypted without start_tls."
            )


def _http(subject: Subject, call: Call) -> Iterator[Hit]:
    values = [*call.args[:2], *(call.keywords[key] for key in ("url",) if key in call.keywords)]
    for value in values:
        text = skeleton(value)
        if text.startswith("http://") and not _LOCAL.match(text) and text != "http://" + HOLE:
            sends = (
                call.method in {"post", "put", "patch"}
                or "auth" in call.keywords
                or "data" in call.keywords
                or "json" in call.keywords
                or bool(re.search(r"login|auth|token|password|payment|account", text))
            )
            if sends:
                yield subject.hit("cleartext_protocol", call.node)
                return


CHECKS: Final[tuple[Check, ...]] = (certificates, versions, tokens, protocols)
