"""A world model with a hidden state as a dream: its session is carried, replaced row by row, and saved."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from world_model.api import Prediction, Session, WorldModel
from world_model.checked import CheckedWorldModel
from world_model.dream_env import DreamEnv, StartStates
from world_model.env import Obs
from world_model.spec import Feature, Spec

SPEC = Spec({"state": Feature((2,))}, (-1.0,), (1.0,), ("count",), control_hz=10.0)


class Counting(WorldModel):
    """Adds up the actions since a dream began, which its frames show but no frame of the history tells.

    The second number of a frame is a random one of the dream. Success: the sum is 2 or more.
    """

    spec, n_context_frames, chunk_size = SPEC, 2, 4

    def begin(self, history: Obs, seed: Tensor) -> Session:
        return {"hidden": {"sum": torch.zeros(len(seed))}, "seed": seed}

    def predict(self, session: Session, actions: Tensor) -> tuple[Session, Prediction]:
        sums = session["hidden"]["sum"][:, None] + actions[..., 0].cumsum(1)
        noise = (session["seed"][:, None] % 97).float().expand_as(sums)
        following = {"hidden": {"sum": sums[:, -1]}, "seed": session["seed"]}
        return following, Prediction({"state": torch.stack([sums, noise], dim=-1)}, (sums >= 2).float())


def make(n: int = 2, **options) -> DreamEnv:
    starts = StartStates({"state": torch.full((3, 2, 2), 7.0)}, torch.zeros(3, dtype=torch.long), torch.arange(3))
    env = DreamEnv(Counting(), n, starts, **{"horizon": 9, **options})
    env.reset(seed=0)
    return env


def actions(*rows: float, k: int = 4) -> Tensor:
    return torch.tensor(rows)[:, None, None].expand(-1, k, 1)


def test_the_hidden_state_is_carried_from_chunk_to_chunk() -> None:
    env = make()
    first, second = (env.step_chunk(actions(0.25, -0.5)).frames["state"][..., 0] for _ in range(2))
    assert first.tolist() == [[0.25, 0.5, 0.75, 1.0], [-0.5, -1.0, -1.5, -2.0]]
    assert second.tolist() == [[1.25, 1.5, 1.75, 2.0], [-2.5, -3.0, -3.5, -4.0]]


def test_a_branch_that_begins_anew_gets_a_new_row_and_the_others_keep_theirs() -> None:
    env = make()
    before = env.session["seed"].clone()
    step = env.step_chunk(actions(1.0, 0.25))
    # The sums are 1, 2, 3: a success takes two sure frames in a row, so it is seen in the third.
    assert step.terminated.tolist() == [True, False] and step.executed.sum(1).tolist() == [3, 4]
    assert env.session["hidden"]["sum"].tolist() == [0.0, 1.0]
    assert (env.session["seed"] == before).tolist() == [False, True]
    assert torch.equal(env.session["seed"], env.episode_seed)
    assert env.step_chunk(actions(0.25, 0.25)).frames["state"][:, 0, 0].tolist() == [0.25, 1.25]


@pytest.mark.parametrize("k", [1, 3])
def test_a_chunk_may_be_shorter(k: int) -> None:
    env = make()
    for i in range(3):
        step = env.step_chunk(actions(0.125, 0.0, k=k))
        assert step.frames["state"].shape == (2, k, 2) and step.frames["state"][0, -1, 0] == 0.125 * k * (i + 1)
    assert env.elapsed.tolist() == [3 * k] * 2


def test_the_model_gets_what_is_executed_after_the_delay() -> None:
    env = make(action_delay=1)
    assert env.step_chunk(actions(0.25, 0.0)).frames["state"][0, :, 0].tolist() == [0.0, 0.25, 0.5, 0.75]


def test_a_saved_dream_goes_on_the_same() -> None:
    env, twin = make(), make(seed=5)
    env.step_chunk(actions(0.25, -0.5))
    state = env.state_dict()
    expected = [env.step_chunk(actions(0.5, 0.25)) for _ in range(3)]
    twin.load_state_dict(state)
    for step in expected:
        again = twin.step_chunk(actions(0.5, 0.25))
        assert torch.equal(again.frames["state"], step.frames["state"])
        assert torch.equal(again.obs["state"], step.obs["state"])
    # The saved state is a copy, which going on did not change.
    assert state["session"]["hidden"]["sum"].tolist() == [1.0, -2.0]


def test_the_refined_model_has_the_same_weights_and_one_step_more() -> None:
    model = Counting()
    assert (model.refined().n_denoising_steps, model.n_denoising_steps) == (2, 1)


IMAGES = Spec(
    {"state": Feature((1,)), "images.front": Feature((2, 2, 3), dtype="uint8")},
    (-1.0,),
    (1.0,),
    ("look",),
    control_hz=10.0,
)


class Brighter(WorldModel):
    """An image that gets brighter with each action, predicted as an image, beside the state."""

    spec, chunk_size = IMAGES, 4

    def begin(self, history: Obs, seed: Tensor) -> Session:
        return history["images.front"][:, -1]

    def predict(self, session: Session, actions: Tensor) -> tuple[Session, Prediction]:
        brighter = (10 * actions.cumsum(1)).to(torch.uint8)[..., None, None].expand(-1, -1, 2, 2, 3)
        images = session[:, None] + brighter
        return images[:, -1], Prediction({"state": actions, "images.front": images}, torch.zeros(actions.shape[:2]))


def test_images_may_be_predicted_without_latents() -> None:
    starts = StartStates(
        {"state": torch.zeros(1, 1, 1), "images.front": torch.full((1, 1, 2, 2, 3), 7, dtype=torch.uint8)},
        torch.zeros(1, dtype=torch.long),
        torch.zeros(1, dtype=torch.long),
    )
    env = DreamEnv(CheckedWorldModel(Brighter(), "own"), 2, starts, horizon=9, images=("images.front",))
    assert env.reset()["images.front"].unique().tolist() == [7]
    step = env.step_chunk(actions(0.5, 1.0))
    assert step.obs["images.front"].dtype == torch.uint8
    assert step.obs["images.front"][:, -1, 0, 0, 0].tolist() == [27, 47]
    assert step.frames["images.front"][0, :, 0, 0, 0].tolist() == [12, 17, 22, 27]
