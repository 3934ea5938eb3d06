"""What `POST /v1/fine_tuning/jobs` accepts: OpenAI's request as far as the trainer can do it, strictly typed.  Pure."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.batches.schema import Metadata
from gateway.errors import UNSUPPORTED_PARAMETER
from gateway.validation import first_error
from kala.errors import InvalidArgumentError

_Multiplier = Annotated[float, Field(gt=0, le=100)]
_Epochs = Annotated[int, Field(ge=1, le=50)]
_BatchSize = Annotated[int, Field(ge=1, le=256)]

UNSUPPORTED: Final = {
    "integrations": "is not supported: nothing of a job leaves this machine; read its events instead",
    "validation_file": "is not supported: leave it out, or train with `kala train` and a dataset for validation",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TuningNumbers(_Strict):
    """The optimiser's settings; `auto` is the trainer's own choice."""

    batch_size: _BatchSize | Literal["auto"] = "auto"
    learning_rate_multiplier: _Multiplier | Literal["auto"] = "auto"
    n_epochs: _Epochs | Literal["auto"] = "auto"


class Supervised(_Strict):
    """Supervised fine-tuning."""

    hyperparameters: TuningNumbers | None = None


class TuningMethod(_Strict):
    """How to train."""

    type: Literal["supervised"]
    supervised: Supervised | None = None


class FineTuningRequest(_Strict):
    """A job to make."""

    model: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$", description="A base of the trainer.")
    training_file: str = Field(min_length=1, max_length=64, description="A file uploaded for fine-tuning.")
    hyperparameters: TuningNumbers | None = Field(
        default=None, description="The old place of `method`'s own."
    )
    method: TuningMethod | None = None
    metadata: Metadata | None = None
    seed: int | None = Field(default=None, ge=0, le=2**31 - 1)
    suffix: str | None = Field(default=None, min_length=1, max_length=40, pattern=r"^[a-z0-9-]+$")

    @property
    def numbers(self) -> TuningNumbers:
        """The settings, wherever they stand."""
        supervised = self.method.supervised if self.method else None
        return (supervised and supervised.hyperparameters) or self.hyperparameters or TuningNumbers()


def parse_fine_tuning_request(body: dict[str, Any]) -> FineTuningRequest:  # Any: JSON
    """Validate a body; raises InvalidArgumentError that names the field."""
    for field, problem in UNSUPPORTED.items():
        if body.get(field):
            raise InvalidArgumentError(field, problem, reason=UNSUPPORTED_PARAMETER)
    method = body.get("method")
    if isinstance(method, dict) and str(method.get("type")) in {"dpo", "reinforcement"}:
        raise InvalidArgumentError(
            "method.type",
            "must be 'supervised'; train on preferences with `kala train`",
            reason=UNSUPPORTED_PARAMETER,
        )
    try:
        return FineTuningRequest.model_validate({key: body[key] for key in body if key not in UNSUPPORTED})
    except ValidationError as error:
        raise first_error(error, body) from error
