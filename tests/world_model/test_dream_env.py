"""The dream as an environment: ends, verdicts, rewards as in the simulator, start states, buffered steps, resume."""

from dataclasses import replace

import pytest
import torch

from rewards import RewardManager
from rewards.errors import UserError
from world_model.data.episodes import Episode
from world_model.dream_env import DreamEnv, StartStates
from world_model.env import Advance, BatchedEnv, Start
from world_model.flow import seeded_noise
from world_model.tree import rows
from world_model.wam import trust

K = 4  # chunk_size of the toy


@pytest.fixture
def starts(episodes, model):
    return StartStates.from_episodes(episodes, model.spec.tasks, n_context_frames=2)


@pytest.fixture
def make_dream(model, starts):
    return lambda num_envs=3, **options: DreamEnv(model, num_envs, options.pop("starts", starts), **options)


@pytest.fixture
def never_solved(model, monkeypatch):
    """The read-out says nothing is solved, and everything is halfway."""
    monkeypatch.setattr(model, "success_and_progress", lambda frames, task: (zeros(frames), zeros(frames) + 0.5))


def zeros(frames):
    return torch.zeros(frames["state"].shape[:2])


def actions(n, k=K, seed=0):
    return 2 * torch.rand(n, k, 2, generator=torch.Generator().manual_seed(seed)) - 1


def terms(*names, provides=("progress",), place="dream"):
    return RewardManager({name: {"weight": 1.0} for name in names}, provides, place)


# --- ends ---


def test_a_branch_is_truncated_after_its_horizon(make_dream, never_solved):
    env = make_dream(horizon=2)
    env.reset(seed=0)
    first, second, third = (env.step_chunk(actions(3, seed=i)) for i in range(3))
    assert first.executed.all() and not (first.truncated | first.terminated).any()
    assert second.truncated.all() and not second.terminated.any() and second.executed.all()
    assert torch.equal(second.final_obs["state"][:, -1], second.frames["state"][:, -1])
    assert not torch.equal(second.obs["state"], second.final_obs["state"])  # the next branch has begun
    assert not third.truncated.any()


def test_an_episode_is_truncated_at_its_step_limit(make_dream, never_solved):
    env = make_dream(num_envs=2, horizon=9, max_steps=6)
    env.reset()
    assert not env.step_chunk(actions(2)).truncated.any() and env.elapsed.tolist() == [4, 4]
    step = env.step_chunk(actions(2))
    assert step.executed.sum(1).tolist() == [2, 2] and step.truncated.all()
    assert env.elapsed.tolist() == [0, 0]  # both have begun again


def test_success_takes_two_sure_frames_in_a_row(make_dream, model, monkeypatch):
    p = {}
    monkeypatch.setattr(model, "success_and_progress", lambda frames, task: (p["now"], zeros(frames)))
    env = make_dream(num_envs=2, horizon=9)
    env.reset(seed=0)
    p["now"] = torch.tensor([[0.55, 0.45, 0.55, 0.49], [0.55, 0.1, 0.1, 0.55]])
    step = env.step_chunk(actions(2))
    assert not step.is_success.any() and not step.terminated.any()
    p["now"] = torch.tensor([[0.55, 0.1, 0.55, 0.55], [0.55, 0.1, 0.1, 0.1]])
    step = env.step_chunk(actions(2))
    # The first is sure of frames 3 and 4; the second of the last frame before and the first one now.
    assert step.is_success.all() and step.terminated.all() and not step.truncated.any()
    assert step.executed.tolist() == [[True] * 4, [True, False, False, False]]
    assert step.success.tolist() == [[False, False, False, True], [True, False, False, False]]
    assert step.reward.tolist() == [[0, 0, 0, 1], [1, 0, 0, 0]]
    # A new branch does not remember the sureness of the one before.
    p["now"] = torch.tensor([[0.55, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1]])
    assert not env.step_chunk(actions(2)).is_success.any()


