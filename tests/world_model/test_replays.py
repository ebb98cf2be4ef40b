"""Recorded actions dreamed again: errors, success and their agreement, by hand and against our own model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rewards.errors import UserError
from world_model.api import METRES, OF_STATE, Prediction, Session, WorldModel
from world_model.data.episodes import Episode
from world_model.dream_env import DreamEnv, StartStates
from world_model.env import Obs
from world_model.replays import agreement, chunk_errors, dreamed_episodes, error_ratio, replay_episodes
from world_model.spec import Feature, Spec
from world_model.wam.metrics import prediction_metrics
from world_model.wam.trust import calibrate, dream_of_real_actions, expected_errors

SPEC = Spec({"state": Feature((1,), "m", {"object_pos": (0, 1)})}, (-1.0,), (1.0,), ("push",), control_hz=10.0)


class Straight(WorldModel):
    """The object moves by each action times `gain`, and is at its goal from 3 m on. True is a gain of 1."""

    spec, n_context_frames, chunk_size = SPEC, 1, 2

    def __init__(self, gain: float) -> None:
        self.gain = gain

    def begin(self, history: Obs, seed: Tensor) -> Session:
        return history["state"][:, -1]

    def predict(self, session: Session, actions: Tensor) -> tuple[Session, Prediction]:
        frames = session[:, None] + self.gain * actions.cumsum(1)
        return frames[:, -1], Prediction({"state": frames}, (frames[..., 0] >= 3).float(), frames[:, -1, 0].abs())


def episode(*moves: float, first: float = 0.0) -> Episode:
    action = torch.tensor(moves)[:, None]
    state = first + torch.cat([torch.zeros(1, 1), action.cumsum(0)])
    return Episode({"state": state}, action, state[1:, 0] >= 3, "push", "policy", seed=0)


EPISODES = [episode(1, 1, 1, 1, 1), episode(1, 1), episode(0.5, 0.5, 0.5, 0.5), episode(1, 1, 1, first=1.0)]


def test_what_is_dreamed_of_whole_episodes() -> None:
    found = replay_episodes(Straight(1.0), EPISODES)
    assert found.success.tolist() == found.real_success.tolist() == [True, False, False, True]
    assert all(not errors.any() for errors in found.errors) and [len(e) for e in found.errors] == [5, 2, 4, 3]
    assert found.replays[1].frames["state"].tolist() == [[0.0], [1.0], [2.0]]
    assert agreement(found.success, found.real_success) == pytest.approx(1.0)


def test_dreamed_episodes_have_dreamed_frames_and_true_labels() -> None:
    half = dreamed_episodes(Straight(0.5), EPISODES)
    assert [e.state.flatten().tolist() for e in half[:2]] == [[0, 0.5, 1, 1.5, 2, 2.5], [0, 0.5, 1]]
    assert half[3].state.flatten().tolist() == [1, 1.5, 2, 2.5]  # from the true first state
    assert [e.success.tolist() for e in half] == [e.success.tolist() for e in EPISODES]
    assert all(torch.equal(a.action, b.action) for a, b in zip(half, EPISODES, strict=True))
    assert EPISODES[0].state.flatten().tolist() == [0, 1, 2, 3, 4, 5]  # the recorded ones are as they were


def test_a_wrong_model_is_found_out() -> None:
    found = replay_episodes(Straight(0.5), EPISODES)
    # Half the way: 2.5 m of the first, 2.5 m of the last. Its success needs two sure frames in a row.
    assert found.success.tolist() == [False] * 4
    assert found.errors[0].tolist() == [0.5, 1.0, 1.5, 2.0, 2.5]
    assert math.isnan(agreement(found.success, found.real_success))
    far = replay_episodes(Straight(2.0), EPISODES)
    assert far.success.tolist() == [True, False, True, True]  # 2, 4; 1, 2, 3, 4
    # Three of four agree: (1 * 2 - 0 * 1) / sqrt(...) with 2 hits, 1 false success, 0 missed and 1 rightly failed.
    assert agreement(far.success, far.real_success) == pytest.approx((2 * 1 - 1 * 0) / math.sqrt(3 * 2 * 2 * 1))


def test_episodes_may_be_cut() -> None:
    found = replay_episodes(Straight(1.0), EPISODES, n_chunks=1)
    assert [len(e) for e in found.errors] == [2, 2, 2, 2] and found.real_success.tolist() == [False, False, False, True]
    with pytest.raises(UserError, match="needs at least one recorded episode"):
        replay_episodes(Straight(1.0), [])


def test_agreement_by_hand() -> None:
    one, other = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    assert agreement(one, other) == 0.0 and agreement(one, one) == pytest.approx(1.0)
    assert agreement(one, ~one) == pytest.approx(-1.0) and math.isnan(agreement(one, one | ~one))


def test_errors_all_along_the_episodes() -> None:
    found = chunk_errors(Straight(0.5), EPISODES[:1], n_chunks=2)
    # From 0 m: errors .5, 1 and 1.5, 2; the chunk from 2 m on has too few steps. Expected is where it ends.
    assert found.errors.tolist() == [[0.75, 1.75]] and found.episode.tolist() == [0]
    assert found.expected is not None and found.expected.tolist() == [[1.0, 2.0]]
    with pytest.raises(UserError, match="none of 4 episodes has 8 steps or more"):
        chunk_errors(Straight(0.5), EPISODES)


def test_the_error_in_units_of_nothing_moves() -> None:
    assert error_ratio(Straight(0.5), EPISODES) == pytest.approx(0.5)
    assert error_ratio(Straight(1.0), [episode(0.0, 0.001), episode(0.0, 0.0)]) is None


def test_the_unit_of_an_error(model) -> None:
    assert Straight(1.0).error_unit == METRES
    other = Straight(1.0)
    other.spec = model.spec  # no object
    assert other.error_unit == OF_STATE
    frames = {"state": torch.zeros(2, 4)}, {"state": torch.full((2, 4), 0.5)}
    assert other.frame_error(*frames).tolist() == [1.0, 1.0]


# --- our own model ---


def test_a_replay_of_our_model_is_its_dream(trained, episodes) -> None:
    chosen = episodes[:6]
    env = DreamEnv(trained, 6, StartStates.from_episodes(chosen, trained.spec.tasks, 2), horizon=9, in_order=True)
    env.terminate_on_success = False
    env.reset()
    steps = [env.step_chunk(torch.stack([e.action[i : i + 4] for e in chosen])) for i in (0, 4)]
    found = replay_episodes(trained, chosen, n_chunks=2)
    dreamed = torch.cat([step.frames["state"] for step in steps], dim=1)
    assert torch.equal(torch.stack([r.frames["state"] for r in found.replays])[:, 1:], dreamed)
    assert torch.equal(found.success, torch.cat([step.success for step in steps], dim=1).any(1))


def test_errors_of_our_model_are_those_that_trust_learns_from(trained, episodes) -> None:
    own = dream_of_real_actions(trained, episodes[:9])
    calibrate(trained, own.given, own.errors, n_steps=2)
    found = chunk_errors(trained, episodes[:9])
    torch.testing.assert_close(found.errors, own.errors)
    assert torch.equal(found.episode, own.episode) and found.expected is not None
    torch.testing.assert_close(found.expected, expected_errors(trained, own.given))


def test_the_error_ratio_of_our_model_is_that_of_its_metrics(trained, heldout) -> None:
    expected = prediction_metrics(trained, heldout, part="point")["mean"]["error_ratio"]
    assert error_ratio(trained, heldout.episodes, part="point") == pytest.approx(expected, rel=1e-5)
