"""The layers a setting can come from, each read strictly: environment, `.env`, `kala.yaml` and flags.

Every layer becomes a mapping from field name to `Sourced` value; a name that is nobody's raises InvalidArgumentError
that says so in one line.  Nothing here reads the process: the caller passes the environment, the texts and the flags.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

import yaml

from kala.errors import InvalidArgumentError

_LINK_URL: Final = re.compile(r"(?:tcp|udp|sctp)://.*")
_NUMBER: Final = re.compile(r"[0-9]{1,5}")
_PROTOCOL: Final = re.compile(r"tcp|udp|sctp")
_HOST: Final = re.compile(r"[0-9.]+|[0-9a-f:]+")

_LINKS: Final = tuple(
    (re.compile(rf"(?:[A-Z0-9_]+_)?{name}"), value)
    for name, value in (
        (r"SERVICE_HOST", _HOST),
        (r"SERVICE_PORT(?:_[A-Z0-9_]+)?", _NUMBER),
        (r"PORT", _LINK_URL),
        (r"PORT_\d+_(?:TCP|UDP|SCTP)", _LINK_URL),
        (r"PORT_\d+_(?:TCP|UDP|SCTP)_PROTO", _PROTOCOL),
        (r"PORT_\d+_(?:TCP|UDP|SCTP)_PORT", _NUMBER),
        (r"PORT_\d+_(?:TCP|UDP|SCTP)_ADDR", _HOST),
    )
)
"""Names and values that kubelet injects for each Service of a namespace ("docker links" variables)."""


@dataclass(frozen=True, slots=True)
class Sourced:
    """A raw value and the name of where it came from, as its reader knows it: a variable, a flag or a yaml key."""

    value: object
    origin: str


@dataclass(frozen=True, slots=True)
class Known:
    """What a field may be called in each layer."""

    field: str
    variables: tuple[str, ...]  # the canonical one first, then the seeds' aliases
    is_secret: bool
    is_boolean: bool
    family: str = ""  # prefix of variables that set one key each of a mapping, such as LMSTUDIO_MODEL_<ROLE>

    @property
    def flag(self) -> str:
        """The command line's spelling."""
        return "--" + self.field.replace("_", "-")


Layer = Mapping[str, Sourced]


def is_service_link(suffix: str, value: str) -> bool:
    """Tell whether `KALA_X_<suffix>=value` is one that Kubernetes injects for a Service called kala-x or kala-x-y."""
    return any(name.fullmatch(suffix) and expected.fullmatch(value) for name, expected in _LINKS)


def from_environment(
    environ: Mapping[str, str], known: Sequence[Known], *, prefix: str, section: str, where: str = ""
) -> Layer:
    """Read the variables of one section and their aliases; `where` is added to names in messages, as in ` in .env`."""
    canonical = {field.variables[0]: field for field in known}
    values: dict[str, Sourced] = {}
    for name in sorted(name for name in environ if name.startswith(prefix)):
        field = canonical.get(name)
        # A link is a link even where a field has its name: no setting's value starts with tcp://.
        is_link = is_service_link(name.removeprefix(prefix), environ[name])
        if field is not None and not (is_link and _LINK_URL.match(environ[name])):
            values[field.field] = Sourced(environ[name], name + where)
        elif not is_link:
            raise _unknown(name + where, section, name, list(canonical), shared=prefix)
    for field in known:
        _take_aliases(environ, field, values, where)
        _take_family(environ, field, values, where)
    return values


def _take_aliases(environ: Mapping[str, str], field: Known, values: dict[str, Sourced], where: str) -> None:
    for name in field.variables[1:]:
        if name not in environ:
            continue
        before = values.setdefault(field.field, Sourced(environ[name], name + where))
        if before.value != environ[name]:
            raise InvalidArgumentError(
                name + where, f"differs from {before.origin}, which is the same setting; keep one of them"
            )


def _take_family(environ: Mapping[str, str], field: Known, values: dict[str, Sourced], where: str) -> None:
    if not field.family:
        return
    members = {
        name.removeprefix(field.family).lower(): environ[name]
        for name in sorted(environ)
        if name.startswith(field.family) and name != field.family and environ[name]
    }
    if not members:
        return
    origin = f"{field.family}*{where}"
    if field.field in values:
        raise InvalidArgumentError(
            origin, f"sets the same as {values[field.field].origin}; keep one way of setting it"
        )
    values[field.field] = Sourced(members, origin)


_REPEATED_KEY: Final = "a key comes twice"


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that comes twice; YAML forbids it, and the loader would let the last one win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - the base class's
        """Build a mapping whose keys are all different."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, _REPEATED_KEY, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def from_yaml(
    text: str, known: Sequence[Known], *, section: str, sections: Sequence[str], path: str
) -> Layer:
    """Read one section of a kala.yaml; the file's other sections belong to other processes."""
    try:
        document = yaml.load(text, _StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else path
        is_repeated = getattr(error, "problem", None) == _REPEATED_KEY
        problem = "repeats a key; keep one of them" if is_repeated else "is not valid YAML"
        raise InvalidArgumentError(place, problem) from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise InvalidArgumentError(path, "must hold one mapping per section, such as `ethics:`")
    for key in document:
        if key not in sections:
            raise _unknown(f"{path}: {key}", "kala.yaml", str(key), list(sections))
    body = document.get(section)
    if body is None:
        return {}
    if not isinstance(body, dict):
        raise InvalidArgumentError(f"{path}: {section}", "must be a mapping of settings")
    names = [field.field for field in known]
    for key in body:
        if key not in names:
            raise _unknown(f"{path}: {section}.{key}", section, str(key), names)
    return {key: Sourced(value, f"{path}: {section}.{key}") for key, value in body.items()}


def from_flags(argv: Sequence[str], known: Sequence[Known], *, section: str) -> Layer:
    """Read `--field-name value`, `--field-name=value`, and for switches `--field` and `--no-field`."""
    flags = {field.flag: field for field in known}
    values: dict[str, Sourced] = {}
    words = iter(argv)
    for word in words:
        flag, has_value, value = word.partition("=")
        field = flags.get(flag)
        if field is None and not has_value and flag.startswith("--no-"):
            field = flags.get("--" + flag.removeprefix("--no-"))
            if field is not None and field.is_boolean:
                values[field.field] = Sourced("false", flag)
                continue
            field = None
        if field is None:
            raise _unknown(flag, section, flag, list(flags))
        if field.is_secret:
            raise InvalidArgumentError(
                flag,
                f"is a secret and other users can read flags; set {field.variables[0]} or a file instead",
            )
        values[field.field] = Sourced(value if has_value else _next_value(words, field, flag), flag)
    return values


def _next_value(words: Iterator[str], field: Known, flag: str) -> str:
    if field.is_boolean:
        return "true"
    try:
        return next(words)
    except StopIteration:
        raise InvalidArgumentError(flag, "needs a value") from None


def _unknown(
    origin: str, section: str, name: str, candidates: Sequence[str], *, shared: str = ""
) -> InvalidArgumentError:
    # What all names share says nothing about which one was meant.
    by_ending = {candidate.removeprefix(shared): candidate for candidate in candidates}
    closest = get_close_matches(name.removeprefix(shared), by_ending, n=1)
    hint = f"; did you mean {by_ending[closest[0]]}?" if closest else ""
    return InvalidArgumentError(origin, f"is not a setting of {section}{hint}")
