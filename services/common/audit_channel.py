"""Opens a service's own way to the log: channel, spool and writer, as its settings name them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

from services.common.audit_client import AuditWriter
from services.common.channel import open_channel
from services.common.secret_keys import load_secret_key
from services.common.spool import Spool
from services.common.tls import TlsFiles


class AuditSettings(Protocol):
    """The settings that lead to the log."""

    @property
    def audit_address(self) -> str | None:
        """Where the log is; None where there is none."""

    @property
    def spool_dir(self) -> Path | None:
        """Where records wait while the log is away; None keeps none."""

    @property
    def spool_key_file(self) -> Path | None:
        """The key that encrypts the spool."""

    @property
    def tls(self) -> TlsFiles | None:
        """The files of this part."""


async def open_audit_writer(
    settings: AuditSettings, stack: AsyncExitStack, *, part: str
) -> AuditWriter | None:
    """Open the writer of the part's own records, which the stack closes; None when the settings name no log."""
    if settings.audit_address is None:
        return None
    spool = None
    if settings.spool_dir is not None and settings.spool_key_file is not None:
        spool = Spool(settings.spool_dir, load_secret_key(settings.spool_key_file))
        stack.callback(spool.close)
    channel = await stack.enter_async_context(
        open_channel(settings.audit_address, peer_name=part, tls=settings.tls)
    )
    return await stack.enter_async_context(AuditWriter(channel, producer_id=part, spool=spool))
