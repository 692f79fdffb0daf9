"""Devices and processes, by Lightning Fabric: data-parallel training on one or several machines.

Each process takes its slice of every batch, gradients are averaged, and batch norm uses the
statistics of all processes (:class:`JoinedBatchNorm`), so the steps do not depend on the number of
processes. Only the first process writes files and messages. Lightning Fabric is imported when it is
first used: probes train without it.
"""

import atexit
import logging
import os
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from patchifier.config import RequestError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Item = TypeVar("Item")
PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "64": "64-true"}  # ours -> Fabric's


def launch(
    device: str = "auto", *, devices: int = 1, nodes: int = 1, precision: str = "32"
) -> "Fabric":
    """Find the devices, start the other processes, and return the Fabric.

    `device` is an accelerator's name, as Lightning Fabric knows it. The first of `devices`
    processes starts the others with its own command line. Where torchrun or SLURM has started them
    all, their numbers count. On each of `nodes` machines the same command is started, with
    NODE_RANK, MASTER_ADDR and MASTER_PORT set, or by torchrun or SLURM. With the precision "bf16"
    weights stay in float32.

    Raises
    ------
    RequestError
        If there are not that many devices, or their number is not what started this process.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    # Kernels of one channel have two names for the same order in memory, which is no fault and
    # costs nothing.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    fabric = _connected(device, devices, nodes, precision)
    fabric.launch()
    if fabric.world_size > 1:
        atexit.register(_part)
    return fabric


def require_devices(device: str = "auto", *, devices: int = 1, nodes: int = 1) -> None:
    """Refuse what :func:`launch` would refuse, before anything is written."""
    _connected(device, devices, nodes, "32")


def _connected(device: str, devices: int, nodes: int, precision: str) -> "Fabric":
    """Find the devices; no other process is started yet."""
    import lightning_fabric

    if distributed.is_torchelastic_launched():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    strategy = "ddp" if devices * nodes > 1 else "auto"
    try:
        return lightning_fabric.Fabric(
            accelerator=device,
            strategy=strategy,
            devices=devices,
            num_nodes=nodes,
            precision=PRECISIONS[precision],  # type: ignore[arg-type]
        )
    except (
        ValueError,
        RuntimeError,
        lightning_fabric.utilities.exceptions.MisconfigurationException,
    ) as error:
        raise RequestError(
            f"cannot use {devices} device{'s' * (devices > 1)} {device!r} on {nodes} "
            f"machine{'s' * (nodes > 1)}: {error}"
        ) from error


def _part() -> None:
    """Shut gloo down before Python exits, because its threads would abort the process.

    Other backends are not shut down: they may wait for a process that has failed.
    """
    if distributed.is_initialized() and distributed.get_backend() == "gloo":
        distributed.destroy_process_group()


def precision_of(fabric: "Fabric") -> str:
    """Return the precision that Fabric computes in, by its own name for it."""
    return str(fabric._precision.precision)


def use_float32(fabric: "Fabric") -> None:
    """Set the precision of a Fabric that has set up nothing yet to float32."""
    from lightning_fabric.plugins import Precision

    fabric._strategy.precision = fabric._precision = Precision()


def expected_rank_slice(batch: int, *, devices: int = 1, nodes: int = 1) -> slice:
    """Return the slice of the batch that this process will take, before processes are launched."""
    size = int(os.environ.get("WORLD_SIZE") or devices * nodes)
    node, local = (int(os.environ.get(name) or 0) for name in ("NODE_RANK", "LOCAL_RANK"))
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or node * devices + local)
    each = require_even(batch, size)
    return slice(rank * each, (rank + 1) * each)


def rank_slice(fabric: "Fabric", batch: int) -> slice:
    """Return the slice of the batch that this process takes; see :func:`require_even`."""
    each = require_even(batch, fabric.world_size)
    return slice(fabric.global_rank * each, (fabric.global_rank + 1) * each)


def require_even(batch: int, processes: int) -> int:
    """Return the number of clips of each process; refuse a batch that cannot be divided evenly."""
    if batch % processes:
        raise RequestError(
            f"a batch of {batch} clips cannot be shared by {processes} processes: choose a batch "
            f"that is a multiple of {processes}."
        )
    return batch // processes


def agree(fabric: "Fabric", flags: Iterable[bool]) -> list[bool]:
    """Return which of these flags any process has set; all processes call it at the same step."""
    flags = torch.tensor(list(flags), dtype=torch.int32, device=fabric.device)
    distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)
    return [bool(flag) for flag in flags.tolist()]


def summed(values: Tensor) -> Tensor:
    """Return the sum over all processes, to each."""
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(values)
    return values


def mean_of_rows(losses: Tensor, *, alone: bool = False) -> Tensor:
    """Sum of this process's losses (n,) over the mean count of all processes; 0 if there are none.

    So the mean over processes is the mean over all rows. `alone`: other processes take no part.
    """
    count = torch.full((1,), len(losses), dtype=torch.float64, device=losses.device)
    if not alone:
        count = summed(count) / processes()
    return losses.sum() / count.clamp(min=1).to(losses.dtype)[0]


def processes() -> int:
    """Return the number of processes that train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def gathered(values: Tensor) -> tuple[Tensor, int]:
    """Return values (B, ...) of all processes, in order of rank, and the index of this one's first.

    Without gradient.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return values, 0
    parts = [torch.empty_like(values) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts), distributed.get_rank() * len(values)


def gathered_objects(value: Item) -> list[Item]:
    """Return the picklable values of all processes."""
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


# --- batch norm over all processes ---


class JoinedBatchNorm(nn.BatchNorm2d):
    """Batch norm with the statistics of all processes' batches together.

    Torch.nn.SyncBatchNorm does not run on CPUs.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise maps (P, C, H, W); P may differ between processes."""
        if not self.training:
            return super().forward(maps)
        normalised, mean, variance, count = _JoinedNorm.apply(
            maps, self.weight, self.bias, self.eps
        )
        mean_kept, variance_kept, momentum = self.running_mean, self.running_var, self.momentum
        assert mean_kept is not None
        assert variance_kept is not None
        assert momentum is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            mean_kept.lerp_(mean.to(mean_kept), momentum)
            variance_kept.lerp_((variance * count / (count - 1)).to(variance_kept), momentum)
        return normalised


def join_batch_norm(model: nn.Module) -> None:
    """Turn every batch norm of a model into a :class:`JoinedBatchNorm`; names and weights stay."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = JoinedBatchNorm


