"""Advantages over chunks that end inside, worked out by hand; and the small sums around them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.ppo.buffer import Rollout, chunk_gae, explained_variance
from world_model.api import Context
from world_model.tree import join, rows


def test_chunk_gae_by_hand():
    """With gamma = .5 and lambda = .5; a chunk of n executed steps discounts by .5 ** n.

    Environment 0: chunks of 2, 1 (terminated), 2 (truncated) steps; discounts .25, .5, .25.
        i=2  delta = 2 + .25 * 6 - 4 = -.5      a time-out bootstraps; the episode ends: A = -.5
        i=1  delta = 3 + 0 - 2       =  1       nothing after a terminal state counts: A = 1, without what came later
        i=0  delta = 1 + .25 * 2 - 1 =  .5      A = .5 + .25 * .5 * 1 = .625
    Environment 1: chunks of 1, 2, 1 steps, no end; discounts .5, .25, .5.
        i=2  delta = 0 + .5 * 4 - 2  =  0       A = 0
        i=1  delta = 1 + .25 * 2 - 1 =  .5      A = .5 + .25 * .5 * 0 = .5
        i=0  delta = 0 + .5 * 1 - 0  =  .5      A = .5 + .5 * .5 * .5 = .625
    """
    no, yes = False, True
    advantage, returns = chunk_gae(
        reward=torch.tensor([[1.0, 0.0], [3.0, 1.0], [2.0, 0.0]]),
        value=torch.tensor([[1.0, 0.0], [2.0, 1.0], [4.0, 2.0]]),
        next_value=torch.tensor([[2.0, 1.0], [8.0, 2.0], [6.0, 4.0]]),
        n_executed=torch.tensor([[2, 1], [1, 2], [2, 1]]),
        terminated=torch.tensor([[no, no], [yes, no], [no, no]]),
        done=torch.tensor([[no, no], [yes, no], [yes, no]]),
        gamma=0.5,
        gae_lambda=0.5,
    )
    assert advantage.tolist() == [[0.625, 0.625], [1.0, 0.5], [-0.5, 0.0]]
    assert returns.tolist() == [[1.625, 0.625], [3.0, 1.5], [3.5, 2.0]]


def test_success_rate_by_hand():
    """Environment 0: a success, and again; 1: seen and lost, then an end; 2: an end, then a success; 3: no end."""
    success = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 0]]).bool()
    terminated = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]]).bool()
    truncated = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]).bool()
    told = {"success": success, "terminated": terminated, "truncated": truncated}
    zeros = {
        name: torch.zeros(3, 4) for name in Rollout.__dataclass_fields__ if name not in {*told, "context", "terms"}
    }
    rollout = Rollout(context=[], **zeros, **told)
    assert rollout.success_rate(fresh=True) == pytest.approx(2 / 3)  # 0 and 1 of the three that ended
    assert rollout.success_rate(fresh=False) == pytest.approx(3 / 5)  # of five ends
    rollout.task = torch.tensor([[0, 1, 1, 2]] * 3)
    assert rollout.ends_by_task(4, fresh=True).tolist() == [[1, 1], [2, 1], [0, 0], [0, 0]]
    assert rollout.ends_by_task(4, fresh=False).tolist() == [[2, 2], [3, 1], [0, 0], [0, 0]]
    rollout.terminated[:], rollout.truncated[:] = False, False
    assert rollout.success_rate(fresh=True) == rollout.success_rate(fresh=False) == 0.0


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31 - 1), st.floats(0.5, 1.0), st.floats(0.0, 1.0))
def test_chunks_of_one_step_are_ordinary_gae(seed, gamma, gae_lambda):
    g = torch.Generator().manual_seed(seed)
    reward, value, next_value = torch.randn(3, 6, 4, generator=g, dtype=torch.float64)
    ended, stopped = torch.rand(2, 6, 4, generator=g) < 0.2
    done = ended | stopped
    one = torch.ones(6, 4, dtype=torch.long)
    advantage, _ = chunk_gae(reward, value, next_value, one, ended, done, gamma, gae_lambda)
    for env in range(4):
        for start in range(6):
            expected, factor = 0.0, 1.0
            for i in range(start, 6):
                bootstrap = 0.0 if ended[i, env] else gamma * next_value[i, env]
                expected += factor * (reward[i, env] + bootstrap - value[i, env])
                factor *= gamma * gae_lambda
                if done[i, env]:
                    break
            assert float(advantage[start, env]) == pytest.approx(float(expected), abs=1e-9)


def test_lambda_one_gives_discounted_returns():
    """Whatever the values are: 1 + .5 ** 3 * (2 + .5 ** 2 * 8) = 1.5."""
    _, returns = chunk_gae(
        reward=torch.tensor([[1.0], [2.0]]),
        value=torch.tensor([[5.0], [-7.0]]),
        next_value=torch.tensor([[-7.0], [8.0]]),
        n_executed=torch.tensor([[3], [2]]),
        terminated=torch.zeros(2, 1, dtype=torch.bool),
        done=torch.zeros(2, 1, dtype=torch.bool),
        gamma=0.5,
        gae_lambda=1.0,
    )
    assert returns.tolist() == [[1.5], [4.0]]


def test_explained_variance():
    target = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert explained_variance(target, target) == 1
    assert explained_variance(target + 5, target) == 1  # a constant error is not variance
    assert explained_variance(torch.zeros(4), target) == 0
    assert explained_variance(torch.randn(4), torch.full((4,), 3.0)) == 0  # not NaN


def test_contexts_are_joined_row_by_row():
    def context(n, start):
        numbers = torch.arange(start, start + n, dtype=torch.float32)
        cache = [(numbers.view(n, 1, 1, 1) + layer, -numbers.view(n, 1, 1, 1)) for layer in range(2)]
        return Context(numbers.view(n, 1, 1), cache, numbers.view(n, 1))

    joined = join([context(2, 0), context(3, 10)])
    assert joined.features[:, 0].tolist() == [0, 1, 10, 11, 12]
    assert joined.cache[1][0].flatten().tolist() == [1, 2, 11, 12, 13]
    assert rows(joined, torch.tensor([3, 0])).cache[0][1].flatten().tolist() == [-11, 0]
