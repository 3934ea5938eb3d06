"""The workers that train one model together: who this one is, and the few things that they do in step.

Whoever starts several workers joins them first (`torch.distributed`); one alone needs nothing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kala.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch

# Unknown to every stub: torch's wrappers are used through a handful of calls.
Untyped = Any


@dataclass(frozen=True, slots=True)
class World:
    """Tells one worker among all."""

    rank: int = 0
    size: int = 1
    device: str = ""
    """`cpu`, `cuda:0`; empty for a GPU if there is one."""

    @property
    def leads(self) -> bool:
        """Whether this worker writes what there is one of."""
        return self.rank == 0

    def torch_device(self) -> torch.device:
        """Give the device that this worker computes on."""
        import torch

        if self.device:
            return torch.device(self.device)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def share(self, sequences: Sequence[Any]) -> Sequence[Any]:
        """Give this worker's part of a step."""
        return sequences[self.rank :: self.size]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up over all workers, in place."""
        if self.size > 1:
            import torch.distributed

            torch.distributed.all_reduce(tensor)
        return tensor

    def wait(self) -> None:
        """Wait for all workers."""
        if self.size > 1:
            import torch.distributed

            torch.distributed.barrier()

    def require_batch(self, batch_size: int, *, parallelism: str) -> None:
        """Raises InvalidArgumentError unless every worker has its part of each step."""
        uneven = parallelism == "fsdp" and batch_size % self.size
        if batch_size < self.size or uneven:
            raise InvalidArgumentError(
                "hyperparameters.batch_size",
                f"must be {'a multiple of' if uneven else 'at least'} the number of workers, {self.size}",
            )


def wrap(module: Untyped, world: World, *, parallelism: str, precision: str) -> Untyped:
    """Let the workers' gradients meet; one alone keeps its module."""
    if world.size == 1:
        return module
    if parallelism == "fsdp":
        return _sharded(module, precision)
    from torch.nn.parallel import DistributedDataParallel

    device = world.torch_device()
    ids = [device] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)


def without_meeting(module: Untyped, *, until_last: bool) -> AbstractContextManager[None]:
    """Let gradients add up in this worker until the last pass of a step."""
    if until_last and hasattr(module, "no_sync"):
        context: AbstractContextManager[None] = module.no_sync()
        return context
    if hasattr(module, "set_requires_gradient_sync"):
        module.set_requires_gradient_sync(not until_last)
    return nullcontext()


def whole(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Gather parts that workers hold into whole tensors on the CPU; every worker must call it."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors:
        gather = getattr(tensor, "full_tensor", None)
        found[name] = (tensor if gather is None else gather()).detach().cpu().contiguous()
    return found


def _sharded(module: Untyped, precision: str) -> Untyped:
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16) if precision == "bf16" else MixedPrecisionPolicy()
    )
    for layer in (part for part in module.modules() if type(part).__name__ == "GPTNeoXLayer"):
        fully_shard(layer, mp_policy=policy)
    fully_shard(module, mp_policy=policy)
    return module
