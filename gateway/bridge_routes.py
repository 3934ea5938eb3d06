"""The REST routes of every RPC, read from the contracts' descriptors: path templates, verbs, bodies, scopes, guards.

Follows google.api.http (AIP-127) as far as the contracts use it: `{name=entries/*}`, custom verbs, body "*" or none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final

from google.api import annotations_pb2, http_pb2
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from kala.common.v1 import clearance_pb2, options_pb2
from kala.errors import FailedPreconditionError
from services.common.peers import AUDIT, ETHICS, GATEWAY, INFERENCE, TOOLS, TRAINER

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, FileDescriptor, MethodDescriptor

PARTS: Final = (ETHICS, INFERENCE, TOOLS, AUDIT, TRAINER, GATEWAY)

_VARIABLE: Final = re.compile(r"\{([a-z_.]+)(?:=([^}]+))?\}")

SECRET_TYPES: Final = frozenset(
    {clearance_pb2.Clearance.DESCRIPTOR.full_name, clearance_pb2.SealedAction.DESCRIPTOR.full_name}
)
"""What never crosses REST, in or out, at any depth."""


@dataclass(frozen=True, slots=True)
class Binding:
    """One RPC under one verb and path."""

    part: str  # who serves it
    rpc: str  # /package.Service/Method
    verb: str
    template: str
    pattern: re.Pattern[str]
    body: str  # the field that the body fills: "*" for all of them, "" for no body
    scope: int
    request_class: type[Message]
    response_class: type[Message]
    action_class: type[Message] | None  # set on guarded RPCs: what a client sends instead of the request
    sealed_field: str
    is_streaming: bool

    @property
    def has_body(self) -> bool:
        """Whether a request has a body; then it has a query only for the fields that are not in it."""
        return bool(self.body)

    @property
    def kind(self) -> str:
        """The RPC's name in snake case; begins the types of its records."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", self.rpc.rpartition("/")[2]).lower()

    @property
    def input_class(self) -> type[Message]:
        """What a client's JSON is read into."""
        return self.action_class or self.request_class


class Routes:
    """Finds the binding for a request."""

    def __init__(self, bindings: Sequence[Binding]) -> None:
        self.bindings = tuple(bindings)

    def find(self, verb: str, path: str) -> tuple[Binding, Mapping[str, str]] | None:
        """Give the binding and its path variables, or None when no RPC lives at this path under this verb."""
        for binding in self.bindings:
            if binding.verb == verb and (match := binding.pattern.fullmatch(path)) is not None:
                return binding, {_field(name): value for name, value in match.groupdict().items()}
        return None

    def verbs_at(self, path: str) -> list[str]:
        """Give the verbs under which a path exists."""
        return sorted({binding.verb for binding in self.bindings if binding.pattern.fullmatch(path)})


def contract_files(parts: Iterable[str] = PARTS) -> list[FileDescriptor]:
    """Load the descriptors of the parts' contracts."""
    return [import_module(f"kala.{part}.v1.{part}_pb2").DESCRIPTOR for part in parts]


def bindings_of(files: Iterable[FileDescriptor]) -> list[Binding]:
    """List every bridged RPC; INTERNAL ones are left out, and a contract that would leak a clearance is refused."""
    return [
        binding
        for file in files
        for service in file.services_by_name.values()
        for method in service.methods
        if _scope_of(method) not in {options_pb2.SCOPE_INTERNAL, options_pb2.SCOPE_UNSPECIFIED}
        for binding in _bindings_of_method(file.package.split(".")[1], method)
    ]


def compile_template(template: str) -> re.Pattern[str]:
    """Compile a path template; a variable's segments hold no slash and no colon, which begins a custom verb."""
    parts: list[str] = []
    position = 0
    for match in _VARIABLE.finditer(template):
        parts.append(re.escape(template[position : match.start()]))
        segments = re.escape(match[2] or "*").replace(r"\*\*", "(?s:.+)").replace(r"\*", "[^/:]+")
        parts.append(f"(?P<{match[1].replace('.', '__')}>{segments})")
        position = match.end()
    parts.append(re.escape(template[position:]))
    return re.compile("".join(parts))


def _field(group: str) -> str:
    return group.replace("__", ".")


def _scope_of(method: MethodDescriptor) -> int:
    return method.GetOptions().Extensions[options_pb2.scope]


def _bindings_of_method(part: str, method: MethodDescriptor) -> Iterable[Binding]:
    if method.client_streaming:
        raise FailedPreconditionError(
            f"{method.full_name} streams requests, which REST cannot; make it INTERNAL"
        )
    # The stubs of googleapis leave the extension's type open.
    rule: http_pb2.HttpRule = method.GetOptions().Extensions[annotations_pb2.http]  # type: ignore[index]
    for each in (rule, *rule.additional_bindings):
        yield _binding(part, method, each)


def _binding(part: str, method: MethodDescriptor, rule: http_pb2.HttpRule) -> Binding:
    verb = rule.WhichOneof("pattern")
    if verb is None or verb == "custom":
        raise FailedPreconditionError(f"{method.full_name} has no google.api.http path")
    template: str = getattr(rule, verb)
    guard = method.GetOptions().Extensions[options_pb2.guard].action
    _require_no_clearance(method.output_type)
    if not guard:
        _require_no_clearance(method.input_type)
    return Binding(
        part=part,
        rpc=f"/{method.containing_service.full_name}/{method.name}",
        verb=verb.upper(),
        template=template,
        pattern=compile_template(template),
        body=rule.body,
        scope=_scope_of(method),
        request_class=GetMessageClass(method.input_type),
        response_class=GetMessageClass(method.output_type),
        action_class=GetMessageClass(method.input_type.file.pool.FindMessageTypeByName(guard))
        if guard
        else None,
        sealed_field=_sealed_field(method.input_type) if guard else "",
        is_streaming=method.server_streaming,
    )


def _sealed_field(request: Descriptor) -> str:
    sealed = clearance_pb2.SealedAction.DESCRIPTOR.full_name
    for field in request.fields:
        if field.message_type is not None and field.message_type.full_name == sealed:
            return field.name
    raise FailedPreconditionError(f"{request.full_name} is guarded but holds no SealedAction")


def _require_no_clearance(message: Descriptor) -> None:
    """Refuse a contract by which a clearance could come in or go out over REST."""
    seen: set[str] = set()
    waiting = [message]
    while waiting:
        current = waiting.pop()
        if current.full_name in SECRET_TYPES:
            raise FailedPreconditionError(
                f"{message.full_name} holds {current.full_name}, which never crosses REST"
            )
        if current.full_name not in seen:
            seen.add(current.full_name)
            waiting += [field.message_type for field in current.fields if field.message_type is not None]
