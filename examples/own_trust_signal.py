"""A trust signal of your own: a weight between 0 and 1 for each dreamed chunk.

    wamtune train dream env.tasks=push \
        'dream.trust={reach: {func: examples/own_trust_signal.py:within_reach, params: {radius: 0.5}}}'

The weight of a chunk in an update is the product of all signals; each signal is raised to the power of its `weight`.
"""

from torch import Tensor

from rl.ppo.buffer import Rollout
from world_model.api import WorldModel


def within_reach(rollout: Rollout, world_model: WorldModel, seed: int, radius: float = 0.3) -> Tensor:
    """Return less trust the further the hand is from its position at the start. Shape: (n_steps, num_envs).

    The trust is 1 at the start of an episode and falls to 1/2 at a distance of `radius` metres.
    """
    hand = rollout.frames["state"][:, :, -1, world_model.spec.slices["hand_pos"]]  # newest frame before the chunk
    started = hand[:1].expand_as(hand).clone()
    ended = rollout.terminated | rollout.truncated
    for step in range(1, len(hand)):  # the chunk after an end starts a new episode
        started[step] = hand[step].where(ended[step - 1].unsqueeze(-1), started[step - 1])
    distance = (hand - started).norm(dim=-1)
    return 1 / (1 + distance / radius)