# --- what is dreamed ---


def test_noise_belongs_to_a_branch_whatever_its_place_in_the_batch(make_dream, model, never_solved):
    model.n_denoising_steps = 2  # in a single step noise has no say
    env, twin = (make_dream(num_envs=4) for _ in range(2))
    env.reset(seed=1)
    order = torch.tensor([2, 0, 3, 1])
    state = env.state_dict()
    permuted = {
        name: value[order] if isinstance(value, torch.Tensor) and name != "generator" else value
        for name, value in state.items()
    }
    permuted |= {name: rows(state[name], order) for name in ("context", "session")}
    twin.load_state_dict(permuted)
    frames = env.step_chunk(actions(4)).frames["state"]
    torch.testing.assert_close(twin.step_chunk(actions(4)[order]).frames["state"], frames[order], atol=1e-6, rtol=0)
    # Another chunk or another branch from the same state draws other noise.
    for name in ("counter", "seed"):
        twin.load_state_dict(state | {"session": state["session"] | {name: state["session"][name] + 1}})
        assert not torch.allclose(twin.step_chunk(actions(4)).frames["state"], frames, atol=1e-4)
    twin.load_state_dict(state)
    assert torch.equal(twin.step_chunk(actions(4)).frames["state"], frames)


def test_a_shorter_chunk_is_completed_and_a_longer_one_refused(make_dream, never_solved):
    env, twin = make_dream(), make_dream()
    env.reset(seed=0), twin.reset(seed=0)
    short = actions(3, k=2)
    step = env.step_chunk(short)
    assert step.frames["state"].shape == (3, 2, 4) and step.executed.all() and env.elapsed.max() <= 150
    completed = torch.cat([short, short[:, -1:], short[:, -1:]], dim=1)
    torch.testing.assert_close(twin.step_chunk(completed).frames["state"][:, :2], step.frames["state"])
    with pytest.raises(UserError, match="a chunk of 5 actions is longer than the 4 the model was trained on"):
        env.step_chunk(actions(3, k=5))


def test_a_chunk_that_ends_between_two_images_is_refused(make_dream, model, monkeypatch):
    slower = replace(model.predicted_spec, features={"state": replace(model.spec.features["state"], every=2)})
    monkeypatch.setattr(type(model), "predicted_spec", property(lambda self: slower))
    env = make_dream()
    env.reset(seed=0)
    assert env.step_chunk(actions(3, k=2)).frames["state"].shape == (3, 2, 4)
    line = "a chunk of 3 actions ends between two state, which the model predicts every 2 steps; take 2 act"
    with pytest.raises(UserError, match=line):
        env.step_chunk(actions(3, k=3))


def test_the_dream_of_a_trained_model_is_close_to_what_happened(trained, episodes):
    recorded = episodes[:32]
    starts = StartStates.from_episodes(recorded, trained.spec.tasks, 2)
    env = DreamEnv(trained, 32, starts, in_order=True)
    obs = env.reset()
    dreamed = env.step_chunk(torch.stack([e.action[:K] for e in recorded])).frames["state"][:, -1]
    true = torch.stack([e.state[K] for e in recorded])
    error, moved = ((frame - true).norm(dim=-1).mean() for frame in (dreamed, obs["state"][:, -1]))
    assert error < 0.5 * moved


# --- rewards ---


class Replay(BatchedEnv):
    """A simulator that begins and goes on as it is told."""

    place = "sim"
    start: Start
    advance: Advance

    def _restart(self, mask):
        return self.start

    def _advance(self, actions, limit):
        return self.advance


