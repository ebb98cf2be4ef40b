"""SimEnv: honest seeds, ends, partial chunks, workers, exact resume, bad input."""

import pickle
import re
import threading

import gymnasium
import numpy as np
import pytest
import torch

from rewards.errors import UserError
from rl.envs.cameras import CameraUse
from rl.envs.sim import SimEnv, make_spec
from rl.envs.simulator import IDLE
from rl.envs.workers import Group, Workers
from rl.stages.collect import record
from rl.stages.images import model_spec
from world_model.extras import pip_line
from world_model.view import View
from world_model.wam.config import ModelConfig

torch.set_num_threads(1)
TASKS = ("push", "drawer-open")
GOAL = slice(18, 21)


class Walk(gymnasium.Env):
    """A position pushed by the action: success from 0.5 on, termination below -0.5, NaN beyond 10 steps."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.t = self.np_random.uniform(-0.1, 0.1), 0
        return self._obs(), {}

    def step(self, action):
        self.x, self.t = self.x + 0.25 * float(action[0]), self.t + 1
        return self._obs(), self.x, self.x < -0.5, False, {"is_success": self.x >= 0.5}

    def _obs(self):
        return np.array([self.x if self.t < 10 else np.nan, self.t])


class Odd(Walk):
    action_space = gymnasium.spaces.Discrete(2)


class Shown(Walk):
    """Renders 6 x 8 pixels: white where the middle third of each axis of the middle square is, and red on its left."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode=None):
        self.render_mode, self.grey = render_mode, False

    def render(self):
        image = np.zeros((6, 8, 3), np.uint8)
        image[2:4, 3:5] = 255
        image[2:4, 1:3, :1] = 200
        image[:, 0] = 99  # outside the square
        return image[..., 0] if self.grey else image


gymnasium.register("Walk-v0", Walk)
gymnasium.register("Shown-v0", Shown)
gymnasium.register("Odd-v0", Odd)


