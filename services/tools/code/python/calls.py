"""What library calls do to the data that goes through them: pass it on, make it safe, or neither."""

from __future__ import annotations

import re
from typing import Final

from services.tools.code.python.values import EVERYTHING, TEXT, Label

_L = Label

# Full names of calls that make their result safe for some uses.
_CLEARING: Final[dict[str, frozenset[Label]]] = {
    "str": frozenset({_L.NOSQL}),
    "int": TEXT,
    "float": TEXT,
    "bool": EVERYTHING,
    "len": EVERYTHING,
    "hash": EVERYTHING,
    "id": EVERYTHING,
    "ord": TEXT,
    "uuid.UUID": EVERYTHING,
    "ipaddress.ip_address": TEXT,
    "ipaddress.ip_network": TEXT,
    "ipaddress.IPv4Address": TEXT,
    "decimal.Decimal": TEXT,
    "datetime.datetime.strptime": TEXT,
    "html.escape": frozenset({_L.HTML, _L.XML}),
    "bleach.clean": frozenset({_L.HTML, _L.XML}),
    "bleach.linkify": frozenset({_L.HTML}),
    "nh3.clean": frozenset({_L.HTML}),
    "xml.sax.saxutils.escape": frozenset({_L.HTML, _L.XML}),
    "xml.sax.saxutils.quoteattr": frozenset({_L.HTML, _L.XML}),
    "urllib.parse.quote": frozenset({_L.HTML, _L.HEADER, _L.LOG, _L.SHELL}),
    "urllib.parse.quote_plus": frozenset({_L.HTML, _L.HEADER, _L.LOG, _L.SHELL, _L.PATH, _L.NAME}),
    "urllib.parse.urlencode": frozenset({_L.HTML, _L.HEADER, _L.LOG}),
    "shlex.quote": frozenset({_L.SHELL}),
    "re.escape": frozenset({_L.REGEX}),
    "werkzeug.utils.secure_filename": frozenset({_L.PATH, _L.NAME, _L.HEADER, _L.LOG}),
    "werkzeug.security.safe_join": frozenset({_L.PATH, _L.NAME}),
    "werkzeug.utils.safe_join": frozenset({_L.PATH, _L.NAME}),
    "flask.safe_join": frozenset({_L.PATH, _L.NAME}),
    "django.utils._os.safe_join": frozenset({_L.PATH, _L.NAME}),
    "django.utils.text.get_valid_filename": frozenset({_L.PATH, _L.NAME}),
    "os.path.basename": frozenset({_L.PATH}),
    "ntpath.basename": frozenset({_L.PATH}),
    "ldap.filter.escape_filter_chars": frozenset({_L.LDAP}),
    "ldap.dn.escape_dn_chars": frozenset({_L.LDAP}),
    "ldap3.utils.conv.escape_filter_chars": frozenset({_L.LDAP}),
    "ldap3.utils.dn.escape_rdn": frozenset({_L.LDAP}),
    "ast.literal_eval": frozenset({_L.CODE}),
    "repr": frozenset({_L.LOG, _L.HEADER}),
    "ascii": frozenset({_L.LOG, _L.HEADER}),
    "json.dumps": frozenset({_L.LOG, _L.HEADER}),
    "base64.b64encode": frozenset({_L.HTML, _L.LOG, _L.HEADER, _L.SQL, _L.PATH, _L.SHELL}),
    "base64.urlsafe_b64encode": frozenset({_L.HTML, _L.LOG, _L.HEADER, _L.SQL, _L.PATH, _L.SHELL}),
    "psycopg2.extensions.quote_ident": frozenset({_L.SQL}),
    "bson.objectid.ObjectId": EVERYTHING,
    "bson.ObjectId": EVERYTHING,
}

