"""A trust signal of your own: how far each dreamed chunk is to be believed.

    wamtune train dream env.tasks=push \
        'dream.trust={reach: {func: examples/own_trust_signal.py:within_reach, params: {radius: 0.5}}}'

A chunk counts in an update by the product of all signals; `weight` is the power to which a signal is raised.
"""

from torch import Tensor

from rl.ppo.buffer import Rollout
from world_model.api import WorldModel


def within_reach(rollout: Rollout, world_model: WorldModel, seed: int, radius: float = 0.3) -> Tensor:
    """Believe less of a chunk the further away from where its episode began the hand is. Shape: (n_steps, num_envs).

    The trust is 1 at the start and falls to half at `radius` metres.
    """
    hand = rollout.frames[:, :, -1, world_model.spec.slices["hand_pos"]]  # newest frame before the chunk
    started = hand[:1].expand_as(hand).clone()
    ended = rollout.terminated | rollout.truncated
    for step in range(1, len(hand)):  # a chunk after an end begins an episode of its own
        started[step] = hand[step].where(ended[step - 1].unsqueeze(-1), started[step - 1])
    distance = (hand - started).norm(dim=-1)
    return 1 / (1 + distance / radius)
