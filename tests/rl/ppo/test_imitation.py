"""Imitation: which chunks are kept of demonstrations, of successes, and of their ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rl.config import PPOConfig
from rl.policies.chain import ChainPolicy
from rl.policies.wam import flow_policy
from rl.ppo.buffer import Rollout
from rl.ppo.imitation import Imitation, affordable, leads_to_success, whole_chunks
from rl.ppo.update import PPO
from tests.rl.ppo.toy import FEATURES, Still
from world_model.data.episodes import BLEND, PERSON, POLICY, Episode
from world_model.spec import STATE, Spec
from world_model.wam.model import WorldActionModel

SPEC = Spec(FEATURES, (-1.0, -1.0), (1.0, 1.0), ("reach", "rest"), control_hz=10.0)
UNKNOWN = torch.nan
CONFIG = PPOConfig(n_steps=3, batch_size=3)


class Masks(Still):
    """A flow whose loss leaves unknown actions out; it keeps the actions that it was given."""

    masks_unknown = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def imitation_loss(self, encoded: dict[str, Tensor], actions: Tensor, generator: torch.Generator) -> Tensor:
        self.seen.append(actions)
        errors = self.net(encoded["state"]).view_as(actions) - actions
        return errors[actions.isfinite()].square().mean()


def numbered(length: int, success: bool = True) -> Episode:
    """State t is t, action t is 10 * t."""
    t = torch.arange(length + 1.0)[:, None]
    solved = torch.zeros(length, dtype=torch.bool)
    solved[-1] = success
    return Episode({STATE: t.expand(-1, 4)}, (10 * t[:-1]).expand(-1, 2), solved, "reach", "expert", seed=0)


@pytest.fixture
def imitation() -> Imitation:
    torch.manual_seed(0)
    policy = ChainPolicy(Masks(), SPEC)
    return Imitation(policy, [numbered(3)], demo_coef=1.0, sim_coef=1.0, dream_coef=0.0, batch_size=32)


def kept(imitation: Imitation, kind: str) -> tuple[list[float], list[list[float]]]:
    """The states and the actions of the examples of a kind, in order."""
    encoded, actions = imitation.examples[kind]
    return encoded["state"][:, 0].tolist(), actions[..., 0].nan_to_num(-1).tolist()


def test_demonstrations_are_imitated_up_to_their_end_where_a_loss_masks(imitation: Imitation) -> None:
    """An episode of 3 steps is shorter than the chunk of 4; -1 stands for what is unknown."""
    assert kept(imitation, "demonstrations") == ([0, 1, 2], [[0, 10, 20, -1], [10, 20, -1, -1], [20, -1, -1, -1]])
    loss = imitation.loss(torch.Generator().manual_seed(0))
    assert loss is not None and loss.isfinite()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in imitation.policy.actor_parameters())
    assert imitation.policy.denoiser.seen[0].isnan().any()


def test_recorded_successes_have_a_window_for_each_decision_where_a_loss_masks(imitation: Imitation) -> None:
    imitation.add_episodes([numbered(3, success=False), numbered(5), numbered(1)])
    assert kept(imitation, "sim") == (
        [0, 2, 4, 0],
        [[0, 10, 20, 30], [20, 30, 40, -1], [40, -1, -1, -1], [0, -1, -1, -1]],
    )
    imitation.examples.pop("sim")
    imitation.add_episodes([numbered(1), numbered(4)], delay=2)  # the first has no step that was commanded
    assert kept(imitation, "sim") == ([0], [[20, 30, -1, -1]])


def corrected(length: int, first: int, last: int, success: bool) -> Episode:
    """Steps `first` to `last` - 1 are a person's, the one after them is a blend."""
    control = torch.full((length,), POLICY, dtype=torch.uint8)
    control[first:last], control[last : last + 1] = PERSON, BLEND
    return replace(numbered(length, success), control=control)


