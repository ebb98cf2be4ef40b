"""Share the layers of a large model among the processes that train it (FSDP2, `torch.distributed.fsdp.fully_shard`).

Each process keeps an equal part of the weights of every transformer block, of their gradients and of the optimizer's
state. A block is gathered when it computes, and dropped again. Other weights are few; each process has all of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from world_model.wam.layers import Stack


def shard(model: nn.Module, n_processes: int) -> None:
    """Leave to each of `n_processes` its part of every block of `model`, in place; all of them call this.

    The optimizer must be made afterwards.
    """
    # Imported here, because a robot that only acts has no use for it, and it takes a second.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (n_processes,))
    # Keys and values are views, which nobody changes in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for stack in _stacks(model):
        for block in stack.blocks:
            fully_shard(block, mesh=mesh)


def unshard(model: nn.Module) -> None:
    """Give each process all weights of a sharded `model` again, in place; all processes call this."""
    for stack in _stacks(model):
        for i, block in enumerate(stack.blocks):
            whole = stack.new_block().to(next(block.parameters()).device)
            whole.load_state_dict(gathered(block.state_dict()))
            whole.train(block.training)
            stack.blocks[i] = whole


def is_sharded(model: nn.Module) -> bool:
    """Whether processes share the layers of a model."""
    return any(_is_part(parameter) for parameter in model.parameters())


def gathered(tree: Any, keep: bool = True) -> Any:
    """Return nested dicts and lists with whole tensors in place of parts; all processes call this.

    Args:
        tree: the state of a model or an optimizer; its tuples become lists.
        keep: in this process; otherwise they are dropped at once, and the result has None in their place.
    """
    if isinstance(tree, dict):
        return {name: gathered(value, keep) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [gathered(value, keep) for value in tree]
    if isinstance(tree, Tensor) and _is_part(tree):
        whole = _whole(tree)
        return whole if keep else None
    return tree


def scattered(state: dict[str, Any], parameters: Sequence[nn.Parameter]) -> dict[str, Any]:
    """Return the state of an optimizer, as `gathered` returned it, with the parts of this process.

    `parameters` are those of the optimizer, in its order.
    """

    def part(value: Any, like: Any) -> Any:
        if not _is_part(like) or not isinstance(value, Tensor) or value.shape != like.shape:
            return value
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)

    own = {
        i: {name: part(value, parameters[i]) for name, value in values.items()} for i, values in state["state"].items()
    }
    return {**state, "state": own}


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients down to `max_norm` together, and return their norm before; as `nn.utils.clip_grad_norm_`."""
    parts = [parameter for parameter in parameters if _is_part(parameter)]
    if not parts:
        return nn.utils.clip_grad_norm_(parameters, max_norm)
    others = whole_ones(parameters)
    norms = [nn.utils.get_total_norm([p.grad for p in some if p.grad is not None]) for some in (parts, others)]
    norm = torch.stack([_whole(value) for value in norms]).norm()
    for some in (parts, others):
        nn.utils.clip_grads_with_norm_(some, max_norm, norm)
    return norm


def whole_ones(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters that are not shared; the gradients of the others are averages already."""
    return [parameter for parameter in parameters if not _is_part(parameter)]


def _is_part(tensor: Tensor) -> bool:
    """Whether this process has a part of a tensor: a `DTensor` of torch, whose class would have to be imported."""
    return hasattr(tensor, "placements")


def _whole(tensor: Any) -> Tensor:
    whole: Tensor = tensor.full_tensor() if _is_part(tensor) else tensor
    return whole


def _stacks(model: nn.Module) -> Iterator[Stack]:
    return (module for module in model.modules() if isinstance(module, Stack))
