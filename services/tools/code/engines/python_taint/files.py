"""Names of files and addresses from outside; uploads, archives and XML documents."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from services.tools.code.model import Hit
from services.tools.code.python.facts import Call
from services.tools.code.python.sources import WEB
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

_OPENERS: Final = frozenset(
    [
        "open",
        "io.open",
        "codecs.open",
        "os.open",
        "os.remove",
        "os.unlink",
        "os.rmdir",
        "os.mkdir",
        "os.makedirs",
        "os.rename",
        "os.replace",
        "os.listdir",
        "os.scandir",
        "os.walk",
        "os.chmod",
        "os.chown",
        "os.symlink",
        "os.link",
        "shutil.rmtree",
        "shutil.copy",
        "shutil.copyfile",
        "shutil.copy2",
        "shutil.move",
        "shutil.copytree",
        "flask.send_file",
        "django.http.FileResponse",
        "fastapi.responses.FileResponse",
        "aiohttp.web.FileResponse",
        "bottle.static_file",
        "zipfile.ZipFile",
        "tarfile.open",
        "linecache.getlines",
        "linecache.getline",
        "fileinput.input",
        "glob.glob",
        "runpy.run_path",
        "file",
        "execfile",
        "aiofiles.open",
        "PIL.Image.open",
        "pandas.read_csv",
        "numpy.load",
        "configparser.ConfigParser().read",
        "os.stat",
        "os.truncate",
    ]
)
_PATH_METHODS: Final = frozenset(
    [
        "read_text",
        "read_bytes",
        "write_text",
        "write_bytes",
        "open",
        "unlink",
        "mkdir",
        "rmdir",
        "iterdir",
        "touch",
        "rename",
        "replace",
    ]
)
_FETCHERS: Final = re.compile(
    r"^(?:requests|httpx|aiohttp\.ClientSession\(\)|requests\.(?:Session|session)\(\)|httpx\.(?:Async)?Client\(\)|urllib3\.PoolManager\(\)|self\.session)\.(?:get|post|put|patch|delete|head|options|request|stream)$"
    r"|^urllib\.request\.(?:urlopen|urlretrieve)$|^(?:http\.client|httplib)\.HTTPS?Connection$|^urllib3\.request$|^pycurl\.Curl\(\)\.setopt$|^socket\.create_connection$|^wget\.download$|^pandas\.read_(?:html|json)$"
)
_SOCKETS: Final = frozenset({"connect", "connect_ex"})
_XML: Final = re.compile(
    r"^(?:lxml\.etree|lxml\.objectify)\.(?:parse|fromstring|XML|iterparse|fromstringlist|XMLID)$|^xml\.sax\.(?:parse|parseString)$|^xml\.dom\.(?:minidom|pulldom)\.(?:parse|parseString)$"
    r"|^xml\.etree\.ElementTree\.(?:parse|fromstring|XML|iterparse|fromstringlist|ElementTree\(\)\.parse)$|^xml\.dom\.expatbuilder\.parse(?:String)?$|^xmltodict\.parse$|^libxml2\.(?:parseDoc|readDoc)$|^xml\.sax\.make_parser\(\)\.parse$"
)
_UNPACKERS: Final = frozenset({"extractall", "extract", "unpack_archive"})


def paths(subject: Subject) -> Iterator[Hit]:
    """Files whose names come from outside."""
    for call in subject.facts.calls:
        if call.name in _OPENERS or (
            call.method in {"send_file", "download_file"}
            and call.name.startswith("self.") is False
            and call.name in _OPENERS
        ):
            values = (
                call.args[:2]
                if call.name.startswith(("shutil.", "os.re", "os.sym", "os.link"))
                else call.args[:1]
            )
            values += tuple(
                call.keywords[key]
                for key in ("file", "path", "filename", "path_or_file", "filepath")
                if key in call.keywords
            )
            if call.name == "bottle.static_file" and call.given(1, "root"):
                continue
        elif call.method in _PATH_METHODS and call.receiver.origin.startswith("pathlib."):
            values = (call.receiver,)
        elif call.name == "flask.send_from_directory":
            values = call.args[:1]
        else:
            continue
        yield from _path(subject, call, values)


def _path(subject: Subject, call: Call, values: tuple[Value, ...]) -> Iterator[Hit]:
    for value in values:
        taints = value.from_(OUTSIDE, Label.PATH)
        strong = [
            taint for taint in taints if taint.kind in REMOTE or (taint.kind is Kind.LOCAL and _joined(value))
        ]
        if not strong and _joined(value):
            strong = list(value.from_(ANYONE, Label.PATH)) if _served(subject, call) else []
        strong = [taint for taint in strong if not _is_content(taint, value)]
        if strong:
            is_upload = any(taint.kind is Kind.UPLOAD for taint in strong)
            yield subject.hit("upload_name" if is_upload else "path_traversal", call.node, strong)
            return


def _joined(value: Value) -> bool:
    """A folder and a name."""
    text = skeleton(value)
    return (
        value.built
        and "/" in text
        and not text.startswith(HOLE + "/" + HOLE + "/")
        and not text.endswith(tuple(f"/{c}" for c in "abcdefghijklmnopqrstuvwxyz"))
    )


def _served(subject: Subject, call: Call) -> bool:
    """A parameter counts where the file has to do with the web and the name is joined to a fixed folder."""
    return subject.facts.imports_any(*WEB) and not call.scope.is_route


def _is_content(taint: Taint, value: Value) -> bool:
    """An uploaded file object itself is opened as content, not by name."""
    return (
        taint.kind is Kind.UPLOAD
        and not any(
            isinstance(step, ast.Attribute) and step.attr in {"filename", "name"} for step, _ in taint.steps
        )
        and not value.built
    )


def uploads(subject: Subject) -> Iterator[Hit]:
    """Uploaded files that are stored as they come."""
    text = subject.source.text
    checked = bool(
        re.search(
            r"allowed|ALLOWED|splitext|\.suffix|\.endswith\(|rsplit\('\.'|rsplit\(\"\.\"|mimetype|content_type|imghdr|magic|whitelist|FileExtensionValidator|FileAllowed|Image\.open",
            text,
        )
    )
    for call in subject.facts.calls:
        receiver = call.receiver
        is_file = any(taint.kind is Kind.UPLOAD for taint in receiver.taints)
        if call.method == "save" and is_file:
            name = call.arg(0, "dst")
            taints = name.from_({Kind.UPLOAD, Kind.HTTP}, Label.PATH)
            if taints:
                yield subject.hit("upload_name", call.node, taints)
            if not checked:
                yield subject.hit("unrestricted_upload", call.node, receiver.from_({Kind.UPLOAD}))
        elif call.method in {"write", "write_bytes", "copyfileobj", "save"} and not checked:
            content = tuple(taint for value in call.args for taint in value.from_({Kind.UPLOAD}))
            if content:
                yield subject.hit("unrestricted_upload", call.node, content)


def requests(subject: Subject) -> Iterator[Hit]:
    """Addresses from outside that this server fetches."""
    for call in subject.facts.calls:
        if _FETCHERS.match(call.name):
            values = (
                (call.keywords["url"],)
                if "url" in call.keywords
                else call.args[1:2]
                if call.method in {"request", "stream", "setopt"}
                else call.args[:1]
            )
            for value in values:
                taints = value.from_(REMOTE, Label.URL) or (
                    value.from_({Kind.LOCAL}, Label.URL)
                    if subject.facts.imports_any("flask", "django")
                    else ()
                )
                if (
                    not taints
                    and not _fixed(value)
                    and call.scope.name
                    and re.search(
                        r"fetch|proxy|download|webhook|preview|import|load|url|image|avatar|callback",
                        call.scope.name,
                        re.IGNORECASE,
                    )
                ):
                    taints = (
                        value.from_(ANYONE, Label.URL)
                        if subject.facts.imports_any("flask", "django", "fastapi")
                        else ()
                    )
                if taints and not _fixed(value):
                    yield subject.hit("server_side_request_forgery", call.node, taints)
                    break
        elif call.method in _SOCKETS and "socket" in call.name and call.args:
            taints = call.args[0].from_(REMOTE, Label.URL)
            if taints:
                yield subject.hit("server_side_request_forgery", call.node, taints)
        elif call.method == "bind" and "socket" in call.name and call.args:
            taints = call.args[0].from_(OUTSIDE)
            if taints:
                yield subject.hit("resource_injection", call.node, taints)


def _fixed(value: Value) -> bool:
    """Scheme and host are literal, so only the path comes from outside."""
    text = skeleton(value)
    return bool(re.match(r"[a-z]+://[^/\x00?#]+[/?#]", text))


def xml(subject: Subject) -> Iterator[Hit]:
    """XML that is parsed with what it brings."""
    if subject.facts.imports_any("defusedxml"):
        return
    for call in subject.facts.calls:
        if not _XML.match(call.name):
            continue
        lenient = call.name.startswith(("lxml.", "libxml2"))
        parser = call.arg(1, "parser")
        if lenient and parser.origin.endswith("XMLParser()") and _hardened(subject):
            continue
        if lenient and parser.origin.endswith("HTMLParser()"):
            continue
        taints = call.arg(0).from_(ANYONE, Label.XML) if lenient else call.arg(0).from_(OUTSIDE, Label.XML)
        sax = call.name.startswith(("xml.sax", "xml.dom.pulldom")) and _entities_on(subject)
        if taints or sax or (lenient and parser.origin.endswith("XMLParser()")):
            yield subject.hit("xml_external_entity", call.node, taints)


def _hardened(subject: Subject) -> bool:
    return any(
        call.name.endswith("XMLParser") and call.arg(-1, "resolve_entities").const is False
        for call in subject.facts.calls
    )


def _entities_on(subject: Subject) -> bool:
    return any(
        call.method == "setFeature" and "external" in call.arg(0).origin and call.arg(1).number == 1
        for call in subject.facts.calls
    )


def archives(subject: Subject) -> Iterator[Hit]:
    """Archives that are unpacked without a look at their names."""
    text = subject.source.text
    checked = bool(
        re.search(
            r"is_relative_to|commonp|realpath|abspath|\.resolve\(|startswith\(|\.\.['\"]? (?:not )?in |isabs|is_within|safe_|data_filter|members\s*=",
            text,
        )
    )
    for call in subject.facts.calls:
        if call.method not in _UNPACKERS or not re.search(
            r"zip|tar|shutil|archive", call.name + call.receiver.origin, re.IGNORECASE
        ):
            continue
        if call.arg(-1, "filter").string in {"data", "tar"} or (
            checked and call.name != "shutil.unpack_archive"
        ):
            continue
        source = call.arg(0) if call.name == "shutil.unpack_archive" else call.receiver
        if call.method == "extract" and not source.taints and not call.arg(0).taints:
            continue
        yield subject.hit("archive_traversal", call.node, source.from_(ANYONE))


CHECKS: Final[tuple[Check, ...]] = (paths, uploads, requests, xml, archives)
