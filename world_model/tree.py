"""Trees: nested dicts, lists, tuples and dataclasses of tensors with `n` rows each, such as encoded observations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

Tree = Any
"""A tensor (n, ...), or a dict, list, tuple or dataclass of trees."""

T = TypeVar("T")


def rows(tree: T, index: Tensor | slice) -> T:
    """Select rows of every tensor by an index (m,), a mask (n,) or a slice."""
    return map_tree(lambda x: x[index], tree)


def join(trees: Sequence[T]) -> T:
    """Concatenate the rows of trees of the same structure."""
    return map_tree(lambda *parts: torch.cat(parts), *trees)


def replaced(tree: T, mask: Tensor, by: T) -> T:
    """Return a copy of a tree in which the rows of a mask (n,) are those of `by`, in their order."""

    def written(old: Tensor, new: Tensor) -> Tensor:
        copied = old.clone()
        copied[mask] = new
        return copied

    return map_tree(written, tree, by)


def to(tree: T, device: torch.device) -> T:
    """Move every tensor to a device."""
    return map_tree(lambda x: x.to(device), tree)


def n_rows(tree: Tree) -> int:
    """Return the number of rows `n`."""
    return len(next(tensors(tree))[1])


def n_bytes(tree: Tree) -> int:
    """Return the memory of all tensors together, in bytes."""
    return sum(x.numel() * x.element_size() for _, x in tensors(tree))


def tensors(tree: Tree, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) for every tensor; the name lists keys, positions and attributes, joined by dots."""
    if isinstance(tree, Tensor):
        yield name, tree
        return
    for key, part in _parts(tree):
        yield from tensors(part, f"{name}.{key}" if name else key)


def map_tree(function: Callable[..., Tensor], first: T, *others: T) -> T:
    """Apply a function to the tensors at the same place of one or several trees of the same structure.

    Raises:
        ValueError: their structures differ.
    """
    if isinstance(first, Tensor):
        return function(first, *others)  # type: ignore[return-value] # T is Tensor here
    parts = [dict(_parts(tree)) for tree in (first, *others)]
    names = list(parts[0])
    if any(part.keys() != parts[0].keys() for part in parts):
        raise ValueError(f"trees differ: {names} and {[list(part) for part in parts[1:]]}")
    mapped: Any = [map_tree(function, *(part[name] for part in parts)) for name in names]  # by name, in any order
    kind: Any = type(first)
    if is_dataclass(first):
        mapped = kind(**dict(zip(names, mapped, strict=True)))
    elif isinstance(first, dict):
        mapped = kind(zip(first, mapped, strict=True))
    else:
        mapped = kind(mapped)
    return mapped


def _parts(tree: Tree) -> list[tuple[str, Tree]]:
    """Return (name, subtree) of a dict, list, tuple or dataclass.

    Raises:
        TypeError: it is none of them.
    """
    if isinstance(tree, dict):
        return [(str(key), part) for key, part in tree.items()]
    if isinstance(tree, list | tuple):
        return [(str(i), part) for i, part in enumerate(tree)]
    if is_dataclass(tree):
        return [(field.name, getattr(tree, field.name)) for field in fields(tree)]
    raise TypeError(f"a tree holds tensors, dicts, lists, tuples and dataclasses, not a {type(tree).__name__}")
