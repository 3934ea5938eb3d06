"""Which witnesses the log asks: an address and the keys of each, as one line of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from kala.audit.cosignature import Witness
from kala.errors import InvalidArgumentError, VerificationError

_FIELD: Final = "witnesses"
_FORM: Final = "each is `<http or https url> <vkey>`, with a space between"


@dataclass(frozen=True, slots=True)
class WitnessAddress:
    """One witness: where it takes checkpoints, and the keys by which its cosignatures are known."""

    url: str
    keys: Sequence[Witness]

    @property
    def name(self) -> str:
        """Its name, as its keys say it."""
        return self.keys[0].name

    @classmethod
    def parse(cls, text: str) -> WitnessAddress:
        """Reads `<url> <vkey> [<vkey>]`; raises `InvalidArgumentError`."""
        url, *vkeys = text.split() or [""]
        if not url.isprintable():
            raise InvalidArgumentError(_FIELD, _FORM)
        try:
            parts = urlsplit(url)
            is_port = parts.port is None or parts.port > 0
        except ValueError as error:
            raise InvalidArgumentError(_FIELD, f"{_FORM}: {error}") from error
        is_plain = not (parts.query or parts.fragment)
        if parts.scheme not in {"http", "https"} or not parts.hostname or not is_port or not is_plain:
            raise InvalidArgumentError(_FIELD, _FORM)
        try:
            keys = [Witness.parse(vkey) for vkey in vkeys]
        except VerificationError as error:
            raise InvalidArgumentError(_FIELD, f"{parts.hostname}: {error.message}") from error
        if len({key.name for key in keys}) != 1:
            raise InvalidArgumentError(_FIELD, f"{parts.hostname} needs at least one key, all of one name")
        return cls(url.rstrip("/"), keys)


def parse_witnesses(texts: Iterable[str], required: int) -> Sequence[WitnessAddress]:
    """The witnesses of a policy that wants `required` of them; raises `InvalidArgumentError`."""
    witnesses = [WitnessAddress.parse(text) for text in texts]
    if len({witness.name for witness in witnesses}) != len(witnesses):
        raise InvalidArgumentError(_FIELD, "two have one name, and would count as one")
    if required > len(witnesses):
        raise InvalidArgumentError(
            "witnesses_required", f"is {required}, and {len(witnesses)} witnesses are named"
        )
    return witnesses