def actions(n, k, a=4, seed=0):
    return torch.rand(n, k, a, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def rollout(env, chunks, k=3, a=4):
    return [env.step_chunk(actions(env.num_envs, k, a, seed=i)) for i in range(chunks)]


def assert_same(left, right):
    for one, other in zip(left, right, strict=True):
        for name in ("reward", "executed", "terminated", "truncated", "is_success", "task_reward"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        for name in ("frames", "obs", "final_obs"):
            ours, theirs = getattr(one, name), getattr(other, name)
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours), name


def test_same_seed_same_goal_and_another_seed_another_goal():
    env = SimEnv("metaworld", 3, ["push"])
    env.set_episode_seeds([5, 6, 5])
    state = env.reset()["state"]
    assert env.episode_seed.tolist() == [5, 6, 5]
    assert torch.equal(state[0], state[2])
    assert not torch.allclose(state[0, -1, GOAL], state[1, -1, GOAL])
    env.set_episode_seeds([])
    first, second, again = env.reset(seed=1), env.reset(seed=2), env.reset(seed=1)
    assert torch.equal(first["state"], again["state"]) and not torch.equal(first["state"], second["state"])


@pytest.mark.parametrize("n_workers", [0, 2])
def test_who_finds_no_named_episode_is_idle(n_workers):
    env = SimEnv("metaworld", 3, ["push"], max_steps=6, n_workers=n_workers)
    env.set_episode_seeds([5, 6, 7, 8])
    first = env.reset()["state"]
    step = env.step_chunk(actions(3, 6))
    assert step.truncated.all() and env.episode_seed.tolist() == [8, IDLE, IDLE]
    frames, again = env.step_chunk(actions(3, 5)).frames["state"], env.step_chunk(actions(3, 1))
    assert (frames[0, 0] != frames[0, 4]).any() and (frames[1:] == frames[1:, :1]).all()
    assert again.truncated.all() and not again.task_reward[1:].any() and env.episode_seed.tolist() == [IDLE] * 3
    env.set_episode_seeds([5])
    assert torch.equal(env.reset()["state"][0], first[0]) and env.episode_seed.tolist() == [5, IDLE, IDLE]
    env.close()


def test_spec_tasks_and_context():
    env = SimEnv("metaworld", 3, TASKS, n_context_frames=2, task_names=("hammer", "drawer-open", "push"))
    obs = env.reset(seed=0)
    assert obs["state"].shape == (3, 2, 21) and obs["state"].dtype == torch.float32
    assert obs["task"].tolist() == [2, 1, 2]
    assert torch.equal(obs["state"][:, 0], obs["state"][:, 1])
    assert env.spec.control_hz == 80.0 and env.spec.slices["goal_pos"] == GOAL and env.spec.action_dim == 4
    step = env.step(torch.zeros(3, 4))
    assert torch.equal(step.obs["state"][:, 0], obs["state"][:, 1])


def test_end_on_success_restarts_and_leaves_the_rest_of_the_chunk():
    env = SimEnv("Walk-v0", 2)
    env.reset(seed=0)
    chunk = env.step_chunk(torch.tensor([[[1.0]] * 6, [[0.0]] * 6]))
    steps = int(chunk.executed[0].sum())
    assert steps in (2, 3) and chunk.executed[1].all()
    assert chunk.is_success.tolist() == [True, False] == chunk.terminated.tolist()
    assert chunk.reward.sum(1).tolist() == [1.0, 0.0]
    assert chunk.final_obs["state"][0, -1, 0] >= 0.5 and chunk.final_obs["state"][0, -1, 1] == steps
    assert chunk.obs["state"][0, -1, 1] == 0 and env.elapsed.tolist() == [0, 6]
    assert (chunk.frames["state"][0, steps:] == chunk.frames["state"][0, steps - 1]).all()


def test_success_may_be_left_running():
    env = SimEnv("Walk-v0", 1, terminate_on_success=False)
    env.reset(seed=0)
    chunk = env.step_chunk(torch.ones(1, 6, 1))
    assert chunk.executed.all() and chunk.is_success.all() and not chunk.terminated.any()


def test_own_termination_is_not_success():
    env = SimEnv("Walk-v0", 1)
    env.reset(seed=0)
    chunk = env.step_chunk(-torch.ones(1, 6, 1))
    assert chunk.terminated.all() and not chunk.is_success.any() and not chunk.executed.all()


def test_a_recorded_episode_ends_where_the_place_ends_it():
    env = SimEnv("Walk-v0", 4, max_steps=9, terminate_on_success=False)
    for episode in record(env, lambda obs: torch.full((4, 2, 1), -1.0), "random"):
        x = episode.state[:, 0]
        assert (x[:-1] >= -0.5).all() and x[-1] < -0.5 and episode.length in (2, 3)
        torch.testing.assert_close(x.diff(), torch.full((episode.length,), -0.25))


def test_step_limit_truncates_within_a_chunk():
    env = SimEnv("metaworld", 2, TASKS, max_steps=5)
    env.reset(seed=0)
    first, second = rollout(env, 2, k=3)
    assert not first.truncated.any() and second.truncated.all() and not second.terminated.any()
    assert second.executed.tolist() == [[True, True, False]] * 2
    assert env.elapsed.tolist() == [0, 0]


def test_chunk_equals_single_steps():
    chunked, single = SimEnv("metaworld", 2, TASKS), SimEnv("metaworld", 2, TASKS)
    chunked.reset(seed=3), single.reset(seed=3)
    plan = actions(2, 4)
    chunk = chunked.step_chunk(plan)
    steps = [single.step(plan[:, j]) for j in range(4)]
    assert torch.equal(chunk.frames["state"], torch.cat([s.frames["state"] for s in steps], 1))
    assert torch.equal(chunk.task_reward, torch.cat([s.task_reward for s in steps], 1))


def test_expert_succeeds():
    env = SimEnv("metaworld", 2, ["drawer-open"])
    env.reset(seed=0)
    ended = torch.zeros(2, dtype=torch.bool)
    for _ in range(150):
        ended |= env.step(env.expert_actions()).is_success
    assert ended.all()


@pytest.mark.parametrize("env_id, tasks, a", [("metaworld", TASKS, 4), ("Pendulum-v1", None, 1)])
def test_workers_do_not_change_results(env_id, tasks, a):
    results = []
    for n_workers in (0, 2):
        env = SimEnv(env_id, 3, tasks, max_steps=7, n_workers=n_workers)
        env.reset(seed=4)
        results.append(rollout(env, 4, a=a))
        env.close()
    assert_same(*results)


def test_error_in_a_worker_comes_back():
    with pytest.raises(UserError, match="unknown to Meta-World"):
        Workers("metaworld", ["nothing"], {}, {}, 1)


def test_a_worker_that_died_is_told_and_the_others_end():
    workers = Workers("metaworld", ["push", "push"], {}, {}, 2)
    others = workers.processes[1]
    workers.processes[0].kill()
    workers.processes[0].wait()
    with pytest.raises(RuntimeError, match="an environment worker ended with exit code -9"):
        workers.reset({0: 1, 1: 1})
    workers.close()
    assert others.poll() == 0


def test_a_worker_ends_although_nobody_takes_its_answer():
    workers = Workers("metaworld", ["push"], {}, {}, 1)
    workers.reset({0: 1})
    zero = np.zeros(1, int)
    nothing = np.zeros((1, 5000, 4), np.float32), zero, True, zero  # frames of 400 kB, more than a pipe holds
    pickle.dump(("advance", nothing), workers.processes[0].stdin)
    workers.processes[0].stdin.flush()
    closing = threading.Thread(target=workers.close, daemon=True)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()


@pytest.mark.parametrize("env_id, tasks, a", [("metaworld", TASKS, 4), ("Pendulum-v1", None, 1)])
def test_exact_resume_in_a_new_environment(env_id, tasks, a):
    make = lambda: SimEnv(env_id, 2, tasks, max_steps=20, action_delay=1, obs_noise=0.01)  # noqa: E731
    env = make()
    env.reset(seed=1)
    rollout(env, 3, a=a)
    saved = env.state_dict()
    expected = rollout(env, 5, a=a)  # runs into a restart
    other = make()
    other.load_state_dict(saved)
    assert_same(expected, rollout(other, 5, a=a))


def test_action_delay_executes_zeros_first():
    delayed, plain = SimEnv("metaworld", 1, ["push"], action_delay=2), SimEnv("metaworld", 1, ["push"])
    delayed.reset(seed=0), plain.reset(seed=0)
    plan = actions(1, 5)
    late = torch.cat([torch.zeros(1, 2, 4), plan[:, :3]], 1)
    assert torch.equal(delayed.step_chunk(plan).frames["state"], plain.step_chunk(late).frames["state"])


def test_observation_noise_is_seeded_and_leaves_the_physics_alone():
    noisy, plain = SimEnv("Walk-v0", 1000, obs_noise=0.1), SimEnv("Walk-v0", 1000)
    noise = noisy.reset(seed=2)["state"] - plain.reset(seed=2)["state"]
    assert abs(float(noise.std()) - 0.1) < 0.005
    assert torch.equal(noisy.reset(seed=2)["state"] - plain.reset(seed=2)["state"], noise)
    assert torch.equal(noisy.observe()["state"], noisy.observe()["state"])
    noisy.set_episode_seeds([int(noisy.episode_seed[7])])  # of an episode, wherever it runs
    assert torch.equal(noisy.reset()["state"][0] - noisy.context["state"][0], noise[7])
    noisy.set_episode_seeds([])
    noisy.reset(seed=2)
    assert torch.equal(*(env.step(torch.zeros(1000, 1)).frames["state"] for env in (noisy, plain)))


def test_nan_names_environment_and_step():
    env = SimEnv("Walk-v0", 2)
    env.reset(seed=0)
    env.step_chunk(torch.zeros(2, 6, 1))
    with pytest.raises(UserError, match=r"environment 0 \(task Walk-v0\).*step 10"):
        env.step_chunk(torch.zeros(2, 6, 1))


def test_gymnasium_environment_reports_its_own_reward_and_limit():
    env, stock = SimEnv("Pendulum-v1", 1, max_steps=500), gymnasium.make("Pendulum-v1")
    env.set_episode_seeds([7])
    obs, _ = stock.reset(seed=7)
    assert torch.equal(env.reset()["state"][0, -1], torch.from_numpy(obs))
    expected = stock.step(np.array([1.5], np.float32))
    step = env.step(torch.tensor([[1.5]]))
    assert torch.equal(step.frames["state"][0, 0], torch.from_numpy(expected[0]))
    assert float(step.task_reward) == pytest.approx(float(expected[1])) and not step.is_success.any()
    ends = [env.step_chunk(torch.zeros(1, 50, 1)).truncated.item() for _ in range(4)]
    assert ends == [False, False, False, True]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("metaworld", 1, ["pusch"]), "'pusch' is unknown to Meta-World; did you mean 'push'?"),
        (("metaworld", 1), "needs tasks="),
        (("Nothing-v0", 1), "'Nothing-v0' cannot be made"),
        (("Odd-v0", 1), "action space is Discrete, expected Box"),
        (("Pendulum-v1", 1, ["push"]), "is its own task"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        SimEnv(*arguments)
    assert "\n" not in str(error.value)


def test_task_that_the_model_lacks():
    with pytest.raises(UserError, match="'push' is unknown to the model; known: hammer"):
        SimEnv("metaworld", 1, ["push"], task_names=["hammer"])


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gym_pusht", None)
    with pytest.raises(UserError, match=re.escape(pip_line("pusht"))):
        SimEnv("gym_pusht/PushT-v0", 1)


def test_no_expert_outside_metaworld():
    with pytest.raises(UserError, match="no scripted expert"):
        SimEnv("Pendulum-v1", 1).expert_actions()


def test_a_closed_simulator_lets_go_of_its_physics() -> None:
    """A model is 25 MB, and environments refer to themselves: runs one after the other would fill the memory."""
    env = SimEnv("metaworld", 2, ["push"])
    tasks = env._envs.envs
    env.reset()
    env.close()
    assert all(vars(task._env) == {} for task in tasks)


def cameras(size, n=1):
    return {f"images.{i}": CameraUse(View(), size, size) for i in range(n)}


def test_what_a_gymnasium_environment_renders_is_cut_to_a_square_and_shrunk():
    _, (images,) = Group("Shown-v0", ["Shown-v0"], {}, cameras(3)).reset({0: 1})
    assert list(images) == ["images.0"] and images["images.0"].shape == (3, 3, 3)
    assert images["images.0"].dtype == np.uint8
    middle = images["images.0"][1].tolist()
    assert middle == [[200, 0, 0], [255, 255, 255], [0, 0, 0]] and not images["images.0"][[0, 2]].any()
    wide = {"images.0": CameraUse(View(), 2, 4)}
    _, (images,) = Group("Shown-v0", ["Shown-v0"], {}, wide).reset({0: 1})
    # The middle 4 x 8 of 6 x 8 pixels, averaged over areas of 2 x 2: two of 99 and one of (200, 0, 0); one of
    # (200, 0, 0) and one white; one white.
    assert images["images.0"].shape == (2, 4, 3)
    assert images["images.0"][0].tolist() == [[100, 50, 50], [114, 64, 64], [64, 64, 64], [0, 0, 0]]
    _, (same,) = Group("Shown-v0", ["Shown-v0"], {}, cameras(6)).reset({0: 1})
    assert np.array_equal(same["images.0"], Shown().render()[:, 1:7])


def test_what_cannot_be_seen_is_said_in_one_line():
    with pytest.raises(UserError, match=r"'Shown-v0': it has one camera, the checkpoint reads images\.0, images\.1$"):
        Group("Shown-v0", ["Shown-v0"], {}, cameras(6, n=2))
    for size, message in (
        (7, r"environment Shown-v0: images\.0 is \(6, 8\), expected at least 7 x 7$"),
        (6, r"environment Shown-v0: images\.0 is no image in colour; choose a checkpoint that reads none$"),
    ):
        group = Group("Shown-v0", ["Shown-v0"], {}, cameras(size))
        group.envs[0]._env.unwrapped.grey = "colour" in message
        with pytest.raises(UserError, match=message):
            group.reset({0: 1})
    config = ModelConfig(views={"front": View()})
    with pytest.raises(UserError, match=r"the state of Walk-v0 has none of hand_pos, gripper, .*; see SLICES in"):
        model_spec(make_spec("Walk-v0", None), config)