def test_a_term_pays_the_same_for_the_same_transition_in_sim_and_dream(make_dream, model):
    names = ("success", "action_jerk", "action_rate", "progress", "time_cost")
    env = make_dream(num_envs=3, horizon=9, max_steps=6, rewards=terms(*names))
    env.reset(seed=0)
    begun = env.state_dict()
    sim = Replay(model.spec, 3, 2, max_steps=6, rewards=terms(*names, place="sim"), read_out=model.success_and_progress)
    sim.start = Start(begun["context"], begun["task"], begun["episode_seed"])
    sim.reset()
    never = torch.zeros(3, K, dtype=torch.bool)
    for i in range(2):  # the second chunk has a history, and the step limit within
        step = env.step_chunk(actions(3, seed=i))
        sim.advance = Advance(step.frames, step.success, never, never)
        same = sim.step_chunk(actions(3, seed=i))
        assert torch.equal(same.reward, step.reward) and torch.equal(same.executed, step.executed)
        for name in names:
            assert torch.equal(same.raw[name], step.raw[name]), name
        assert step.raw["action_jerk"].abs().sum() > 0 and step.raw["progress"].abs().sum() > 0
        assert (step.raw["action_rate"][:, 0] == 0).all() == (i == 0)  # beginning is not charged as a change


def test_progress_is_a_potential_difference(make_dream, model):
    env = make_dream(horizon=9, rewards=terms("progress"))
    before = env.reset(seed=0)
    step = env.step_chunk(actions(3))
    _, first = model.success_and_progress({"state": before["state"][:, -1:]}, before["task"])
    _, last = model.success_and_progress({"state": step.frames["state"][:, -1:]}, before["task"])
    torch.testing.assert_close(step.reward.sum(1), (last - first)[:, 0], atol=1e-5, rtol=0)


# --- start states ---


def test_start_states_by_hand():
    state = torch.arange(7.0)[:, None].repeat(1, 4)
    never = torch.zeros(6, dtype=torch.bool)
    one = Episode({"state": state}, torch.zeros(6, 2), never, "rest", "random", seed=0)
    other = Episode({"state": state + 10}, torch.zeros(6, 2), never, "reach", "random", seed=1)
    starts = StartStates.from_episodes([one, other], ("reach", "rest"), n_context_frames=2)
    assert starts.context["state"][:, :, 0].tolist() == [[0, 0], [10, 10]]
    assert starts.task.tolist() == [1, 0] and starts.seed.tolist() == [0, 1]
    with pytest.raises(UserError, match="needs at least one recorded episode"):
        StartStates.from_episodes([], ("reach",), 2)


def test_starts_may_have_more_frames_and_features_than_the_model_reads(make_dream, starts):
    """A simulator gives what the policy reads as well."""
    frames = torch.cat([starts.context["state"][:, :1] + 7, starts.context["state"]], dim=1)
    images = torch.zeros(len(starts), 3, 8, 8, 3, dtype=torch.uint8)
    more = StartStates({"images.front": images, "state": frames}, starts.task, starts.seed)
    env, expected = make_dream(starts=more, in_order=True), make_dream(in_order=True)
    obs = env.reset()
    assert obs.keys() == {"state", "task"} and torch.equal(obs["state"], expected.reset()["state"])
    assert torch.equal(env.step_chunk(actions(3)).frames["state"], expected.step_chunk(actions(3)).frames["state"])


def test_a_policy_that_reads_images_gets_them_decoded(make_dream, model, never_solved, monkeypatch):
    def decode(frames, names):
        """An image of one pixel, as bright as the first number of the state."""
        pixels = (1000 * frames["state"][..., :1]).round().long() % 256
        return {name: pixels[..., None, None].expand(*pixels.shape, 1, 3).to(torch.uint8) for name in names}

    monkeypatch.setattr(model, "decode_obs", decode)
    env, blind = make_dream(horizon=1, images=("images.front",)), make_dream(horizon=1)
    obs = env.reset(seed=0)
    assert obs.keys() == {"state", "images.front", "task"} and obs["images.front"].shape == (3, 2, 1, 1, 3)
    assert env.spec == model.predicted_spec and env.context.keys() == {"state"}  # what the model predicts from
    step, other = env.step_chunk(actions(3)), (blind.reset(seed=0), blind.step_chunk(actions(3)))[1]
    assert step.truncated.all() and torch.equal(step.frames["state"], other.frames["state"])
    for found in (obs, step.obs, step.final_obs, env.step(actions(3, k=1)[:, 0]).obs):
        assert torch.equal(found["images.front"], decode(found, ["images.front"])["images.front"])
    assert not torch.equal(step.obs["images.front"], step.final_obs["images.front"])
    assert step.frames.keys() == env.context.keys() == {"state"}


