"""What a checkpoint holds, as tensors and numbers; no pickles."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kala.errors import DataLossError
from services.trainer.training.recipe import Work
from services.trainer.training.world import whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from services.trainer.training.checkpoints import Checkpoint, Write

WEIGHTS: Final = "weights.safetensors"
OPTIMIZER: Final = "optimizer.safetensors"
REFERENCE: Final = "reference.safetensors"
STATE: Final = "state.json"

# Unknown to every stub: torch's optimisers are used through a handful of calls.
Untyped = Any


@dataclass(slots=True)
class Position:
    """How far a run is; the order of rows and all randomness follow from it and the seed."""

    fingerprint: str
    step: int = 0
    """Steps taken over all stages."""
    stage: int = 0
    stage_step: int = 0
    tokens: int = 0
    """Tokens that bore loss."""
    loss: float | None = None
    validation_loss: float | None = None
    seconds: float = 0.0
    """Time in steps."""
    resumes: int = 0


def fingerprint(work: Work) -> str:
    """Tell apart runs that may not go on from each other's checkpoints."""
    digest = hashlib.sha256()
    told = [work.base_name, work.lora, work.quantization, work.precision, work.seed]
    told += [item for stage in work.stages for item in (stage.recipe, *_told(stage.datasets))]
    digest.update("\n".join(map(repr, told)).encode())
    for path in sorted({d.directory for stage in work.stages for d in stage.datasets}):
        for name in ("manifest.json", "train.jsonl"):
            if (path / name).is_file():
                with (path / name).open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
                break
    return digest.hexdigest()


def _told(datasets: Any) -> list[Any]:  # what is repeated into the digest, whatever it is
    return [(dataset.name, dataset.use, dataset.weight) for dataset in datasets]


def clean_name(name: str) -> str:
    """A parameter's name as PEFT's files have it, whatever wraps the model."""
    for part in ("_orig_mod.", "module."):
        name = name.removeprefix(part)
    name = name.removeprefix("model.") if name.startswith("model.base_model.") else name
    return name.replace(".modules_to_save.default", "").replace(".default", "")


def trained(model: Untyped) -> dict[str, torch.Tensor]:
    """The parameters that are trained, by clean name."""
    return {clean_name(name): value for name, value in model.named_parameters() if value.requires_grad}


def files_of(
    position: Position, model: Untyped, optimizer: Untyped, reference: torch.Tensor | None
) -> dict[str, Write]:
    """The files of a checkpoint; every worker must call it, one writes."""
    from safetensors.torch import save_file

    parameters = trained(model)
    weights = whole(parameters.items())
    moments = whole(
        (f"{name}/{key}", value)
        for name, parameter in parameters.items()
        for key, value in sorted(optimizer.state.get(parameter, {}).items())
    )
    text = json.dumps(asdict(position), indent=1)
    files: dict[str, Write] = {
        WEIGHTS: lambda path: save_file(weights, path),
        OPTIMIZER: lambda path: save_file(moments, path),
        STATE: lambda path: _put(path, text),
    }
    if reference is not None:
        kept = reference.cpu().clone()
        files[REFERENCE] = lambda path: save_file({"likelihoods": kept}, path)
    return files


def read_position(checkpoint: Checkpoint) -> Position:
    """Raises DataLossError for a state of another release."""
    try:
        raw = json.loads((checkpoint.directory / STATE).read_bytes())
        return Position(**{item.name: raw[item.name] for item in fields(Position)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataLossError(f"{checkpoint.directory.name}: was written by another release") from error


def restore_weights(checkpoint: Checkpoint, model: Untyped) -> None:
    """Put the trained parameters back."""
    _copy_into(trained(model), _read(checkpoint.directory / WEIGHTS))


def restore_optimizer(checkpoint: Checkpoint, model: Untyped, optimizer: Untyped) -> None:
    """Put the optimiser's moments back; its learning rate follows from the step."""
    saved = _read(checkpoint.directory / OPTIMIZER)
    for name, parameter in trained(model).items():
        state = {
            key.removeprefix(f"{name}/"): value for key, value in saved.items() if key.startswith(f"{name}/")
        }
        if state:
            # AdamW counts its steps on the CPU.
            optimizer.state[parameter] = {
                key: value if key == "step" else _like(value, parameter) for key, value in state.items()
            }


def restore_reference(checkpoint: Checkpoint) -> torch.Tensor | None:
    """The reference's likelihoods of a preference stage."""
    path = checkpoint.directory / REFERENCE
    return _read(path)["likelihoods"] if path.is_file() else None


def _copy_into(parameters: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor]) -> None:
    import torch

    if parameters.keys() != saved.keys():
        raise DataLossError("the checkpoint holds other parameters than are trained")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(_like(saved[name], parameter))


def _like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """On the parameter's device, and in parts where it is held in parts."""
    if hasattr(parameter, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        sharded: Untyped = parameter
        return distribute_tensor(value.to(parameter.device), sharded.device_mesh, sharded.placements)
    return value.to(parameter.device)


def _read(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataLossError(f"{path.name}: cannot be read") from error


def _put(path: Path, text: str) -> None:
    path.write_text(text)
