"""DTensors that are sharded along the class axis, as local tensors with their group."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from .._routing import PLAIN

Axes = dict[str, Any]  # along which each is sharded; None: replicated
LOCAL = "; its to_local() is taken as the rank's own"


def has_dtensors(tensors: tuple[Any, ...]) -> bool:
    """Is one of them a DTensor?"""
    if all(tensor is None or type(tensor) in PLAIN for tensor in tensors):
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(tensor, DTensor) for tensor in tensors)


def group_of(tensors: tuple[Any, ...], given: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """That of the first DTensor, or the one that is given."""
    for tensor in tensors:
        if has_dtensors((tensor,)):
            mesh = tensor.device_mesh
            if mesh.ndim != 1:
                raise ValueError(f"DTensors must be on a mesh of one dimension, not {mesh}{LOCAL}")
            return mesh.get_group()
    return given


def local_tensors(
    named: dict[str, Any], axes: Axes, shard: str, group: dist.ProcessGroup | None, offset: Any
) -> tuple[tuple[Any, ...], int]:
    """The tensors of this rank, and the first class, of which `shard` tells."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    whole = named[shard]
    if not isinstance(whole, DTensor):
        raise TypeError(f"{shard} must be a DTensor where another argument is one")
    if group is not None or offset is not None:
        raise ValueError(f"{shard} is a DTensor: it has a group and an offset of its own")
    mesh = whole.device_mesh
    local = []
    for name, tensor in named.items():
        axis = axes[name]
        wanted = Replicate() if axis is None else Shard(axis)
        local.append(_local(name, tensor, wanted, mesh, shard))
    classes = whole.shape[axes[shard]]
    size = -(-classes // mesh.size())  # as torch.chunk has it
    return tuple(local), min(mesh.get_local_rank() * size, classes)


def _local(name: str, tensor: Any, wanted: Any, mesh: Any, shard: str) -> Any:
    """The local tensor of a DTensor that is placed as wanted."""
    if not has_dtensors((tensor,)):
        return tensor
    if tensor.device_mesh != mesh:
        raise ValueError(f"{name} is on another mesh than {shard}: {tensor.device_mesh}")
    if tuple(tensor.placements) != (wanted,):
        raise ValueError(
            f"{name} must be placed ({wanted},), not {tuple(tensor.placements)} on {mesh}{LOCAL}"
        )
    return tensor.to_local()


def axis_of(axis: int, tensor: Tensor) -> int:
    """An axis that a call names, from 0 on; in one dimension 1 means 0."""
    dims = tensor.dim()
    axis = 0 if dims == 1 and axis == 1 else axis
    if not -dims <= axis < dims:
        raise ValueError(f"axis = {axis} is out of range for logits of shape {tuple(tensor.shape)}")
    return axis % dims
