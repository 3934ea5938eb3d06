"""Names that begin with the replica that holds the thing: "workspaces/<replica>.<32 hex>"."""

from __future__ import annotations

import re
import secrets
from typing import Final

from kala.errors import InvalidArgumentError, UnavailableError

_ID: Final = re.compile(r"[0-9a-f]{32}")
_ID_BYTES: Final = 16


class Names:
    """Makes and reads the names of one collection on one replica."""

    def __init__(self, collection: str, replica: str) -> None:
        self._prefix = collection + "/"
        self._replica = replica

    def new(self) -> tuple[str, str]:
        """A name that nobody can guess, and its 32 hexadecimal digits."""
        number = secrets.token_hex(_ID_BYTES)
        return self.of(number), number

    def of(self, number: str) -> str:
        """The name of these 32 hexadecimal digits."""
        return f"{self._prefix}{self._replica}.{number}"

    def parse(self, field: str, name: str) -> str:
        """The digits of a name; InvalidArgumentError for none, UnavailableError for another replica's."""
        replica, _, number = name.removeprefix(self._prefix).rpartition(".")
        if not name.startswith(self._prefix) or not replica or not _ID.fullmatch(number):
            raise InvalidArgumentError(field, f"must be {self._prefix}<replica>.<32 hexadecimal digits>")
        if replica != self._replica:
            raise UnavailableError(
                f"{name} was held by the replica {replica!r}, this is {self._replica!r}; what that one held is gone with it",
                reason="REPLICA_GONE",
            )
        return number
