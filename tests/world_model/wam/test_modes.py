"""The five modes of one trained toy: shapes, bounds, repeatability, and that each has learned its part."""

import pytest
import torch

from world_model.wam import modes

pytestmark = pytest.mark.usefixtures("no_gradients")
N = 64


def seeded():
    return torch.Generator().manual_seed(3)


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


def test_shapes_bounds_and_repeatability(model, windows):
    batch = windows.sample(5, seeded())
    context = model.encode(batch.context["state"], batch.task)
    video, action = modes.video_noise(model, 5, seeded()), 100 * modes.action_noise(model, 5, seeded())
    frames = {
        "dream": modes.dream(model, context, batch.actions, video, 2),
        "video": modes.video(model, context, video, 2),
        "joint": modes.joint(model, context, video, action, 2)[0],
    }
    actions = {
        "policy": modes.policy(model, context, action, 3),
        "inverse": modes.inverse(model, context, batch.future["state"], action, 3),
        "joint": modes.joint(model, context, video, action, 2)[1],
    }
    assert all(value.shape == (5, 4, 4) and torch.isfinite(value).all() for value in frames.values())
    assert all(value.shape == (5, 4, 2) and value.abs().max() <= 1 for value in actions.values())
    assert torch.equal(modes.dream(model, context, batch.actions, video, 2), frames["dream"])
    assert torch.equal(modes.policy(model, context, action, 3), actions["policy"])


def test_the_video_mode_knows_no_action_and_the_dream_does(trained, heldout):
    """Both predict; only the one that is told the actions can know where random ones lead."""
    batch = heldout.sample(N, seeded())
    context = trained.encode(batch.context["state"], batch.task)
    noise = modes.video_noise(trained, N, seeded())

    def error(frames):
        return float((frames - batch.future["state"])[:, -1, :2].norm(dim=-1).mean())

    told = error(modes.dream(trained, context, batch.actions, noise, 2))
    untold = error(modes.video(trained, context, noise, 2))
    shuffled = error(modes.dream(trained, context, batch.actions.flip(0), noise, 2))
    assert told < 0.5 * untold and told < 0.5 * shuffled


def test_the_policy_mode_walks_to_the_goal(trained, make_point):
    env = make_point(32, seed=5)
    obs, solved = env.reset(), torch.zeros(32, dtype=torch.bool)
    for _ in range(3):
        context = trained.encode(obs["state"], obs["task"])
        step = env.step_chunk(modes.policy(trained, context, modes.action_noise(trained, 32, seeded()), 4))
        obs, solved = step.obs, solved | step.is_success
    assert solved.float().mean() > 0.8


def test_the_joint_mode_imagines_what_its_actions_do(trained, windows):
    """The frames agree with the dream of the same actions better than with that of others."""
    batch = windows.sample(N, seeded())
    context = trained.encode(batch.context["state"], batch.task)
    noise = modes.video_noise(trained, N, seeded())
    frames, actions = modes.joint(trained, context, noise, modes.action_noise(trained, N, seeded()), 4)
    same = (frames - modes.dream(trained, context, actions, noise, 4)).square().mean()
    other = (frames - modes.dream(trained, context, actions.flip(0), noise, 4)).square().mean()
    assert same < 0.5 * other
