"""Rights per path of a workspace: the longest matching zone decides, and nothing matching means no right.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from services.tools.policy.model import RefusedByPolicyError, Zone

# Where a host directory is shown; read-only whatever the zones say.
HOST: Final = "host"
_NOTHING: Final = Zone("")


class Zones:
    """What the policy's zones allow; fulfils `services.tools.files.model.Rights`."""

    def __init__(self, zones: Iterable[Zone]) -> None:
        self._zones = {zone.path: zone for zone in zones}

    def may_read(self, path: str) -> bool:
        return self._deciding(path).read

    def may_write(self, path: str) -> bool:
        return not _is_host(path) and self._deciding(path).write

    def may_delete(self, path: str) -> bool:
        return not _is_host(path) and self._deciding(path).delete

    def require_read(self, path: str) -> None:
        """Raises RefusedByPolicyError unless the path may be read and listed."""
        if not self.may_read(path):
            raise _refused(path, "read", self._readable())

    def require_write(self, path: str) -> None:
        """Raises RefusedByPolicyError unless the path may be made and changed."""
        if not self.may_write(path):
            raise _refused(path, "write", self._writable())

    def require_delete(self, path: str) -> None:
        """Raises RefusedByPolicyError unless the path may be deleted."""
        if not self.may_delete(path):
            raise _refused(path, "delete", self._deletable())

    def _deciding(self, path: str) -> Zone:
        here = path
        while here:
            if here in self._zones:
                return self._zones[here]
            here = here.rpartition("/")[0]
        return self._zones.get("", _NOTHING)

    def _readable(self) -> list[str]:
        return [path for path, zone in self._zones.items() if zone.read]

    def _writable(self) -> list[str]:
        return [path for path, zone in self._zones.items() if zone.write]

    def _deletable(self) -> list[str]:
        return [path for path, zone in self._zones.items() if zone.delete]


def _is_host(path: str) -> bool:
    return path == HOST or path.startswith(HOST + "/")


def _refused(path: str, right: str, allowed: list[str]) -> RefusedByPolicyError:
    where = ", ".join(sorted(zone or "the workspace" for zone in allowed)) or "nothing"
    shown = path or "the workspace itself"
    return RefusedByPolicyError(
        f"the policy gives no right to {right} {shown}; it gives that right to {where}",
        reason="ZONE_REFUSED",
    )
