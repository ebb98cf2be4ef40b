"""The lines of `wamtune check` for a policy that somebody brings."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from rl.policies.api import Decision, Evaluation
from rl.verbs.check_policy import N_ENVS, _ratio

CHAIN = torch.zeros(N_ENVS, 2, 1, 1)


class Drifting:
    """A policy whose likelihood of the same decision differs by `drift` when it is computed again."""

    device = torch.device("cpu")

    def __init__(self, drift: float) -> None:
        self.drift = drift

    def sample(self, encoded: object, generator: torch.Generator) -> Decision:
        return Decision(torch.zeros(N_ENVS, 1, 1), CHAIN, torch.zeros(N_ENVS, 1))

    def reference(self, encoded: object, chain: Tensor) -> Tensor:
        return chain[:, 1:]

    def evaluate_actions(self, encoded: object, chain: Tensor, reference: Tensor) -> Evaluation:
        return Evaluation(torch.full((len(chain), 1), self.drift), torch.zeros(len(chain)), torch.zeros(()))


@pytest.mark.parametrize(("drift", "ok"), [(0.0, True), (1e-4, True), (0.01, False), (math.nan, False)])
def test_a_ratio_that_is_not_one_or_no_number_is_red(drift: float, ok: bool) -> None:
    assert _ratio(cast(Any, Drifting(drift)), {"state": torch.zeros(N_ENVS, 1)}).ok == ok
