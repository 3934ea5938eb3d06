"""How `/v1/fine_tuning/jobs` stands in the OpenAPI document.  Pure."""

from __future__ import annotations

from typing import Any, Final

from gateway.files.openapi import list_example, list_schema, paging
from gateway.fine_tuning.model import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED, VALIDATING
from gateway.fine_tuning.schema import FineTuningRequest
from gateway.openapi_parts import Json, content, operation, reference

_HEX: Final = "00112233445566778899aabbccddeeff"
_ID: Final = f"ftjob-{_HEX}"
_NUMBERS: Final[Json] = {"batch_size": "auto", "learning_rate_multiplier": "auto", "n_epochs": 3}

_JOB: Final[Json] = {
    "id": _ID,
    "object": "fine_tuning.job",
    "created_at": 1767322500,
    "error": None,
    "fine_tuned_model": "adapters/ft-desk-001122334455@1",
    "finished_at": 1767323500,
    "hyperparameters": _NUMBERS,
    "model": "kala-embedded",
    "organization_id": "default",
    "result_files": [],
    "seed": 0,
    "status": "succeeded",
    "trained_tokens": 12000,
    "training_file": f"file-{_HEX}",
    "validation_file": None,
    "estimated_finish": None,
    "integrations": [],
    "metadata": None,
    "method": {"type": "supervised", "supervised": {"hyperparameters": _NUMBERS}},
    "kala": {
        "training_job": f"trainingJobs/{_HEX}",
        "adapter": "adapters/ft-desk-001122334455@1",
    },
}

_EVENT: Final[Json] = {
    "id": f"ftevent-{_HEX}-4",
    "object": "fine_tuning.job.event",
    "created_at": 1767322600,
    "level": "info",
    "message": "Step 10/100: training loss=1.250",
    "type": "metrics",
    "data": {"step": 10, "total_steps": 100, "train_loss": 1.25},
}

_CHECKPOINT: Final[Json] = {
    "id": f"ftckpt-{_HEX}",
    "object": "fine_tuning.job.checkpoint",
    "created_at": 1767323500,
    "fine_tuned_model_checkpoint": "adapters/ft-desk-001122334455@1",
    "fine_tuning_job_id": _ID,
    "metrics": {"step": 100},
    "step_number": 100,
}

_TEXT: Final[Json] = {"type": ["string", "null"]}
_TIME: Final[Json] = {"type": ["integer", "null"], "description": "Seconds since 1970."}
_WHOLE: Final[Json] = {"type": "integer"}
_OBJECT: Final[Json] = {"type": "object"}


def _object(**properties: Json) -> Json:
    return {"type": "object", "required": list(properties), "properties": properties}


SCHEMAS: Final[dict[str, dict[str, Any]]] = {
    "FineTuningJob": _object(
        id={"type": "string"},
        object={"const": "fine_tuning.job"},
        created_at=_WHOLE,
        error={
            "anyOf": [
                _object(code={"type": "string"}, message={"type": "string"}, param=_TEXT),
                {"type": "null"},
            ]
        },
        fine_tuned_model=_TEXT,
        finished_at=_TIME,
        hyperparameters=_OBJECT,
        model={"type": "string"},
        organization_id={"type": "string"},
        result_files={"type": "array", "items": {"type": "string"}},
        seed=_WHOLE,
        status={"enum": sorted((VALIDATING, QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED))},
        trained_tokens={"type": ["integer", "null"]},
        training_file={"type": "string"},
        validation_file={"type": "null"},
        estimated_finish={"type": "null"},
        integrations={"type": "array"},
        metadata={"type": ["object", "null"], "additionalProperties": {"type": "string"}},
        method=_OBJECT,
        kala=_object(training_job=_TEXT, adapter=_TEXT),
    ),
    "FineTuningEvent": _object(
        id={"type": "string"},
        object={"const": "fine_tuning.job.event"},
        created_at=_WHOLE,
        level={"enum": ["info", "warn", "error"]},
        message={"type": "string"},
        type={"enum": ["message", "metrics"]},
        data={"type": ["object", "null"]},
    ),
    "FineTuningCheckpoint": _object(
        id={"type": "string"},
        object={"const": "fine_tuning.job.checkpoint"},
        created_at=_WHOLE,
        fine_tuned_model_checkpoint={"type": "string"},
        fine_tuning_job_id={"type": "string"},
        metrics=_OBJECT,
        step_number=_WHOLE,
    ),
}


def _request_schema() -> Json:
    schema = FineTuningRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    SCHEMAS.update(schema.pop("$defs", {}))
    return schema


SCHEMAS["FineTuningRequest"] = _request_schema()

_ALL: Final = "/v1/fine_tuning/jobs"
_ONE: Final = "/v1/fine_tuning/jobs/{id}"


def _on_one(verb: str, path: str, name: str, summary: str, answer: Json, *, is_list: bool = False) -> Json:
    described = operation(
        name,
        summary,
        path=path,
        scope="train",
        path_examples={"id": _ID},
        queries=paging(_ID) if is_list else (),
        answer=answer,
    )
    return {verb: described}


_AS_JOB: Final = content(reference("FineTuningJob"), _JOB)

PATHS: Final[dict[str, dict[str, Any]]] = {
    _ALL: {
        "post": operation(
            "createFineTuningJob",
            "Train an adapter on an uploaded file; it is named only when its gate is passed",
            path=_ALL,
            scope="train",
            request=content(
                reference("FineTuningRequest"), {"model": "kala-embedded", "training_file": f"file-{_HEX}"}
            ),
            answer=_AS_JOB,
        ),
        "get": operation(
            "listFineTuningJobs",
            "List jobs, the newest first",
            path=_ALL,
            scope="train",
            queries=paging(_ID),
            answer=content(list_schema("FineTuningJob"), list_example(_JOB)),
        ),
    },
    _ONE: _on_one("get", _ONE, "getFineTuningJob", "Describe a job", _AS_JOB),
    _ONE + "/cancel": _on_one("post", _ONE + "/cancel", "cancelFineTuningJob", "End a job", _AS_JOB),
    _ONE + "/pause": _on_one(
        "post", _ONE + "/pause", "pauseFineTuningJob", "Not possible here: answers 501", _AS_JOB
    ),
    _ONE + "/resume": _on_one(
        "post", _ONE + "/resume", "resumeFineTuningJob", "Not possible here: answers 501", _AS_JOB
    ),
    _ONE + "/events": _on_one(
        "get",
        _ONE + "/events",
        "listFineTuningEvents",
        "List what happened to a job, the newest first",
        content(list_schema("FineTuningEvent"), list_example(_EVENT)),
        is_list=True,
    ),
    _ONE + "/checkpoints": _on_one(
        "get",
        _ONE + "/checkpoints",
        "listFineTuningJobCheckpoints",
        "List what of a job may serve",
        content(list_schema("FineTuningCheckpoint"), list_example(_CHECKPOINT)),
        is_list=True,
    ),
}
