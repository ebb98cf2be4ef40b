"""Sizes of the architecture."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from rewards.errors import UserError
from rl.envs.sim import make_spec
from world_model.wam.config import SIZES, ModelConfig
from world_model.wam.layers import Stack
from world_model.wam.network import Network

MILLIONS = {"xs": 4, "s": 25, "m": 105, "l": 410, "xl": 1010}
"""Weights in the layers, as docs/distributed.md has them."""


@pytest.mark.parametrize("size", SIZES)
def test_sizes_have_the_weights_that_the_docs_name(size: str) -> None:
    config = ModelConfig().of_size(size)
    config.check()
    with torch.device("meta"):  # takes no memory
        network = Network(config, make_spec("metaworld", ["push"]))
    stacks = (module for module in network.modules() if isinstance(module, Stack))
    n = sum(weight.numel() for stack in stacks for weight in stack.parameters())
    assert n / 1e6 == pytest.approx(MILLIONS[size], rel=0.03 if size != "xs" else 0.2)


def test_the_smallest_size_is_the_default_and_an_unknown_one_is_refused() -> None:
    assert ModelConfig().of_size("xs") == ModelConfig() == ModelConfig().of_size("")
    with pytest.raises(UserError, match=re.escape("size='xxl': expected one of xs, s, m, l, xl")):
        ModelConfig().of_size("xxl")


@pytest.mark.parametrize("wrong", [-1, 1025, 2.0, True])
def test_a_memory_of_trust_that_makes_no_sense_is_refused(wrong: object) -> None:
    with pytest.raises(UserError, match=r"^model\.trust_memory=.*: expected a whole number from 0 to 1024$"):
        replace(ModelConfig(), trust_memory=wrong).check()  # type: ignore[arg-type]
