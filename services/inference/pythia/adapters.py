"""The adapters that one loaded model holds ready."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from kala.errors import FailedPreconditionError, VerificationError
from services.common.adapter_weights import WEIGHTS_FILE
from services.inference.backend import AppliedAdapter, BackendFailure
from services.inference.pythia.lora import LoraAdapter, read_pairs
from services.inference.pythia.requests import rejection

if TYPE_CHECKING:
    from services.common.adapter_manifest import VerifiedAdapter
    from services.inference.pythia.engine import Engine

MAX_ADAPTERS: Final = 16
"""Each is some hundredths of its base; more are a sign that none is ever taken out."""

_SAMPLE: Final = [{"role": "user", "content": "Hello"}]


class Adapters:
    """By name; they end with the loaded model that they were read for."""

    def __init__(self) -> None:
        self._held: dict[str, LoraAdapter] = {}

    def applied(self) -> tuple[AppliedAdapter, ...]:
        """Give them as the router sees them."""
        return tuple(AppliedAdapter(adapter.name, adapter.digest) for adapter in self._held.values())

    def chosen(self, names: Sequence[str]) -> tuple[LoraAdapter, ...]:
        """Give these; raises BackendFailure where one has gone, or two want different chat templates."""
        for name in names:
            if name not in self._held:
                raise BackendFailure("ADAPTER_NOT_LOADED", f"no longer has {name} in service")
        chosen = tuple(self._held[name] for name in names)
        if len({adapter.chat_template for adapter in chosen if adapter.chat_template}) > 1:
            raise rejection("these adapters were trained with different chat templates; name one of them")
        return chosen

    def hold(self, adapter: VerifiedAdapter, engine: Engine) -> None:
        """Read a verified adapter for this model; raises VerificationError where it does not fit after all."""
        description, template = adapter.description, ""
        if description.name not in self._held and len(self._held) >= MAX_ADAPTERS:
            raise FailedPreconditionError(
                f"{MAX_ADAPTERS} adapters are loaded already; unload one first", reason="TOO_MANY_ADAPTERS"
            )
        pairs = read_pairs(adapter.files[WEIGHTS_FILE], description.lora, engine.model)
        if description.chat_template:
            template = _template(description.chat_template, adapter.files, engine)
        held = LoraAdapter(description.name, adapter.digest, pairs, template)
        engine.hook(held)
        self._held[description.name] = held

    def drop(self, name: str) -> bool:
        """Forget one; texts under way keep it to their end."""
        return self._held.pop(name, None) is not None


def _template(name: str, files: Mapping[str, bytes], engine: Engine) -> str:
    from jinja2 import TemplateError

    try:
        template = files[name].decode()
        engine.encode(_SAMPLE, template)
    except (UnicodeDecodeError, TemplateError) as error:
        raise VerificationError(f"file {name}: is no chat template: {error}") from error
    return template
