"""What imported names stand for, so that rules can be written with full names."""

from __future__ import annotations

import ast
from typing import Final

# The same thing under several full names; the right-hand side is what rules say.
_SAME: Final = {
    "cPickle": "pickle",
    "_pickle": "pickle",
    "dill": "pickle",
    "cloudpickle": "pickle",
    "Crypto": "Cryptodome",
    "md5.new": "hashlib.md5",
    "md5.md5": "hashlib.md5",
    "sha.new": "hashlib.sha1",
    "urllib2.urlopen": "urllib.request.urlopen",
    "urllib.urlopen": "urllib.request.urlopen",
    "urllib2": "urllib.request",
    "urllib.unquote": "urllib.parse.unquote",
    "urlparse": "urllib.parse",
    "xml.etree.cElementTree": "xml.etree.ElementTree",
    "ElementTree": "xml.etree.ElementTree",
    "psycopg2.extensions.connection": "psycopg2.connect()",
    "jwt.api_jwt": "jwt",
    "html.escape": "html.escape",
    "cgi.escape": "html.escape",
    "markupsafe.escape": "html.escape",
    "flask.escape": "html.escape",
    "jinja2.escape": "html.escape",
    "django.utils.html.escape": "html.escape",
    "werkzeug.secure_filename": "werkzeug.utils.secure_filename",
    "flask.Markup": "markupsafe.Markup",
    "jinja2.Markup": "markupsafe.Markup",
    "pipes.quote": "shlex.quote",
    "commands": "subprocess",
    "ruamel.yaml": "yaml",
    "socketserver": "socketserver",
    "SocketServer": "socketserver",
    "BaseHTTPServer": "http.server",
    "xmlrpclib": "xmlrpc.client",
    "SimpleXMLRPCServer": "xmlrpc.server",
    "quart": "flask",
    "starlette": "fastapi",
}


def imported(nodes: list[ast.Import | ast.ImportFrom]) -> dict[str, str]:
    """Map every name that imports bind, in any scope, to its full name."""
    names: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                local = alias.asname or alias.name.split(".")[0]
                names[local] = canonical(alias.name if alias.asname else local)
        else:
            for alias in node.names:
                names[alias.asname or alias.name] = canonical(f"{node.module or ''}.{alias.name}".lstrip("."))
    return names


def canonical(name: str) -> str:
    """Give the full name that rules use."""
    if name in _SAME:
        return _SAME[name]
    head, dot, tail = name.partition(".")
    if head in _SAME and dot:
        return f"{_SAME[head]}.{tail}"
    parent, dot, last = name.rpartition(".")
    if parent in _SAME and dot:
        return f"{_SAME[parent]}.{last}"
    return name


def modules(nodes: list[ast.Import | ast.ImportFrom]) -> frozenset[str]:
    """Give the full names of all imported modules and members, and their parents."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            full = [canonical(alias.name) for alias in node.names]
        else:
            base = node.module or ""
            full = [canonical(f"{base}.{alias.name}".lstrip(".")) for alias in node.names]
        for name in full:
            parts = name.split(".")
            found.update(".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return frozenset(found)
