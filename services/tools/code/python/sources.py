"""Where untrusted or sensitive data comes in."""

from __future__ import annotations

import re
from typing import Final

from services.tools.code.python.values import Kind

# Parts of a request that its sender chooses; of any framework's request object.
_REQUEST_PARTS: Final = frozenset(
    [
        "args",
        "form",
        "values",
        "json",
        "data",
        "files",
        "cookies",
        "headers",
        "GET",
        "POST",
        "COOKIES",
        "META",
        "FILES",
        "REQUEST",
        "body",
        "query",
        "query_params",
        "path_params",
        "params",
        "query_string",
        "stream",
        "rel_url",
        "match_info",
        "view_args",
        "full_path",
        "user_agent",
        "referrer",
        "referer",
        "environ",
        "get_json",
        "get_data",
        "get_body",
        "text",
        "post",
        "read",
        "url",
        "base_url",
        "path",
        "path_info",
        "get_full_path",
        "query_arguments",
        "body_arguments",
        "arguments",
        "get_argument",
        "multipart",
        "json_body",
        "matchdict",
        "forms",
        "authorization",
        "raw_post_data",
        "content",
        "input",
        "uri",
        "host",
        "host_url",
        "get",
    ]
)
_UPLOADS: Final = frozenset({"files", "FILES", "file", "UploadFile"})
_REQUESTS: Final = frozenset(
    {
        "flask.request",
        "bottle.request",
        "web.request",
        "sanic.request",
        "falcon.request",
        "self.request",
        "cherrypy.request",
        "pyramid.request",
    }
)
# Modules whose import says that a file answers requests.
WEB: Final = (
    *(
        "flask",
        "django",
        "fastapi",
        "aiohttp",
        "tornado",
        "bottle",
        "sanic",
        "pyramid",
        "falcon",
        "cherrypy",
        "webapp2",
    ),
    *(
        "werkzeug",
        "webob",
        "rest_framework",
        "http.server",
        "cgi",
        "web",
        "hug",
        "connexion",
        "responder",
        "ninja",
    ),
)
_CALLS: Final[dict[str, Kind]] = {
    "input": Kind.LOCAL,
    "raw_input": Kind.LOCAL,
    "sys.stdin.read": Kind.LOCAL,
    "sys.stdin.readline": Kind.LOCAL,
    "sys.stdin.readlines": Kind.LOCAL,
    "sys.stdin.buffer.read": Kind.LOCAL,
    "click.prompt": Kind.LOCAL,
    "argparse.ArgumentParser().parse_args": Kind.LOCAL,
    "argparse.ArgumentParser().parse_known_args": Kind.LOCAL,
    "optparse.OptionParser().parse_args": Kind.LOCAL,
    "os.getenv": Kind.LOCAL,
    "os.environ.get": Kind.LOCAL,
    "getopt.getopt": Kind.LOCAL,
    "cgi.FieldStorage": Kind.HTTP,
    "cgi.parse": Kind.HTTP,
    "web.input": Kind.HTTP,
    "self.get_argument": Kind.HTTP,
    "self.get_query_argument": Kind.HTTP,
    "self.get_body_argument": Kind.HTTP,
    "self.get_arguments": Kind.HTTP,
    "self.get_cookie": Kind.HTTP,
    "urllib.request.urlopen": Kind.NETWORK,
    "requests.get": Kind.NETWORK,
    "requests.post": Kind.NETWORK,
    "requests.request": Kind.NETWORK,
    "httpx.get": Kind.NETWORK,
    "httpx.post": Kind.NETWORK,
    "traceback.format_exc": Kind.EXCEPTION,
    "traceback.format_exception": Kind.EXCEPTION,
    "traceback.format_stack": Kind.EXCEPTION,
    "sys.exc_info": Kind.EXCEPTION,
    "getpass.getpass": Kind.SECRET,
}
_NAMES: Final[dict[str, Kind]] = {
    "sys.argv": Kind.LOCAL,
    "sys.stdin": Kind.LOCAL,
    "os.environ": Kind.LOCAL,
    "cherrypy.request.params": Kind.HTTP,
}
_RECEIVING: Final = frozenset(
    {"recv", "recvfrom", "recv_into", "recvmsg", "receive_text", "receive_json", "receive_bytes"}
)
# Attributes of `self` in the handlers of http.server and socketserver.
_HANDLER_PARTS: Final = frozenset(
    {"self.path", "self.headers", "self.rfile", "self.requestline", "self.command"}
)
_HANDLER_BASES: Final = re.compile(r"(RequestHandler|StreamRequestHandler|DatagramRequestHandler)$")

# Names that say that a value must stay secret; "password_hash" and "token_url" do not.
_SECRET: Final = re.compile(
    r"(?:^|_|\b)(?:pass(?:word|wd|phrase|code)?|pwd|passwd|secret(?:_?key)?|api_?key|apikey|access_?key|private_?key"
    r"|auth_?token|access_?token|refresh_?token|session_?token|credit_?card(?:_?(?:number|no))?|card_?number|cc_?number|cvv|cvc|ssn"
    r"|social_?security(?:_?(?:number|no))?|pin(?:_?code)?|credentials?|user_?pass(?:word)?)\d*(?:_?(?:value|plain|text|str|input|raw))?$",
    re.IGNORECASE,
)
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NOT_SECRET: Final = re.compile(
    r"hash|digest|encrypted|cipher|masked|redacted|_id$|field|label|prompt|length|policy|strength|reset|url|form",
    re.IGNORECASE,
)


def is_request(origin: str) -> bool:
    """Tell whether a dotted path is a request object itself."""
    return origin in _REQUESTS


def kind_of_path(origin: str, bases: tuple[str, ...] = ()) -> Kind | None:
    """Tell what comes out of an attribute or a name, if it is a source."""
    if origin in _NAMES:
        return _NAMES[origin]
    base, _, last = origin.rpartition(".")
    if base in _REQUESTS and last in _REQUEST_PARTS:
        return Kind.UPLOAD if last in _UPLOADS else Kind.HTTP
    if origin in _HANDLER_PARTS and any(_HANDLER_BASES.search(name) for name in bases):
        return Kind.HTTP
    return None


def kind_of_call(name: str) -> Kind | None:
    """Tell what a call returns, if it is a source."""
    if name in _CALLS:
        return _CALLS[name]
    base, _, last = name.rpartition(".")
    if base.removesuffix("()") in _REQUESTS and last in _REQUEST_PARTS:
        return Kind.HTTP
    return Kind.NETWORK if base and last in _RECEIVING else None


def is_secret_name(name: str) -> bool:
    """Tell whether a name says that its value must stay secret."""
    plain = _CAMEL.sub("_", name)
    return bool(_SECRET.search(plain)) and not _NOT_SECRET.search(plain)
