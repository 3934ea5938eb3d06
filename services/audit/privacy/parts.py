"""Puts together what keeps persons' content from staying: erasure, late records, redaction and retention."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from kala.audit.note import Signer
from services.audit.config import AuditSettings
from services.audit.log import system_clock
from services.audit.once import OnceRecords
from services.audit.own_records import OwnRecords
from services.audit.privacy.late_content import LateContent
from services.audit.privacy.redaction import PersonalDataFinder
from services.audit.privacy.retention import Clocks, Retention, retaining
from services.audit.privacy.retention_store import RetentionStore
from services.audit.privacy.servicer import AuditPrivacyServicer
from services.audit.privacy.steps import Privacy
from services.audit.privacy.store import PrivacyStore
from services.audit.reading.log_reader import LogReading
from services.audit.storage.stores import LogStore


@dataclass(frozen=True, slots=True)
class PrivacyParts:
    """What the writing and the privacy RPCs need."""

    servicer: AuditPrivacyServicer
    late: LateContent
    finder: PersonalDataFinder | None


@asynccontextmanager
async def keeping_private(
    settings: AuditSettings, store: LogStore, own: OwnRecords, signer: Signer
) -> AsyncIterator[PrivacyParts]:
    """Runs retention beside the service until the context is left; the log must take records already."""
    kept = PrivacyStore(store.engine, store.log_id, clock=system_clock)
    once = OnceRecords(own, LogReading(store.open_reader()))
    privacy = Privacy(kept, once, signer)
    clocks = Clocks(settings.payload_retention_days, settings.entry_retention_days)
    expiring = RetentionStore(store.engine, store.log_id, clock=system_clock)
    try:
        async with retaining(Retention(expiring, once, clocks, clock=system_clock)):
            yield PrivacyParts(
                AuditPrivacyServicer(privacy), LateContent(kept, clock=system_clock), _finder(settings)
            )
    finally:
        await privacy.close()
        await once.close()


def _finder(settings: AuditSettings) -> PersonalDataFinder | None:
    if not settings.redact_pii:
        return None
    # Seconds of importing, and an extra of its own.
    from services.audit.privacy.presidio_finder import PresidioFinder

    return PresidioFinder()
