"""Trees: rows, joins and moves reach every tensor, whatever it is in; names say where it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from world_model.tree import join, map_tree, n_bytes, n_rows, rows, tensors, to


@dataclass
class Encoded:
    cache: list[tuple[Tensor, Tensor]]
    features: Tensor


def tree(n: int, start: int = 0) -> dict[str, Any]:
    """A tree of `n` rows: row r of a tensor holds start + r, plus 100 for each tensor before it."""
    numbers = torch.arange(start, start + n)
    keys, values, features, state = (numbers + 100 * i for i in range(4))
    return {"encoded": Encoded([(keys, values.float()[:, None])], features), "state": state}


def content(of: dict[str, Any]) -> list[list[int]]:
    return [x.flatten().tolist() for _, x in tensors(of)]


def test_rows_by_index_mask_and_slice() -> None:
    given = tree(3)
    expected = [[2, 0], [102, 100], [202, 200], [302, 300]]
    assert content(rows(given, torch.tensor([2, 0]))) == expected
    assert content(rows(given, torch.tensor([True, False, False]))) == [[0], [100], [200], [300]]
    assert content(rows(given, slice(-1, None))) == [[2], [102], [202], [302]]
    assert content(given) == content(tree(3))  # it is not changed


def test_join_is_the_inverse_of_rows() -> None:
    joined = join([tree(2), tree(1, start=7)])
    assert content(joined) == [[0, 1, 7], [100, 101, 107], [200, 201, 207], [300, 301, 307]]
    assert content(rows(joined, slice(2, 3))) == content(tree(1, start=7))


def test_kinds_stay_what_they_are() -> None:
    taken = rows(tree(3), slice(0, 1))
    assert isinstance(taken, dict) and isinstance(taken["encoded"], Encoded)
    assert isinstance(taken["encoded"].cache, list) and isinstance(taken["encoded"].cache[0], tuple)
    assert taken["encoded"].cache[0][1].shape == (1, 1) and taken["encoded"].cache[0][1].dtype == torch.float32
    alone = torch.arange(3)
    assert rows(alone, slice(0, 1)).tolist() == [0] and n_rows(alone) == 3


def test_names_rows_and_bytes() -> None:
    given = tree(3)
    names = ["encoded.cache.0.0", "encoded.cache.0.1", "encoded.features", "state"]
    assert [name for name, _ in tensors(given)] == names
    assert [name for name, _ in tensors(given["state"], "state")] == ["state"]
    assert next(name for name, _ in tensors(given, "context")) == "context.encoded.cache.0.0"
    assert n_rows(given) == 3
    assert n_bytes(given) == 3 * 8 * 3 + 3 * 4  # three tensors of int64, one of float32


def test_a_move_reaches_every_tensor() -> None:
    moved = to(tree(2), torch.device("meta"))
    assert {x.device.type for _, x in tensors(moved)} == {"meta"} and n_rows(moved) == 2


def test_several_trees_at_once_and_trees_that_do_not_fit() -> None:
    assert content(map_tree(torch.add, tree(2), tree(2))) == [[0, 2], [200, 202], [400, 402], [600, 602]]
    one, other = torch.zeros(1), torch.ones(1)
    assert content(join([{"a": one, "b": other}, {"b": other, "a": one}])) == [[0, 0], [1, 1]]  # by name
    with pytest.raises(ValueError, match=r"^trees differ: \['a', 'b'\] and \[\['a'\]\]$"):
        join([{"a": one, "b": other}, {"a": one}])
    with pytest.raises(TypeError, match=r"^a tree holds tensors, dicts, lists, tuples and dataclasses, not a float$"):
        rows({"a": 1.5}, slice(0, 1))
