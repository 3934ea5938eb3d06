"""Settings that are unsafe as they are written: debug, cookies, origins, permissions, parsers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from services.tools.code.model import Hit
from services.tools.code.python.facts import Call
from services.tools.code.python.subject import Check, Subject
from services.tools.code.python.values import ANYONE, Value, skeleton

# A backlog that no kernel keeps.
_MAX_BACKLOG: Final = 10_000
_WORLD: Final = 0o007
_WORLD_WRITE: Final = 0o002
_GROUP_WRITE: Final = 0o020
_SENSITIVE_COOKIE: Final = re.compile(
    r"sess|token|auth|user|sid|login|jwt|remember|secret|pass|account|admin|id$", re.IGNORECASE
)
_SENSITIVE_FILE: Final = re.compile(
    r"secret|passw|shadow|private|\.key|\.pem|id_rsa|credential|token|config|\.env|\.ssh|backup|wallet",
    re.IGNORECASE,
)


def debug_servers(subject: Subject) -> Iterator[Hit]:
    """Servers and programs that are started for debugging."""
    for call in subject.facts.calls:
        if call.method in {"run", "run_simple", "listen", "run_app"} and not call.name.startswith(
            ("asyncio", "subprocess", "uvicorn.Config")
        ):
            if (
                call.keywords.get("debug", Value()).const is True
                or call.keywords.get("use_debugger", Value()).const is True
            ):
                yield subject.hit("debug_mode", call.node)
        elif (
            (
                call.name
                in {
                    "flask.Flask",
                    "fastapi.FastAPI",
                    "tornado.web.Application",
                    "fastapi.applications.Starlette",
                    "sanic.Sanic",
                    "aiohttp.web.Application",
                }
                and call.keywords.get("debug", Value()).const is True
            )
            or call.name
            in {
                "cgitb.enable",
                "pdb.set_trace",
                "breakpoint",
                "ipdb.set_trace",
                "pudb.set_trace",
            }
            or (call.method == "from_mapping" and call.keywords.get("DEBUG", Value()).const is True)
        ):
            yield subject.hit("debug_mode", call.node)


def debug_settings(subject: Subject) -> Iterator[Hit]:
    """Settings that switch debugging on."""
    for store in subject.facts.stores:
        if store.value.const is True and (
            (
                isinstance(store.target, ast.Subscript)
                and store.key.string in {"DEBUG", "PROPAGATE_EXCEPTIONS", "DEBUG_TB_ENABLED"}
            )
            or (
                isinstance(store.target, ast.Attribute)
                and store.target.attr == "debug"
                and re.search(r"app|bottle|config|web", subject.tree.text(store.target.value))
            )
            or (
                isinstance(store.target, ast.Name)
                and store.target.id in {"DEBUG", "TEMPLATE_DEBUG", "DEBUG_PROPAGATE_EXCEPTIONS"}
                and not store.scope.name
                and subject.facts.imports_any("django", "flask")
            )
            or (
                isinstance(store.target, ast.Name)
                and store.target.id == "DEBUG"
                and "INSTALLED_APPS" in subject.source.text
            )
        ):
            yield subject.hit("debug_mode", store.node)


def debug_answers(subject: Subject) -> Iterator[Hit]:
    """Answers that show the process's own state."""
    for node in subject.tree.all(ast.Call):
        name = subject.tree.text(node.func)
        if (
            re.search(r"(?:jsonify|Response|make_response|return|dumps)$", name)
            and re.search(
                r"os\.environ\b(?!\.get|\[)|\b(?:globals|locals)\(\)|app\.config\b(?!\[|\.get)|sys\.path\b|platform\.\w+\(\)",
                subject.tree.text(node),
            )
            and subject.tree.function_around(node) is not None
        ):
            yield subject.hit("debug_output", node)


def cookies(subject: Subject) -> Iterator[Hit]:
    """Cookies without their flags, and sessions without an end."""
    for call in subject.facts.calls:
        if call.method in {"set_cookie", "set_signed_cookie"} and not call.starred:
            secure, http_only = call.arg(-1, "secure"), call.arg(-1, "httponly")
            named = _SENSITIVE_COOKIE.search(call.arg(0, "key").string) or (
                not call.arg(0, "key").string and call.given(1, "value")
            )
            if named and (
                secure.const is False
                or http_only.const is False
                or "secure" not in call.keywords
                or "httponly" not in call.keywords
            ):
                yield subject.hit("cookie_flags", call.node)
    for store in subject.facts.stores:
        key = store.key.string or (store.target.id if isinstance(store.target, ast.Name) else "")
        if (
            (
                re.fullmatch(r"(?:SESSION|CSRF|REMEMBER)_COOKIE_(?:SECURE|HTTPONLY)", key)
                and store.value.const is False
            )
            or (
                re.fullmatch(r"SESSION_COOKIE_SAMESITE", key)
                and (store.value.string.lower() == "none" or store.value.const is None)
            )
            or (
                isinstance(store.target, ast.Subscript)
                and isinstance(store.target.value, ast.Subscript)
                and store.key.string.lower() in {"secure", "httponly"}
                and store.value.const is False
            )
        ):
            yield subject.hit("cookie_flags", store.node)
        elif key == "PERMANENT_SESSION_LIFETIME" and re.search(
            r"days=(?:3[1-9]\d*|[4-9]\d|\d{3,})|weeks=|years", subject.tree.text(store.node)
        ):
            yield subject.hit("permanent_session", store.node)
        elif (key == "WTF_CSRF_ENABLED" and store.value.const is False) or (
            key in {"WTF_CSRF_CHECK_DEFAULT", "CSRF_ENABLED"} and store.value.const is False
        ):
            yield subject.hit("csrf_disabled", store.node)
    for call in subject.facts.calls:
        if (
            re.search(r"(?:^|\.)jwt\.encode$", call.name)
            and call.args
            and call.args[0].keys
            and not re.search(r"['\"]exp['\"]|exp=", subject.source.text)
        ):
            yield subject.hit("permanent_session", call.node)


