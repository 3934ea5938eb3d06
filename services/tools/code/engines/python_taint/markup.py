"""Text from outside that reaches a browser, a header, a log, XML or a sheet."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from services.tools.code.model import Hit
from services.tools.code.python.facts import Call, Scope
from services.tools.code.python.subject import Check, Subject
from services.tools.code.python.values import (
    ANYONE,
    HOLE,
    OUTSIDE,
    REMOTE,
    Kind,
    Label,
    Taint,
    Value,
    skeleton,
)

_RESPONSES: Final = re.compile(
    r"^(?:flask\.(?:make_response|Response)|django\.http\.(?:HttpResponse|StreamingHttpResponse|HttpResponse\w+)|fastapi\.responses\.HTMLResponse|fastapi\.Response"
    r"|werkzeug\.(?:wrappers\.)?Response|aiohttp\.web\.Response|bottle\.HTTPResponse|webob\.Response|pyramid\.response\.Response|sanic\.response\.(?:html|raw)|self\.(?:write|finish|response\.write|response\.out\.write|wfile\.write))$"
)
_MARKUP: Final = frozenset(
    {
        "markupsafe.Markup",
        "django.utils.safestring.mark_safe",
        "django.utils.html.mark_safe",
        "django.utils.safestring.SafeString",
        "wtforms.widgets.HTMLString",
        "django.utils.safestring.SafeText",
    }
)
_TEMPLATES: Final = frozenset(
    {
        "flask.render_template_string",
        "jinja2.Template",
        "jinja2.Environment().from_string",
        "mako.template.Template",
        "django.template.Template",
        "tornado.template.Template",
        "bottle.template",
        "jinja2.sandbox.SandboxedEnvironment().from_string",
        "string.Template",
        "chevron.render",
    }
)
_PLAIN_TYPES: Final = re.compile(r"json|text/plain|csv|octet|image|pdf|xml|download", re.IGNORECASE)
_HTML: Final = re.compile(r"<\s*/?\s*[a-zA-Z!]")
_LOGGERS: Final = re.compile(
    r"^(?:logging|logger|log|LOG|LOGGER|_logger|_log|self\.log(?:ger)?|\w*\.logger|logging\.getLogger\(\)|flask\.Flask\(\)\.logger|flask\.current_app\.logger|app\.logger|syslog|loguru\.logger|structlog\.get_logger\(\))$"
)
_LEVELS: Final = frozenset(
    ["debug", "info", "warning", "warn", "error", "critical", "exception", "log", "fatal", "syslog"]
)
_REDIRECTS: Final = re.compile(
    r"(?:^|\.)(?:redirect|HttpResponseRedirect|HttpResponsePermanentRedirect|RedirectResponse|HTTPFound|HTTPSeeOther|RedirectView)$"
)
_HEADERS: Final = re.compile(r"headers?(?:\[\])?$|^self\.response\.headers", re.IGNORECASE)


def is_log(call: Call) -> bool:
    """Tell whether a call writes to a log."""
    base = call.name.rpartition(".")[0]
    return call.method in _LEVELS and bool(
        _LOGGERS.match(base) or base.endswith((".logger", "getLogger()", "logging"))
    )


def _sends_html(value: Value) -> bool:
    """A text, or what may be one; not a JSON document or a rendered page."""
    return not value.keys and (value.text is not None or value.built or not value.items)


def cross_site_scripting(subject: Subject) -> Iterator[Hit]:
    """Text that is sent to a browser without escaping."""
    flask = subject.facts.imports_any("flask", "bottle", "cherrypy", "web")
    for returned in subject.facts.returns:
        scope = returned.scope
        if not (scope.is_route and flask) or _is_api(scope):
            continue
        value = (
            returned.value.items[0]
            if isinstance(returned.node.value, ast.Tuple) and returned.value.items
            else returned.value
        )
        taints = value.from_(REMOTE, Label.HTML)
        kinds = [taint for taint in taints if taint.kind is not Kind.NETWORK]
        if (
            kinds
            and _sends_html(value)
            and (HOLE in skeleton(value))
            and not re.search(r"json|Response\(\)|^\s*[{\[]", value.origin + skeleton(value)[:1])
        ):
            yield subject.hit("cross_site_scripting", returned.node, kinds)
    for call in subject.facts.calls:
        if _RESPONSES.match(call.name):
            kind = next(
                (
                    call.keywords[key]
                    for key in ("content_type", "mimetype", "media_type")
                    if key in call.keywords
                ),
                call.arg(1) if call.name.startswith("django") else Value(),
            )
            body = (
                call.arg(0)
                if call.args
                else next(
                    (
                        call.keywords[key]
                        for key in ("content", "text", "body", "response")
                        if key in call.keywords
                    ),
                    Value(),
                )
            )
            taints = body.from_(REMOTE, Label.HTML)
            if (
                taints
                and _sends_html(body)
                and not _PLAIN_TYPES.search(kind.string)
                and not _plain_scope(call.scope)
            ):
                yield subject.hit("cross_site_scripting", call.node, taints)
        elif call.name in _MARKUP:
            taints = call.arg(0).from_(ANYONE, Label.HTML)
            if taints:
                yield subject.hit("cross_site_scripting", call.node, taints)
    yield from _printed_pages(subject)
    yield from _built_pages(subject)


def _is_api(scope: Scope) -> bool:
    return any(re.search(r"Resource$|APIView$|ViewSet$", base) for base in scope.bases) or _plain_scope(scope)


def _plain_scope(scope: Scope) -> bool:
    """A function that declares another type of content sends no page."""
    if scope.node is None or isinstance(scope.node, ast.Module):
        return False
    return any(
        isinstance(part, ast.Constant)
        and isinstance(part.value, str)
        and re.fullmatch(
            r"(?:application/(?:json|xml|pdf|octet-stream)|text/(?:plain|csv|xml)|image/\w+)(?:;.*)?",
            part.value,
        )
        for part in ast.walk(scope.node)
    )


def _printed_pages(subject: Subject) -> Iterator[Hit]:
    """A CGI script prints its page."""
    if not subject.facts.imports_any("cgi"):
        return
    for call in subject.facts.calls:
        if call.name == "print":
            for value in call.args:
                taints = value.from_(REMOTE, Label.HTML)
                if taints:
                    yield subject.hit("cross_site_scripting", call.node, taints)


def _built_pages(subject: Subject) -> Iterator[Hit]:
    """A function that builds markup around its parameters, in a file that has to do with the web."""
    for returned in subject.facts.returns:
        value = returned.value
        taints = value.from_(ANYONE, Label.HTML)
        text = skeleton(value)
        if (
            taints
            and value.built
            and re.search(
                r"<\s*(?:html|body|div|p|h[1-6]|script|a|img|span|li|td|input|b|title|iframe)\b",
                text,
                re.IGNORECASE,
            )
        ):
            yield subject.hit("cross_site_scripting", returned.node, taints)


def templates(subject: Subject) -> Iterator[Hit]:
    """Templates made of text from outside."""
    for call in subject.facts.calls:
        if call.name in _TEMPLATES or (
            call.method == "from_string" and "jinja" in call.name.lower() + " ".join(subject.facts.imports)
        ):
            template = call.arg(0, "source")
            taints = template.from_(
                OUTSIDE if call.name in {"string.Template", "bottle.template"} else ANYONE
            )
            if taints:
                yield subject.hit("template_injection", call.node, taints)


def headers(subject: Subject) -> Iterator[Hit]:
    """Headers and cookies made of text from outside."""
    for store in subject.facts.stores:
        if not isinstance(store.target, ast.Subscript):
            continue
        if re.search(
            r"req(?:uest)?\.headers|^headers$|session\.headers", subject.tree.text(store.target.value)
        ):
            continue
        is_response = _HEADERS.search(store.base.origin or "") or (
            "esponse" in store.base.origin and store.key.string[:1].isupper()
        )
        header = subject.tree.text(store.target.value)
        if (
            is_response
            or re.search(r"(?:resp|response|rv|res)\.headers$", header)
            or (re.search(r"^(?:resp|response|res)$", header) and "-" in store.key.string)
        ):
            taints = store.value.from_(REMOTE, Label.HEADER) or store.key.from_(REMOTE, Label.HEADER)
            if taints:
                yield subject.hit("header_injection", store.node, taints)
    for call in subject.facts.calls:
        is_header = call.method in {"send_header", "set_header", "add_header", "setHeader", "putheader"} or (
            call.method in {"add", "set", "setdefault", "append", "extend"}
            and call.receiver.origin.endswith("headers")
        )
        if is_header:
            taints = tuple(taint for value in call.args for taint in value.from_(REMOTE, Label.HEADER))
            if taints:
                yield subject.hit("header_injection", call.node, taints)
        elif call.method == "set_cookie":
            taints = tuple(
                taint
                for value in (call.arg(0, "key"), call.arg(1, "value"))
                for taint in value.from_(REMOTE, Label.HEADER)
            )
            if taints and not call.arg(0, "key").string.lower().startswith(("session", "csrf")):
                yield subject.hit("header_injection", call.node, taints)
        elif "headers" in call.keywords and (_RESPONSES.match(call.name) or call.name.endswith("Response")):
            taints = call.keywords["headers"].from_(REMOTE, Label.HEADER)
            if taints:
                yield subject.hit("header_injection", call.node, taints)


def logs(subject: Subject) -> Iterator[Hit]:
    """Log lines that a caller can forge."""
    for call in subject.facts.calls:
        if is_log(call):
            taints = tuple(
                taint
                for value in call.args
                for taint in value.from_(REMOTE, Label.LOG)
                if taint.kind is not Kind.NETWORK
            )
            if taints:
                yield subject.hit("log_injection", call.node, taints)


def redirects(subject: Subject) -> Iterator[Hit]:
    """Redirects to where the request says."""
    targets: list[tuple[ast.AST, Value]] = []
    for call in subject.facts.calls:
        if _REDIRECTS.search(call.name) or call.method == "redirect":
            targets.append((call.node, call.keywords.get("url", call.arg(0, "location"))))
        elif call.method in {"send_header", "set_header"} and call.arg(0).string.lower() == "location":
            targets.append((call.node, call.arg(1)))
    targets.extend(
        (store.node, store.value) for store in subject.facts.stores if store.key.string.lower() == "location"
    )
    for node, target in targets:
        taints = [taint for taint in target.from_(REMOTE, Label.URL) if not _own_address(taint)]
        if taints and not _fixed_host(target):
            yield subject.hit("open_redirect", node, taints)


def _own_address(taint: Taint) -> bool:
    """The request's own address leads back to this server."""
    return bool(re.search(r"request\.(?:url|base_url|path|full_path|get_full_path)\b", taint.steps[0][1]))


