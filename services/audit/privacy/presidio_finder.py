"""Finds personal data with Presidio's patterns and checksums; no model and no network. Needs the extra `audit-pii`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from kala.errors import FailedPreconditionError
from services.audit.privacy.redaction import Span

if TYPE_CHECKING:
    from presidio_analyzer import EntityRecognizer

# Presidio's own scale: a pattern alone that also fits harmless numbers is below, one with a checksum far above.
MIN_SCORE: Final = 0.4


class PresidioFinder:
    """E-mail addresses, telephone, card, account, social security and passport numbers, addresses of networks and coins."""

    def __init__(self) -> None:
        """Raises `FailedPreconditionError` when the extra is not installed."""
        try:
            self._recognizers = _recognizers()
        except ImportError as error:
            raise FailedPreconditionError(
                "KALA_AUDIT_REDACT_PII needs Presidio: install the extra audit-pii"
            ) from error

    def find(self, text: str) -> Iterable[Span]:
        """Where something stands that is surely or probably personal."""
        for recognizer in self._recognizers:
            for found in recognizer.analyze(text, recognizer.supported_entities, None):  # type: ignore[arg-type] # patterns read no artifacts
                if found.score >= MIN_SCORE:
                    yield found.start, found.end


def _recognizers() -> list[EntityRecognizer]:
    import tldextract
    from presidio_analyzer import predefined_recognizers as known

    # It would fetch the list of domains; the one that it brings is enough.
    top_domains = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

    class EmailRecognizer(known.EmailRecognizer):
        """As Presidio's, without the network."""

        def validate_result(self, pattern_text: str) -> bool:
            """Whether the domain ends as domains do."""
            return top_domains(pattern_text).top_domain_under_public_suffix != ""

    return [
        EmailRecognizer(),
        known.PhoneRecognizer(),
        known.CreditCardRecognizer(),
        known.IbanRecognizer(),
        known.UsSsnRecognizer(),
        known.IpRecognizer(),
        known.MacAddressRecognizer(),
        known.CryptoRecognizer(),
        known.EsNifRecognizer(),
        known.ItFiscalCodeRecognizer(),
        known.PlPeselRecognizer(),
        known.NhsRecognizer(),
    ]
