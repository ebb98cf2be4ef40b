"""What the critic learns from episodes in which a person took over: the states before it are worth little.

A takeover counts as the end of the policy's episode, without success: the policy was about to fail. So the return of a
state in which the policy acted is the sum of the rewards until the takeover, or until the episode ended. What the
person did after that is imitated (`rl.ppo.imitation`, as in HG-DAgger, Kelly et al., 1810.02890), and the dream is
refitted on all of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rewards import RewardManager
from rewards.transitions import chunk_transition, first_past
from rl.policies.api import TrainablePolicy
from rl.ppo.buffer import Samples
from world_model.data.episodes import PERSON, POLICY, Episode
from world_model.env import ReadOut
from world_model.spec import Spec
from world_model.tree import Tree


def corrected_values(
    policy: TrainablePolicy,
    episodes: Sequence[Episode],
    rewards: RewardManager,
    spec: Spec,
    gamma: float,
    read_out: ReadOut | None = None,
) -> Samples | None:
    """Return samples for the critic of the states in which the policy acted; None if nobody ever took over.

    Args:
        policy: encodes the observations.
        episodes: as recorded on a robot, with the features of `spec`.
        rewards: of the run; its state is changed.
        spec: of the episodes.
        gamma: discount of one environment step.
        read_out: of the world model, if a reward term requires `progress`.
    """
    marked = [episode for episode in episodes if episode.control is not None]
    if not any(bool((episode.control == PERSON).any()) for episode in marked if episode.control is not None):
        return None
    windows = policy.windows(marked, ends=True)
    returns = [
        policy_returns(step_rewards(episode, rewards, spec, read_out, policy.device), _of_policy(episode), gamma)
        for episode in windows.episodes
    ]
    index, found = [], []
    for i, (number, begin) in enumerate(zip(windows.episode.tolist(), windows.begins.tolist(), strict=True)):
        episode = windows.episodes[number]
        if begin % policy.n_action_steps == 0 and bool(_of_policy(episode)[begin]):
            index.append(i)
            found.append(returns[number][begin])
    if not index:  # the person drove from the first step on
        return None
    # Seeded by the data, so that the same episodes give the same noise on observations.
    generator = torch.Generator(policy.device).manual_seed(marked[0].seed)
    context = policy.encode(windows.at(torch.tensor(index, device=windows.start.device)).obs, generator)
    return _for_critic(context, torch.stack(found).to(policy.device))


def policy_returns(reward: Tensor, acts: Tensor, gamma: float) -> Tensor:
    """Return for each step the discounted rewards up to the last step of its stretch in which the policy acts.

    Args:
        reward: of each step (T,).
        acts: whether the policy acts in it (T,) bool.
        gamma: discount of one step.

    Returns:
        (T,), 0 where the policy does not act.
    """
    returns = torch.zeros_like(reward)
    later = reward.new_zeros(())
    for i in reversed(range(len(reward))):
        later = torch.where(acts[i], reward[i] + gamma * later, 0.0)
        returns[i] = later
    return returns


def step_rewards(
    episode: Episode,
    rewards: RewardManager,
    spec: Spec,
    read_out: ReadOut | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the total reward of each step of a recorded episode (T,), on the CPU; terms compute on `device`."""
    n, action, success = episode.length, episode.action[None].to(device), episode.success[None].to(device)
    frames = {name: values[episode.rows_of(name)][None].to(device) for name, values in episode.obs.items()}
    last = torch.zeros(1, n, dtype=torch.bool, device=device)
    last[:, -1] = True
    task, progress = torch.tensor([spec.tasks.index(episode.task)], device=device), None
    if read_out is not None and "progress" in rewards.requires:
        progress = read_out(frames, task)[1]
    rewards.reset(torch.ones(1, dtype=torch.bool, device=device))
    transition = chunk_transition(
        frames=rewards.with_features(frames),
        actions=action,
        past=first_past(action),
        success=success,
        terminated=last & success,
        elapsed=torch.arange(1, n + 1, device=device)[None],
        task=task,
        slices=spec.vector_slices,
        progress=progress,
        images=rewards.images,
    )
    return rewards.compute(transition, n_steps=n).total.cpu()


def _of_policy(episode: Episode) -> Tensor:
    """Whether the policy alone acts in each step (T,)."""
    return torch.ones(episode.length, dtype=torch.bool) if episode.control is None else episode.control == POLICY


def _for_critic(context: Tree, returns: Tensor) -> Samples:
    """Return samples of which the critic's loss uses the observations and returns; the rest is zeros."""
    zeros = torch.zeros_like(returns)
    return Samples(
        context=context,
        chain=zeros[:, None],
        log_prob=zeros[:, None],
        value=zeros,
        advantage=zeros,
        returns=returns,
        reference=zeros[:, None],
        weight=torch.ones_like(returns),
    )