def cross_site(subject: Subject) -> Iterator[Hit]:
    """Requests of other sites that are taken, and answers that they may read."""
    for holder in (*subject.tree.functions(), *subject.tree.all(ast.ClassDef)):
        for decorator in holder.decorator_list:
            if re.search(r"csrf_exempt|csrf\.exempt", subject.tree.text(decorator)):
                yield subject.hit("csrf_disabled", decorator)
    for call in subject.facts.calls:
        if (
            call.method in {"CORS", "cross_origin"}
            or call.name.endswith("CORSMiddleware")
            or call.method == "add_middleware"
        ):
            origins = next(
                (
                    call.keywords[key]
                    for key in ("origins", "allow_origins", "resources")
                    if key in call.keywords
                ),
                Value(),
            )
            wild = (
                origins.string == "*"
                or any(item.string == "*" for item in origins.items)
                or any(inner.string == "*" for item in origins.items for inner in item.items)
            )
            credentials = any(
                call.keywords.get(key, Value()).const is True
                for key in ("supports_credentials", "allow_credentials")
            )
            if wild or (
                credentials
                and call.method in {"CORS", "cross_origin"}
                and not origins.known
                and not origins.items
            ):
                yield subject.hit("open_cors", call.node)
        elif (
            call.method in {"send_header", "set_header", "add_header", "add"}
            and call.arg(0).string.lower() == "access-control-allow-origin"
            and (call.arg(1).string == "*" or call.arg(1).from_(ANYONE))
        ):
            yield subject.hit("open_cors", call.node)
    for store in subject.facts.stores:
        if (
            store.key.string.lower() == "access-control-allow-origin"
            and (store.value.string == "*" or store.value.from_(ANYONE))
        ) or (
            isinstance(store.target, ast.Name)
            and store.target.id in {"CORS_ORIGIN_ALLOW_ALL", "CORS_ALLOW_ALL_ORIGINS"}
            and store.value.const is True
        ):
            yield subject.hit("open_cors", store.node)


def permissions(subject: Subject) -> Iterator[Hit]:
    """Files that everyone may read or change."""
    for call in subject.facts.calls:
        mode: Value | None = None
        if call.name in {"os.chmod", "os.lchmod", "os.fchmod"}:
            mode = call.arg(1, "mode")
        elif call.method == "chmod" and "pathlib" in call.name:
            mode = call.arg(0, "mode")
        elif call.name in {"os.mkdir", "os.makedirs", "os.mkfifo", "os.mknod"} and (
            len(call.args) > 1 or "mode" in call.keywords
        ):
            mode = call.arg(1, "mode")
        elif call.name == "os.open" and (len(call.args) > 2 or "mode" in call.keywords):
            mode = call.arg(2, "mode")
        elif call.name == "os.umask":
            mask = call.arg(0).const
            if isinstance(mask, int) and mask & _WORLD_WRITE == 0:
                yield subject.hit("open_umask", call.node)
            continue
        elif call.name in {
            "os.system",
            "subprocess.run",
            "subprocess.call",
            "subprocess.Popen",
            "subprocess.check_call",
        }:
            text = " ".join(item.string for item in call.arg(0).items) or skeleton(call.arg(0))
            if re.search(
                r"\bchmod\s+(?:-R\s+)?(?:0?[0-7]?[0-7][2367][2367]|a\+w|a\+rwx|o\+w|ugo\+)", text
            ) or re.search(r"\bchmod\s+(?:-R\s+)?0?777", text):
                yield subject.hit("open_permissions", call.node)
            continue
        if mode is not None and _is_open(mode, skeleton(call.arg(0)), call):
            yield subject.hit("open_permissions", call.node)


def _is_open(mode: Value, path: str, call: Call) -> bool:
    if isinstance(mode.const, int) and not isinstance(mode.const, bool):
        if mode.const & _WORLD_WRITE:
            return True
        if _SENSITIVE_FILE.search(path + call.scope.name) and mode.const & _WORLD:
            return True
        return bool(mode.const & _GROUP_WRITE and mode.const & _WORLD and "chmod" in call.name)
    text = ast.unparse(call.node)
    return bool(re.search(r"S_IWOTH|S_IRWXO", text) or ("S_IROTH" in text and _SENSITIVE_FILE.search(path)))