# Full names of calls whose result holds what they are given.
_PASSING: Final = frozenset(
    [
        "str",
        "bytes",
        "bytearray",
        "list",
        "tuple",
        "set",
        "dict",
        "sorted",
        "reversed",
        "iter",
        "next",
        "enumerate",
        "zip",
        "map",
        "filter",
        "format",
        "repr",
        "min",
        "max",
        "sum",
        "copy.copy",
        "copy.deepcopy",
        "os.path.join",
        "os.path.abspath",
        "os.path.realpath",
        "os.path.normpath",
        "os.path.expanduser",
        "os.path.expandvars",
        "os.path.split",
        "os.path.splitext",
        "os.path.dirname",
        "os.fspath",
        "os.fsdecode",
        "pathlib.Path",
        "pathlib.PurePath",
        "urllib.parse.unquote",
        "urllib.parse.unquote_plus",
        "urllib.parse.urljoin",
        "urllib.parse.urlparse",
        "urllib.parse.urlsplit",
        "urllib.parse.parse_qs",
        "urllib.parse.parse_qsl",
        "urllib.request.Request",
        "json.loads",
        "json.load",
        "ujson.loads",
        "base64.b64decode",
        "base64.urlsafe_b64decode",
        "base64.decodebytes",
        "base64.standard_b64decode",
        "base64.b32decode",
        "codecs.decode",
        "binascii.unhexlify",
        "zlib.decompress",
        "gzip.decompress",
        "textwrap.dedent",
        "string.Template",
        "io.StringIO",
        "io.BytesIO",
        "itertools.chain",
        "''.join",
        "unicode",
        "memoryview",
        "collections.OrderedDict",
        "typing.cast",
        "unicodedata.normalize",
        "html.unescape",
        "sqlalchemy.text",
        "sqlalchemy.sql.text",
        "sqlalchemy.sql.expression.text",
        "psycopg2.sql.SQL",
        "django.utils.encoding.force_str",
        "django.utils.encoding.smart_str",
        "markupsafe.Markup",
        "django.utils.safestring.mark_safe",
        "flask.make_response",
        "django.http.HttpResponse",
        "fastapi.responses.HTMLResponse",
        "xml.sax.saxutils.unescape",
        "yaml.safe_load",
        "csv.reader",
        "csv.DictReader",
        "open",
        "io.open",
        "codecs.open",
        "re.sub",
        "re.split",
    ]
)
# Methods whose result holds what their object holds, and for some also what they are given.
_PASSING_METHODS: Final = frozenset(
    [
        "format",
        "format_map",
        "join",
        "replace",
        "strip",
        "lstrip",
        "rstrip",
        "split",
        "rsplit",
        "splitlines",
        "lower",
        "upper",
        "title",
        "capitalize",
        "casefold",
        "encode",
        "decode",
        "get",
        "getlist",
        "get_all",
        "getvalue",
        "getfirst",
        "pop",
        "items",
        "values",
        "keys",
        "copy",
        "read",
        "readline",
        "readlines",
        "readall",
        "partition",
        "rpartition",
        "removeprefix",
        "removesuffix",
        "zfill",
        "ljust",
        "rjust",
        "center",
        "expandtabs",
        "translate",
        "swapcase",
        "popitem",
        "setdefault",
        "to_dict",
        "group",
        "groups",
        "groupdict",
        "joinpath",
        "with_suffix",
        "with_name",
        "resolve",
        "absolute",
        "as_posix",
        "expanduser",
        "substitute",
        "safe_substitute",
        "json",
        "text",
        "getvalue",
        "hex",
        "parse_args",
        "add_argument",
        "vars",
        "dict",
        "model_dump",
        "tobytes",
        "isoformat",
        "__getitem__",
        "__str__",
        "getheader",
        "get_payload",
        "stream",
        "chunks",
        "iter_content",
    ]
)
_WITH_ARGUMENTS: Final = frozenset(
    [
        "format",
        "format_map",
        "join",
        "replace",
        "joinpath",
        "with_name",
        "substitute",
        "safe_substitute",
        "get",
        "setdefault",
    ]
)


def cleared_by(name: str) -> frozenset[Label]:
    """Tell what the result of a call is safe for, whatever went in."""
    return _CLEARING.get(name, frozenset())


def passes(name: str) -> bool:
    """Tell whether a call's result holds its arguments."""
    return name in _PASSING or name in _CLEARING


def method_passes(method: str) -> bool:
    """Tell whether a method's result holds what its object holds."""
    return method in _PASSING_METHODS


def method_takes(method: str) -> bool:
    """Tell whether a method's result holds its arguments too."""
    return method in _WITH_ARGUMENTS


def cleared_by_arguments(name: str, method: str, first: object, second: object) -> frozenset[Label]:
    """Tell what a replacement makes a text safe for: line breaks taken out, or all but plain characters."""
    if method == "replace" and isinstance(first, str) and first in {"\n", "\r", "\r\n"}:
        return frozenset({_L.LOG, _L.HEADER})
    if name in {"re.sub", "re.subn"} and isinstance(first, str) and second is not None:
        if re.fullmatch(r"\[\^[\w\\ .@-]+\]\+?", first):
            return TEXT
        if re.search(r"\\[rn]|\\x0[ad]|\[\^|\\s|\\W", first):
            return frozenset({_L.LOG, _L.HEADER})
    return frozenset()
