"""The log as the gateway tells of it: checkpoints and proofs for a follower, entries for the other commands."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kala.errors import InternalError, KalaError, NotFoundError

if TYPE_CHECKING:
    from kala.client import KalaClient

AUDIT: Final = "/kala/v1/audit"


@contextmanager
def gateway(url: str | None, key: str | None, state: Path | None) -> Iterator[KalaClient]:
    """The gateway that a command means."""
    from kala.client import KalaClient
    from kala.target import find_target

    with KalaClient(find_target(url=url, key=key, state=state)) as client:
        yield client


def decoded(value: object, what: str) -> bytes:
    """Bytes of JSON; InternalError when they are none."""
    try:
        return base64.b64decode(str(value or ""), validate=True)
    except binascii.Error as error:
        raise InternalError(f"the gateway's {what} is not base64") from error


class GatewayView:
    """A log as the gateway shows it, to be held against its own signatures."""

    def __init__(self, client: KalaClient) -> None:
        self._client = client

    def newest(self) -> str:
        """The note of the checkpoint that the log publishes: the newest that its witnesses cosigned, if it has some."""
        from kala.audit.report import UnverifiableError

        try:
            return self._client.text(f"{AUDIT}/log/checkpoint")
        except NotFoundError:
            # A gateway that serves no tiles still knows what the log signed last.
            return str(self._ask("checkpoint", {}).get("checkpoint") or "")
        except KalaError as error:
            raise UnverifiableError(f"the log cannot be asked: {error.message}") from error

    def prove(self, old_size: int, new_size: int) -> Sequence[bytes]:
        """The hashes of the consistency proof between two sizes."""
        reply = self._ask("consistency", {"old_size": str(old_size), "new_size": str(new_size)})
        return [decoded(item, "proof") for item in reply.get("hashes") or ()]

    def root(self, size: int) -> bytes | None:
        """The root that the log signed at this size; None when it signed none."""
        from kala.audit.checkpoint import Checkpoint

        try:
            note = str(self._ask("checkpoint", {"size": str(size)}).get("checkpoint"))
            return Checkpoint.parse(note.rpartition("\n\n")[0] + "\n").root
        except KalaError:
            return None

    def _ask(self, what: str, params: Mapping[str, str]) -> Mapping[str, Any]:  # Any: JSON
        from kala.audit.report import UnverifiableError

        try:
            return self._client.call("GET", f"{AUDIT}/{what}", params=params)
        except NotFoundError as error:
            raise UnverifiableError(f"the log gives no {what}: {error.message}") from error
        except KalaError as error:
            raise UnverifiableError(f"the log cannot be asked: {error.message}") from error
