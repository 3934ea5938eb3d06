"""Code that means something else than it says: comparisons, keys that come twice, what is no longer kept."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

from services.tools.code.model import Hit
from services.tools.code.python.subject import Check, Subject

_OBSOLETE: Final = frozenset(
    [
        "os.popen2",
        "os.popen3",
        "os.popen4",
        "os.spawnvp",
        "os.tmpnam",
        "os.tempnam",
        "os.getlogin_r",
        "os.errno",
        "string.letters",
        "string.maketrans",
        "string.uppercase",
        "string.lowercase",
        "string.join",
        "string.replace",
        "string.atoi",
        "string.strip",
        "time.clock",
        "platform.linux_distribution",
        "platform.dist",
        "inspect.getargspec",
        "inspect.formatargspec",
        "ssl.wrap_socket",
        "ssl.match_hostname",
        "ssl.RAND_pseudo_bytes",
        "asyncio.async",
        "asyncio.coroutine",
        "cgi.parse_qs",
        "cgi.parse_qsl",
        "html.parser.HTMLParser().unescape",
        "threading._sleep",
        "array.array().tostring",
        "array.array().fromstring",
        "base64.encodestring",
        "base64.decodestring",
        "xml.etree.ElementTree.Element().getchildren",
        "imp.load_module",
        "imp.load_source",
        "imp.find_module",
        "imp.reload",
        "collections.Mapping",
        "collections.MutableMapping",
        "collections.Iterable",
        "collections.Callable",
        "collections.Sequence",
        "fractions.gcd",
        "gettext.lgettext",
        "unittest.makeSuite",
        "logging.warn",
        "sys.setcheckinterval",
        "sys.getcheckinterval",
        "tarfile.filemode",
        "datetime.datetime.utcfromtimestamp_r",
        "email.Utils.formatdate",
        "sys.maxint",
        "os.getcwdu",
        "operator.isCallable",
        "operator.sequenceIncludes",
        "rfc822.Message",
        "thread.start_new_thread",
        "commands.getoutput",
        "types.StringType",
        "tempfile.template",
        "random.jumpahead",
        "sha.new",
        "md5.new",
        "dircache.listdir",
        "posixfile.open",
        "numpy.asscalar",
        "numpy.random.random_integers",
        "pkgutil.ImpImporter",
        "locale.format",
        "binascii.b2a_hqx",
        "binascii.a2b_hqx",
        "binascii.rlecode_hqx",
        "crypt.crypt",
        "flask.ext.sqlalchemy.SQLAlchemy",
        "flask.json.JSONEncoder",
        "django.conf.urls.url",
        "django.utils.encoding.force_text",
        "django.utils.translation.ugettext",
        "django.core.urlresolvers.reverse",
        "django.shortcuts.render_to_response",
        "pandas.Panel",
        "distutils.core.setup",
        "asyncore.dispatcher",
        "smtpd.SMTPServer",
    ]
)
_OBSOLETE_MODULES: Final = frozenset(
    {
        "imp",
        "md5",
        "sha",
        "asyncore",
        "asynchat",
        "smtpd",
        "rexec",
        "Bastion",
        "popen2",
        "commands",
        "mimetools",
        "mimify",
        "rfc822",
        "multifile",
        "MimeWriter",
        "sets",
        "dl",
        "posixfile",
        "whrandom",
        "regex_syntax",
        "statvfs",
        "cfmfile",
        "parser",
        "symbol",
        "formatter",
        "macpath",
        "binhex",
        "pipes",
        "distutils",
    }
)


def meanings(subject: Subject) -> Iterator[Hit]:
    """Identity instead of equality, and keys that come twice."""
    for node in subject.tree.all(ast.Compare):
        for operator, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(operator, ast.Is | ast.IsNot) and (_is_contents(node.left) or _is_contents(right)):
                yield subject.hit("identity_comparison", node)
    yield from _without_equality(subject)
    for mapping in subject.tree.all(ast.Dict):
        seen: set[tuple[type, object]] = set()
        for key in mapping.keys:
            if isinstance(key, ast.Constant):
                item = (type(key.value), key.value)
                if item in seen:
                    yield subject.hit("duplicate_key", key)
                seen.add(item)
    yield from _association_lists(subject)


def obsolete(subject: Subject) -> Iterator[Hit]:
    """Functions and modules that are no longer kept."""
    for call in subject.facts.calls:
        if call.name in _OBSOLETE:
            yield subject.hit("obsolete_function", call.node)
    for statement in subject.tree.imports():
        if isinstance(statement, ast.ImportFrom) and statement.level:
            continue
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        else:
            names = [
                statement.module or "",
                *(f"{statement.module}.{alias.name}" for alias in statement.names),
            ]
        if any(name.split(".")[0] in _OBSOLETE_MODULES or name in _OBSOLETE for name in names):
            yield subject.hit("obsolete_function", statement)


def _is_contents(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str | bytes | int | float) and not isinstance(node.value, bool)
    return isinstance(node, ast.Tuple | ast.List | ast.Dict | ast.Set | ast.JoinedStr)


def _without_equality(subject: Subject) -> Iterator[Hit]:
    """Objects of a class of this file that defines no equality are compared with `==` or `is`."""
    plain = {
        node.name
        for node in subject.tree.all(ast.ClassDef)
        if not node.bases
        and not node.decorator_list
        and not any(
            isinstance(part, ast.FunctionDef) and part.name in {"__eq__", "__cmp__"} for part in node.body
        )
        and not any(isinstance(part, ast.Assign) for part in node.body)
    }
    for compare in subject.facts.compares:
        if isinstance(compare.operator, ast.Eq | ast.NotEq) and all(
            value.origin.endswith("()") and value.origin[:-2] in plain
            for value in (compare.left, compare.right)
        ):
            yield subject.hit("identity_comparison", compare.node)


def _association_lists(subject: Subject) -> Iterator[Hit]:
    """Pairs that are appended to a list which is later searched by its first part, with no look for the key before."""
    for node in subject.tree.all(ast.List):
        keys = [
            item.elts[0].value
            for item in node.elts
            if isinstance(item, ast.Tuple | ast.List)
            and len(item.elts) == 2
            and isinstance(item.elts[0], ast.Constant)
            and isinstance(item.elts[0].value, str)
        ]
        if len(keys) == len(node.elts) >= 2 and len(set(keys)) < len(keys):
            yield subject.hit("duplicate_key", node)
    for call in subject.tree.all(ast.Call):
        if not (isinstance(call.func, ast.Attribute) and call.func.attr == "append" and len(call.args) == 1):
            continue
        pair = call.args[0]
        holder = subject.tree.function_around(call)
        if (
            isinstance(pair, ast.Tuple | ast.List)
            and len(pair.elts) == 2
            and isinstance(pair.elts[0], ast.Name)
            and re.fullmatch(r"key|k", pair.elts[0].id)
            and holder is not None
        ) and not re.search(r"\bin\b|==", subject.tree.text(holder)):
            yield subject.hit("duplicate_key", call)


CHECKS: Final[tuple[Check, ...]] = (meanings, obsolete)
