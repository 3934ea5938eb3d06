"""What inference itself writes into the transparency log: calls that it turned away, and administrative ones.

The record of a chat is the gateway's, which alone knows what was asked and what was released.
"""

from __future__ import annotations

from typing import Final

from kala.common.v1 import options_pb2
from kala.inference.v1 import inference_pb2
from services.common.service_records import ServiceRecords, rpcs_of_scopes

ADMINISTRATIVE: Final = rpcs_of_scopes(inference_pb2.DESCRIPTOR, options_pb2.SCOPE_ADMIN)


class Records(ServiceRecords):
    """Writes inference's own records."""