def test_a_dream_keeps_no_gradients(make_dream, model):
    """Otherwise its memory would grow from chunk to chunk."""
    assert any(parameter.requires_grad for parameter in model.parameters())
    env = make_dream()
    env.reset()
    step = env.step_chunk(actions(3))
    assert not step.frames["state"].requires_grad and not env.context["state"].requires_grad


def test_in_order_begins_branch_i_from_start_i(make_dream, never_solved, starts):
    env = make_dream(num_envs=3, horizon=1, in_order=True)
    for obs in (env.reset(), env.step_chunk(actions(3)).obs):
        assert torch.equal(obs["state"], starts.context["state"][:3])
    assert torch.equal(env.episode_seed, starts.seed[:3])


def test_a_branch_ends_where_trust_does(make_dream, never_solved, monkeypatch):
    expected = torch.tensor([0.01, 0.05, 0.02])
    monkeypatch.setattr(trust, "expected_error", lambda model, given, memory: (expected, memory))
    env = make_dream(num_envs=3, horizon=9, max_steps=99, max_expected_error=0.03, pessimism=0.2)
    env.reset()
    assert not env.step_chunk(actions(3)).truncated.any()  # trust was never calibrated: there is nothing to go by
    env.model.trust.given.fit(torch.randn(9, *env.model.trust.given.mean.shape))
    env.reset()
    step = env.step_chunk(actions(3))
    assert step.truncated.tolist() == [False, True, False] and not step.terminated.any()
    assert env.value_penalty.tolist() == pytest.approx([0.0, 0.2, 0.0])
    assert torch.equal(env.expected_error, expected)
    blind = make_dream(num_envs=3, horizon=9, max_steps=99)
    blind.reset()
    assert not blind.step_chunk(actions(3)).truncated.any() and not blind.value_penalty.any()
    strict = make_dream(num_envs=3, horizon=9, max_steps=99, max_expected_error=0.0)
    strict.model.trust.given.fit(torch.randn(9, *env.model.trust.given.mean.shape))
    strict.reset()
    assert strict.step_chunk(actions(3)).truncated.all()


def test_what_is_not_trusted_is_no_success(make_dream, monkeypatch):
    expected = torch.tensor([0.01, 0.05, 0.02])
    monkeypatch.setattr(trust, "expected_error", lambda model, given, memory: (expected, memory))
    env = make_dream(num_envs=3, horizon=9, max_steps=99, max_expected_error=0.03)
    monkeypatch.setattr(env.model, "success_and_progress", lambda frames, task: (1 + zeros(frames), None))
    env.model.trust.given.fit(torch.randn(9, *env.model.trust.given.mean.shape))
    env.reset()
    step = env.step_chunk(actions(3))
    assert step.is_success.tolist() == step.terminated.tolist() == [True, False, True]
    assert step.truncated.tolist() == [False, True, False] and step.reward.sum(1).tolist() == [1.0, 0.0, 1.0]


def test_noise_of_the_state_is_not_that_of_the_policy(make_dream):
    env = make_dream(obs_noise=1.0)
    noise = (env.reset()["state"] - env.context["state"]).flatten(1)
    drawn = seeded_noise(env.episode_seed, env.elapsed, noise.shape[1:])
    assert not (noise.unsqueeze(1) - drawn.unsqueeze(2)).abs().lt(1e-6).any()