def _fixed_host(target: Value) -> bool:
    """A path of this server, or a literal host with a slash after it."""
    return target.text is not None and bool(re.match(r"/[^/\\\x00]|https?://[^/\x00]+/|\?|#", target.text))


def documents(subject: Subject) -> Iterator[Hit]:
    """XML put together from text, and formulas in sheets."""
    for node, value, _scope in subject.facts.texts:
        text = skeleton(value)
        taints = value.from_(OUTSIDE, Label.XML)
        if taints and re.search(
            r"<\?xml|<(?:user|item|note|order|account|root|entry|record|data|person|message|config|product)s?\b[^>]*>.*\x00",
            text,
            re.IGNORECASE | re.DOTALL,
        ):
            yield subject.hit("xml_injection", node, taints)
    if not subject.facts.imports_any("csv") or re.search(
        r"startswith\(\(?['\"][=+@-]|\[0\] in .*=", subject.source.text
    ):
        return
    for call in subject.facts.calls:
        if call.method in {"writerow", "writerows"}:
            taints = call.arg(0).from_(OUTSIDE, Label.CSV)
            if taints:
                yield subject.hit("csv_injection", call.node, taints)


CHECKS: Final[tuple[Check, ...]] = (cross_site_scripting, templates, headers, logs, redirects, documents)
