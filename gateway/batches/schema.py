"""What `POST /v1/batches` accepts: OpenAI's request, strictly typed.  Pure."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.batches.model import ENDPOINTS, WINDOW
from gateway.validation import first_error
from kala.errors import InvalidArgumentError

MAX_PAIRS: Final = 16

MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_PAIRS)]


class OutputExpiresAfter(BaseModel):
    """How long output and error file are kept."""

    model_config = ConfigDict(extra="forbid", strict=True)

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000)


class BatchRequest(BaseModel):
    """A batch to make."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input_file_id: str = Field(min_length=1, max_length=64, description="A file uploaded for batches.")
    endpoint: str = Field(
        description=f"One of {', '.join(ENDPOINTS)}.", json_schema_extra={"enum": list(ENDPOINTS)}
    )
    completion_window: Literal["24h"] = Field(description=f"{WINDOW}; then what is left expires.")
    metadata: Metadata | None = None
    output_expires_after: OutputExpiresAfter | None = None

    @property
    def output_life(self) -> timedelta | None:
        """How long output is kept, where it is said."""
        after = self.output_expires_after
        return None if after is None else timedelta(seconds=after.seconds)


def parse_batch_request(body: dict[str, Any]) -> BatchRequest:  # Any: JSON
    """Validate a body; raises InvalidArgumentError that names the field."""
    try:
        request = BatchRequest.model_validate(body)
    except ValidationError as error:
        raise first_error(error, body) from error
    if request.endpoint not in ENDPOINTS:
        raise InvalidArgumentError("endpoint", f"must be one of {', '.join(ENDPOINTS)}")
    return request