def test_actions_of_another_precision_and_of_no_step(make_dream):
    env, twin = make_dream(), make_dream()
    env.reset(seed=0), twin.reset(seed=0)
    double, single = env.step_chunk(actions(3).double()), twin.step_chunk(actions(3))
    assert torch.equal(double.frames["state"], single.frames["state"])
    with pytest.raises(UserError, match=r"dream: actions have shape \(3, 0, 2\), expected \(3, k, 2\)"):
        env.step_chunk(torch.zeros(3, 0, 2))


# --- single steps ---


def test_single_steps_wait_for_their_chunk(make_dream, never_solved):
    env, twin = make_dream(horizon=2, rewards=terms("time_cost")), make_dream(horizon=2)
    obs = env.reset(seed=3)
    twin.reset(seed=3)
    chunk = actions(3)
    for j in range(K - 1):
        step = env.step(chunk[:, j])
        assert torch.equal(step.obs["state"], obs["state"]) and torch.equal(step.final_obs["state"], obs["state"])
        assert step.reward.shape == step.executed.shape == step.raw["time_cost"].shape == (3, 0)
        assert (
            step.frames["state"].shape == (3, 0, 4) and not (step.terminated | step.truncated | step.is_success).any()
        )
    step, whole = env.step(chunk[:, -1]), twin.step_chunk(chunk)
    assert torch.equal(step.frames["state"], whole.frames["state"]) and step.reward.tolist() == [[1.0] * K] * 3
    assert torch.equal(step.obs["state"], whole.obs["state"]) and step.executed.all()
    assert not step.truncated.any()
    for j in range(K):
        step = env.step(chunk[:, j])
    assert step.truncated.all()


def test_reset_forgets_an_open_chunk_and_bad_actions_are_refused_at_once(make_dream, never_solved):
    env = make_dream()
    env.reset(seed=0)
    for _ in range(K - 1):
        env.step(torch.zeros(3, 2))
    env.reset()
    assert env.step(torch.zeros(3, 2)).executed.shape == (3, 0)
    with pytest.raises(UserError, match="environment 1, step 0 of the chunk is not finite"):
        env.step(torch.tensor([[0.0, 0.0], [torch.nan, 0.0], [0.0, 0.0]]))
    with pytest.raises(UserError, match="actions have shape"):
        env.step(torch.zeros(3, 5))


def test_exact_resume_in_the_middle_of_a_chunk(make_dream):
    options = {"horizon": 3, "obs_noise": 0.01, "action_delay": 1, "rewards": terms("success", "action_jerk")}
    env = make_dream(**options)
    env.reset(seed=5)
    for i in range(6):
        env.step(actions(3, seed=i)[:, 0])
    twin = make_dream(**options, seed=9)
    assert not twin.begun
    twin.load_state_dict(env.state_dict())
    assert twin.begun
    for i in range(20):
        one, two = (e.step(actions(3, seed=100 + i)[:, 0]) for e in (env, twin))
        assert torch.equal(one.obs["state"], two.obs["state"]) and torch.equal(one.reward, two.reward)
        assert torch.equal(one.frames["state"], two.frames["state"]) and torch.equal(one.truncated, two.truncated)


def test_a_state_of_an_older_version_has_no_session(make_dream, model, never_solved):
    """It holds the frames and the number of the chunk, from which the session of our model follows."""
    model.n_denoising_steps = 2  # so that the number of the chunk has a say
    env, twin = make_dream(horizon=9), make_dream(horizon=9)
    env.reset(seed=3)
    env.step_chunk(actions(3))
    state = env.state_dict()
    del state["session"]
    twin.load_state_dict(state)
    for i in range(3):
        one, two = (e.step_chunk(actions(3, seed=i)).frames["state"] for e in (env, twin))
        assert torch.equal(one, two)