@pytest.mark.parametrize("success", [True, False])
def test_of_a_corrected_episode_only_the_person_is_imitated(success: bool) -> None:
    """Chunks of 4 actions that are the person's from end to end, also where the episode failed."""
    policy = ChainPolicy(Masks(), SPEC)
    given = [corrected(12, first=3, last=9, success=success), numbered(3, success=False)]
    imitation = Imitation(policy, [], demo_coef=0.0, sim_coef=1.0, dream_coef=0.0, batch_size=4)
    imitation.add_episodes(given)
    chunks = [[10 * t + 10 * i for i in range(4)] for t in (3, 4, 5)]
    assert kept(imitation, "sim") == ([3, 4, 5], chunks)
    # As demonstrations, beside one without corrections, all of which is imitated.
    imitation = Imitation(policy, [given[0], numbered(1)], demo_coef=1.0, sim_coef=0.0, dream_coef=0.0, batch_size=4)
    assert kept(imitation, "demonstrations") == ([3, 4, 5, 0], [*chunks, [0, -1, -1, -1]])


def test_our_own_model_imitates_the_person_as_well(trained: WorldActionModel, make_point: Callable[..., Any]) -> None:
    policy = flow_policy(trained, make_point(1))
    imitation = Imitation(policy, [], demo_coef=0.0, sim_coef=1.0, dream_coef=0.0, batch_size=4)
    imitation.add_episodes([corrected(12, first=3, last=9, success=False)])
    _, actions = imitation.examples["sim"]
    assert actions[:, :, 0].tolist() == [[10 * (t + i) for i in range(4)] for t in (3, 4, 5)]
    imitation.examples.clear()
    imitation.add_episodes([corrected(12, first=3, last=6, success=True)])  # shorter than a chunk
    assert imitation.loss(torch.Generator().manual_seed(0)) is None


@pytest.mark.parametrize(("demo_coef", "begins"), [(1.0, [0, 4]), (0.0, [0, 1, 2, 3, 4, 5, 6])])
def test_successes_are_kept_up_to_the_last_step_that_is_solved(demo_coef: float, begins: list[int]) -> None:
    """Of 12 steps the task is solved in steps 5 and 6. Without demonstrations all windows count, else chunks."""
    episode = numbered(12)
    episode.success[:] = False
    episode.success[5:7] = True
    imitation = Imitation(
        ChainPolicy(Still(), SPEC), [numbered(9)], demo_coef, sim_coef=1.0, dream_coef=0.0, batch_size=4
    )
    imitation.add_episodes([episode, numbered(12, success=False)])
    states, actions = kept(imitation, "sim")
    assert states == begins and actions == [[10.0 * (begin + i) for i in range(4)] for begin in begins]


def test_a_delay_shifts_who_acted_as_well() -> None:
    """With a delay of 2, the actions that the person commanded in states 3 to 8 were executed in steps 5 to 10."""
    imitation = Imitation(ChainPolicy(Masks(), SPEC), [], demo_coef=0.0, sim_coef=1.0, dream_coef=0.0, batch_size=4)
    imitation.add_episodes([corrected(12, first=5, last=11, success=True)], delay=2)
    assert kept(imitation, "sim") == ([3, 4, 5], [[10 * (t + 2 + i) for i in range(4)] for t in (3, 4, 5)])


def test_successes_of_a_rollout_are_imitated_up_to_their_end_where_a_loss_masks(
    imitation: Imitation, make_point: Callable[..., Any]
) -> None:
    """Three decisions of 2 actions in 3 environments: a success with the first, one with the last, and none."""
    env = make_point(3, max_steps=12, terminate_on_success=False)
    rollout: Rollout = PPO(imitation.policy, CONFIG).collect(env, 3)
    rollout.success = torch.tensor([[1, 0, 0], [0, 0, 0], [0, 1, 0]]).bool()
    rollout.terminated = rollout.success.clone()
    rollout.truncated = torch.zeros(3, 3, dtype=torch.bool)
    imitation.add_successes(rollout, "sim")
    encoded, actions = imitation.examples["sim"]
    a = rollout.actions  # (n_steps, num_envs, 2, 2)
    nothing = torch.full((2, 2), UNKNOWN)
    expected = [(a[0, 0], nothing), (a[0, 1], a[1, 1]), (a[1, 1], a[2, 1]), (a[2, 1], nothing)]
    torch.testing.assert_close(actions, torch.stack([torch.cat(parts) for parts in expected]), equal_nan=True)
    states = [rollout.context[i]["state"][env_index] for i, env_index in ((0, 0), (0, 1), (1, 1), (2, 1))]
    assert torch.equal(encoded["state"], torch.stack(states))