class _JoinedNorm(torch.autograd.Function):
    """Normalisation by mean and variance over all processes, and its gradient."""

    @staticmethod
    def forward(
        context: Any, maps: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kind = torch.promote_types(maps.dtype, torch.float32)
        variance, mean = torch.var_mean(maps.to(kind), dim=(0, 2, 3), correction=0)  # (C,)
        count = mean.new_tensor([maps.numel() // maps.shape[1]])
        mean, variance, count = _joined_moments(mean, variance, count)
        scale = torch.rsqrt(variance + eps)
        centred = (maps - mean[:, None, None]) * scale[:, None, None]
        context.save_for_backward(centred.to(maps.dtype), weight, scale, count)
        context.mark_non_differentiable(mean, variance, count)
        return (
            (centred * weight[:, None, None] + bias[:, None, None]).to(maps.dtype),
            mean,
            variance,
            count,
        )

    @staticmethod
    def backward(context: Any, slope: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        centred, weight, scale, count = context.saved_tensors
        kind = torch.promote_types(slope.dtype, torch.float32)
        to_bias = slope.to(kind).sum((0, 2, 3))  # (C,)
        to_weight = (slope.to(kind) * centred).sum((0, 2, 3))
        sums = torch.stack([to_bias, to_weight])
        distributed.all_reduce(sums)
        means = (sums / count)[..., None, None]  # (2, C, 1, 1)
        to_maps = (slope - means[0] - centred * means[1]) * (weight * scale)[:, None, None]
        return to_maps.to(slope.dtype), to_weight.to(weight.dtype), to_bias.to(weight.dtype), None


def _joined_moments(mean: Tensor, variance: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), variance (C,) and count (1,) over all processes (Chan et al. 1979)."""
    own = torch.cat([mean, variance, count])
    parts = torch.empty(distributed.get_world_size(), len(own), dtype=own.dtype, device=own.device)
    distributed.all_gather(list(parts.unbind()), own)
    # (R, C), (R, C), (R, 1)
    means, variances, counts = parts.split([len(mean), len(mean), 1], dim=1)
    total = counts.sum(0)  # (1,)
    joint = (counts * means).sum(0) / total
    return joint, (counts * (variances + (means - joint).square())).sum(0) / total, total