def parsers(subject: Subject) -> Iterator[Hit]:
    """Templates without escaping, and XML parsers that read external entities."""
    for call in subject.facts.calls:
        if call.name in {"jinja2.Environment", "jinja2.environment.Environment"}:
            escape = call.keywords.get("autoescape")
            if (escape is None and not call.starred) or (escape is not None and escape.const is False):
                yield subject.hit("autoescape_off", call.node)
        elif call.name.endswith(("etree.XMLParser", "objectify.XMLParser")) and not call.name.startswith(
            "xml."
        ):
            entities = call.keywords.get("resolve_entities")
            loads = (
                any(call.keywords.get(key, Value()).const is True for key in ("load_dtd", "dtd_validation"))
                or call.keywords.get("no_network", Value()).const is False
            )
            if (
                (entities is not None and entities.const is True)
                or loads
                or (
                    entities is None
                    and not call.starred
                    and call.keywords.get("huge_tree", Value()).const is True
                )
            ):
                yield subject.hit("entity_parser", call.node)
        elif (
            call.method == "setFeature"
            and re.search(r"feature_external_(?:ges|pes)$", call.arg(0).origin)
            and call.arg(1).number == 1
        ) or (
            call.name.endswith("etree.XSLTAccessControl")
            and any(value.const is True for value in call.keywords.values())
        ):
            yield subject.hit("entity_parser", call.node)
        elif (
            call.name in {"mako.template.Template", "mako.lookup.TemplateLookup"}
            and "default_filters" not in call.keywords
        ) or (
            call.name in {"tornado.template.Loader", "tornado.template.Template"}
            and "autoescape" in call.keywords
            and call.keywords["autoescape"].const is None
        ):
            yield subject.hit("autoescape_off", call.node)


def listening(subject: Subject) -> Iterator[Hit]:
    """Ports that others can take or reach, and methods that they can call."""
    for call in subject.facts.calls:
        if (
            call.method == "setsockopt"
            and any(value.origin.endswith("SO_REUSEPORT") for value in call.args)
            and call.arg(2).number == 1
        ):
            yield subject.hit("reused_port", call.node)
        elif (
            call.method == "bind"
            and call.args
            and call.args[0].items
            and call.args[0].items[0].string in {"0.0.0.0", "::"}  # noqa: S104 - what is looked for
        ) or (
            call.method == "bind"
            and call.args
            and call.args[0].items
            and call.args[0].items[0].const == ""
            and "socket" in call.name
        ):
            yield subject.hit("all_interfaces", call.node)
        elif (call.method == "register_instance" and (call.arg(1, "allow_dotted_names").const is True)) or (
            call.method == "register_function"
            and re.fullmatch(r"os\.\w+|subprocess\.\w+|eval|exec|open", call.arg(0).origin)
        ):
            yield subject.hit("exposed_methods", call.node)
        elif call.name.startswith("docker.") and call.arg(-1, "privileged").const is True:
            yield subject.hit("too_much_privilege", call.node)


def limits(subject: Subject) -> Iterator[Hit]:
    """Input of any size that is read and kept."""
    for node in subject.tree.all(ast.While):
        if not (isinstance(node.test, ast.Constant) and node.test.value):
            continue
        text = subject.tree.text(node)
        grows = re.search(r"(\w+) \+= .*\.recv\(|\.append\(.*\.recv\(|(\w+) = \2 \+ .*recv\(", text) or (
            re.search(r"= \w+\.recv\(", text) and re.search(r"\w+ \+= |\.append\(", text)
        )
        if grows and not re.search(r"len\(|max|limit|size", text, re.IGNORECASE):
            yield subject.hit("unbounded_input", node)
    for call in subject.facts.calls:
        if (
            (call.method == "listen" and call.arg(0).number > _MAX_BACKLOG)
            or (
                call.method == "read"
                and call.receiver.origin == "self.rfile"
                and re.search(r"Content-Length", subject.source.text, re.IGNORECASE)
                and not re.search(r"MAX|max|limit|>", subject.source.text)
            )
            or (
                call.name in {"threading.Thread", "multiprocessing.Process"}
                and subject.tree.enclosing(call.node, ast.While) is not None
                and subject.facts.imports_any("socket")
                and not re.search(r"Semaphore|max_workers|MAX_|limit", subject.source.text)
            )
        ):
            yield subject.hit("unbounded_input", call.node)
    for function in subject.tree.functions():
        body = subject.tree.text(function)
        if ".decompress(" in body and "request" in body and "max_length" not in body:
            yield subject.hit("unbounded_input", function)


CHECKS: Final[tuple[Check, ...]] = (
    debug_servers,
    debug_settings,
    debug_answers,
    cookies,
    cross_site,
    permissions,
    parsers,
    listening,
    limits,
)