def test_collected_examples_of_any_tree_are_taken_back(imitation: Imitation) -> None:
    imitation.add_episodes([numbered(5)])
    saved, before = imitation.collected(), kept(imitation, "sim")
    imitation.add_episodes([numbered(5)])
    imitation.collect_again(saved)
    assert kept(imitation, "sim") == before and [*imitation.examples] == ["demonstrations", "sim"]


def test_the_newest_successes_are_kept(imitation: Imitation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.ppo.imitation.MOST", 2)
    for length, states in ((5, [2, 4]), (1, [4, 0])):
        imitation.add_episodes([numbered(length)])
        assert kept(imitation, "sim")[0] == states


def test_many_demonstrations_have_fewer_copies_and_too_many_are_thinned_evenly() -> None:
    three = torch.tensor([4, 5, 9])
    assert affordable(three, n_copies=8, most=100).tolist() == [4, 5, 9] * 8
    assert affordable(three, n_copies=8, most=7).tolist() == [4, 5, 9] * 2
    assert affordable(three, n_copies=1, most=3).tolist() == [4, 5, 9]
    assert affordable(torch.arange(10), n_copies=8, most=4).tolist() == [0, 2, 5, 7]
    assert affordable(three[:0], n_copies=8, most=4).tolist() == []


def test_leads_to_success_by_hand() -> None:
    # Rows are chunks, columns environments. Column 0: success at 1, then a new episode without any.
    # Column 1: an episode that fails ends at 0, the next succeeds at 2. Column 2: never.
    success = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]]).bool()
    done = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).bool()
    expected = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]]).bool()
    assert torch.equal(leads_to_success(success, done), expected)


def test_chunks_of_which_a_part_was_executed_are_completed_by_the_next() -> None:
    # Two environments, four chunks of 2 executed actions, counted 0 to 7; one episode ends with chunk 1.
    actions = torch.arange(8.0).view(4, 1, 2, 1).expand(4, 2, 2, 1)
    done = torch.tensor([[0, 0], [0, 1], [0, 0], [0, 0]]).bool()
    chunks, whole = whole_chunks(actions, done, 5)
    assert chunks[:, 0, :, 0].tolist() == [[0, 1, 2, 3, 4], [2, 3, 4, 5, 6]]
    assert whole.tolist() == [[True, False], [True, False]]
    chunks, whole = whole_chunks(actions, done, 2)
    assert torch.equal(chunks, actions) and whole.all() and whole.shape == done.shape
    chunks, whole = whole_chunks(actions[:1], done[:1], 8)
    assert len(chunks) == len(whole) == 0


def test_with_pads_no_chunk_is_lost_and_what_is_not_known_is_nan() -> None:
    # As above; -1 stands for NaN. The episode of environment 1 ends with chunk 1.
    actions = torch.arange(8.0).view(4, 1, 2, 1).expand(4, 2, 2, 1)
    done = torch.tensor([[0, 0], [0, 1], [0, 0], [0, 0]]).bool()
    chunks, whole = whole_chunks(actions, done, 5, pads=True)
    assert whole.all() and whole.shape == (4, 2)
    assert chunks[..., 0].nan_to_num(-1).transpose(0, 1).tolist() == [
        [[0, 1, 2, 3, 4], [2, 3, 4, 5, 6], [4, 5, 6, 7, -1], [6, 7, -1, -1, -1]],
        [[0, 1, 2, 3, -1], [2, 3, -1, -1, -1], [4, 5, 6, 7, -1], [6, 7, -1, -1, -1]],
    ]
    chunks, whole = whole_chunks(actions, done, 2, pads=True)
    assert torch.equal(chunks, actions) and whole.all()
