"""DTensors that are sharded along the class axis, as local tensors with their group."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from .._routing import PLAIN

NAMES = "logits_shard", "target", "weight", "sample_weight"


def local_tensors(
    given: tuple[Any, ...], axis: int, group: dist.ProcessGroup | None, offset: int | None
) -> tuple[tuple[Any, ...], dist.ProcessGroup | None, int | None]:
    """The tensors of this rank, the group and the offset; those given, where none is a DTensor."""
    if all(tensor is None or type(tensor) in PLAIN for tensor in given):
        return given, group, offset
    from torch.distributed.tensor import DTensor, Replicate, Shard

    logits = given[0]
    if not any(isinstance(tensor, DTensor) for tensor in given):
        return given, group, offset
    if not isinstance(logits, DTensor):
        raise TypeError("logits_shard must be a DTensor where another argument is one")
    if group is not None or offset is not None:
        raise ValueError("logits_shard is a DTensor: it has a group and an offset of its own")
    axis = _class_axis(axis, logits)
    target_is_dense = given[1].is_floating_point() if isinstance(given[1], Tensor) else False
    mesh = logits.device_mesh
    wanted = Shard(axis), Shard(axis) if target_is_dense else Replicate(), Shard(0), Replicate()
    local = tuple(_local(*each, mesh) for each in zip(NAMES, given, wanted, strict=True))
    size = -(-logits.shape[axis] // mesh.size())  # as torch.chunk has it
    return local, mesh.get_group(), min(mesh.get_local_rank() * size, logits.shape[axis])


def _class_axis(axis: int, logits: Any) -> int:
    dims = logits.dim()
    axis = 0 if dims == 1 and axis == 1 else axis
    if not -dims <= axis < dims:
        raise ValueError(f"axis = {axis} is out of range for logits of shape {tuple(logits.shape)}")
    return axis % dims


def _local(name: str, tensor: Any, wanted: Any, mesh: Any) -> Any:
    """The local tensor of a DTensor that is placed as wanted, on a mesh of one dimension."""
    if tensor is None or type(tensor) in PLAIN:
        return tensor
    if tensor.device_mesh != mesh:
        raise ValueError(f"{name} is on another mesh than logits_shard: {tensor.device_mesh}")
    if mesh.ndim != 1 or tuple(tensor.placements) != (wanted,):
        raise ValueError(
            f"{name} must be placed ({wanted},) on a mesh of one dimension, "
            f"not {tuple(tensor.placements)} on {mesh}; its to_local() is taken as the rank's own"
        )
    return tensor.to_local()
