"""Adapters on a point in the plane, where every observation, reward and end can be worked out by hand."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import ClipReward, DictInfoToList, RecordEpisodeStatistics
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from rewards.errors import UserError
from rl.config import PPOConfig
from rl.envs.adapters import (
    ChunkVecEnv,
    GymEnv,
    GymVectorEnv,
    StepVecEnv,
    action_space,
    flatten_obs,
    numpy_obs,
    observation_space,
    unflatten_obs,
)
from rl.policies.wam import flow_policy
from rl.ppo.sb3 import ChunkPPO
from world_model.env import Advance, BatchedEnv, Start
from world_model.spec import Feature, Spec
from world_model.view import View
from world_model.wam.config import ModelConfig
from world_model.wam.model import WorldActionModel

MAX_STEPS = 10
REACHED = 0.25


class Point(BatchedEnv):
    """A point that moves by its action; success within REACHED of the origin; it starts 1 to 2 away."""

    place = "point"

    def __init__(self, num_envs: int, tasks: tuple[str, ...] = ("reach",), **options) -> None:
        spec = Spec({"state": Feature((2,))}, (-1.0, -1.0), (1.0, 1.0), tasks, control_hz=10.0)
        super().__init__(spec, num_envs, n_context_frames=2, max_steps=MAX_STEPS, **options)
        self.closed = 0

    def _restart(self, mask):
        m = int(mask.sum())
        angle, radius = (
            2 * torch.pi * torch.rand(m, generator=self.generator),
            1 + torch.rand(m, generator=self.generator),
        )
        position = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
        return Start(
            context={"state": position[:, None].repeat(1, 2, 1)},
            task=mask.nonzero()[:, 0] % len(self.spec.tasks),
            seed=torch.randint(1000, (m,), generator=self.generator),
        )

    def _advance(self, actions, limit):
        frames = self.context["state"][:, -1:] + actions.cumsum(1)
        success = frames.norm(dim=-1) < REACHED
        never = torch.zeros_like(success)
        return Advance({"state": frames}, success, never, never)

    def close(self):
        self.closed += 1


def place_at(batched: Point, *positions: tuple[float, float]) -> None:
    batched.context["state"] = torch.tensor(positions)[:, None].repeat(1, 2, 1)


# --- observations and spaces ---


def test_flat_observation_is_the_frames_oldest_first_then_the_task():
    batched = Point(2, tasks=("a", "b", "c"))
    obs = {"state": torch.arange(8.0).reshape(2, 2, 2), "task": torch.tensor([2, 0])}
    flat = flatten_obs(obs, batched.spec)
    assert flat.dtype == torch.float32
    assert flat.tolist() == [[0, 1, 2, 3, 0, 0, 1], [4, 5, 6, 7, 1, 0, 0]]
    assert observation_space(batched).shape == (7,)
    back = unflatten_obs(flat, batched.spec, n_context_frames=2)
    assert torch.equal(back["state"], obs["state"]) and torch.equal(back["task"], obs["task"])


def test_one_task_adds_no_columns():
    batched = Point(2)
    obs = batched.reset(seed=0)
    flat = flatten_obs(obs, batched.spec)
    assert flat.shape == (2, 4) and observation_space(batched).shape == (4,)
    back = unflatten_obs(flat, batched.spec, n_context_frames=2)
    assert torch.equal(back["state"], obs["state"])
    assert back["task"].dtype == torch.long and back["task"].tolist() == [0, 0]


def test_action_space_repeats_the_bounds():
    batched = Point(1)
    batched.spec = Spec(batched.spec.features, (-1.0, -2.0), (1.0, 0.5), ("reach",), 10.0)
    space = action_space(batched, k=3)
    assert space.dtype == np.float32
    assert space.low.tolist() == [-1, -2] * 3 and space.high.tolist() == [1, 0.5] * 3


# --- Stable-Baselines3, step by step ---


def test_step_vec_env_by_hand():
    env = StepVecEnv(Point(2))
    env.reset()
    place_at(env.batched, (1.0, 0.0), (1.0, 1.0))
    obs, rewards, dones, infos = env.step(np.array([[-0.5, 0.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(obs, [[1, 0, 0.5, 0], [1, 1, 1, 1]])
    assert obs.dtype == rewards.dtype == np.float32
    assert rewards.tolist() == [0, 0] and dones.tolist() == [False, False]
    assert infos == [{"TimeLimit.truncated": False, "is_success": False}] * 2

    obs, rewards, dones, infos = env.step(np.array([[-0.5, 0.0], [0.0, 0.0]]))
    assert rewards.tolist() == [1, 0] and dones.tolist() == [True, False]
    np.testing.assert_array_equal(infos[0]["terminal_observation"], [0.5, 0, 0, 0])
    assert infos[0]["is_success"] is True and infos[0]["TimeLimit.truncated"] is False
    assert infos[0]["episode"]["r"] == 1.0 and infos[0]["episode"]["l"] == 2 and infos[0]["episode"]["t"] >= 0
    assert np.linalg.norm(obs[0, :2]) >= 1 and np.array_equal(obs[0, :2], obs[0, 2:])  # the next episode has begun
    assert "episode" not in infos[1] and "terminal_observation" not in infos[1]


def test_time_limit_is_a_truncation():
    env = StepVecEnv(Point(1))
    env.reset()
    for step in range(1, MAX_STEPS + 1):
        _, _, dones, infos = env.step(np.zeros((1, 2), np.float32))
        assert dones[0] == (step == MAX_STEPS)
    assert infos[0]["TimeLimit.truncated"] is True and infos[0]["is_success"] is False
    assert infos[0]["episode"]["r"] == 0.0 and infos[0]["episode"]["l"] == MAX_STEPS


def test_success_is_remembered_until_the_end_of_the_episode():
    env = StepVecEnv(Point(1, terminate_on_success=False))
    env.reset()
    place_at(env.batched, (1.0, 0.0))
    actions = [(-1.0, 0.0), (1.0, 0.0)] + [(0.0, 0.0)] * (MAX_STEPS - 2)  # there, back again, and wait
    seen = [env.step(np.array([a]))[3][0] for a in actions]
    assert [info["is_success"] for info in seen] == [True] * MAX_STEPS
    assert seen[-1]["episode"]["r"] == 1.0
    assert env.step(np.zeros((1, 2)))[3][0]["is_success"] is False


def test_returned_arrays_belong_to_the_caller():
    env, twin = StepVecEnv(Point(2, seed=3)), StepVecEnv(Point(2, seed=3))
    env.reset()[:] = np.nan
    twin.reset()
    actions = np.full((2, 2), 0.1)
    env.step_async(actions)
    actions[:] = np.nan
    first = env.step_wait()
    for got, expected in zip(first[:3], twin.step(np.full((2, 2), 0.1))[:3], strict=True):
        np.testing.assert_array_equal(got, expected)
        got[:] = 1
    for got, expected in zip(env.step(np.zeros((2, 2)))[:3], twin.step(np.zeros((2, 2)))[:3], strict=True):
        np.testing.assert_array_equal(got, expected)
        assert not any(np.shares_memory(got, earlier) for earlier in first[:3])


def test_seed_counts_from_the_next_reset_and_once():
    env = StepVecEnv(Point(3))
    assert env.seed(7) == [7, 8, 9]
    first, second = env.reset(), env.reset()
    assert not np.array_equal(first, second)
    env.seed(7)
    np.testing.assert_array_equal(env.reset(), first)
    np.testing.assert_array_equal(env.reset(), second)


def test_attributes_and_methods_are_those_of_the_batch():
    env = StepVecEnv(Point(3))
    assert env.get_attr("max_steps") == [MAX_STEPS] * 3 and env.get_attr("place", indices=[0, 2]) == ["point"] * 2
    assert not env.has_attr("nothing_of_the_kind")
    env.set_attr("max_steps", 4)
    assert env.batched.max_steps == 4
    env.env_method("close")
    env.close()
    assert env.batched.closed == 2
    with pytest.raises(UserError, match=r"indices=\[0\]"):
        env.set_attr("max_steps", 4, indices=[0])


# --- Stable-Baselines3, chunk by chunk ---


def test_chunk_reward_is_discounted_over_executed_steps():
    env = ChunkVecEnv(Point(2, terminate_on_success=False), k=4, gamma=0.5)
    assert env.action_space.shape == (8,)
    env.reset()
    place_at(env.batched, (1.0, 0.0), (5.0, 0.0))
    chunk = [(-1.0, 0.0), (0.0, 0.0), (0.0, 1.0), (0.0, -1.0)]  # at the origin after steps 1, 2 and 4
    obs, rewards, dones, infos = env.step(np.array([chunk, chunk]).reshape(2, 8))
    assert rewards.dtype == np.float32 and rewards.tolist() == [1 + 0.5 + 0.125, 0]
    np.testing.assert_array_equal(obs, [[0, 1, 0, 0], [4, 1, 4, 0]])
    assert dones.tolist() == [False, False]
    env.step(np.zeros((2, 8)))
    _, rewards, dones, infos = env.step(np.zeros((2, 8)))  # steps 9 and 10, then the limit
    assert rewards.tolist() == [1.5, 0] and dones.tolist() == [True, True]
    assert [i["episode"]["r"] for i in infos] == [3 + 4 + 2, 0]  # not discounted
    assert [i["episode"]["l"] for i in infos] == [MAX_STEPS, MAX_STEPS]
    np.testing.assert_array_equal(infos[1]["terminal_observation"], [4, 0, 4, 0])


def test_chunk_stops_at_success():
    env = ChunkVecEnv(Point(1), k=4)
    env.reset()
    place_at(env.batched, (1.0, 0.0))
    _, rewards, dones, infos = env.step(np.array([[-0.5, 0, -0.5, 0, 1, 1, 1, 1]]))
    assert rewards.tolist() == [1] and dones.tolist() == [True]
    assert infos[0]["episode"]["l"] == 2 and infos[0]["is_success"] and not infos[0]["TimeLimit.truncated"]
    np.testing.assert_array_equal(infos[0]["terminal_observation"], [0.5, 0, 0, 0])


def test_chunk_of_one_equals_step():
    env, twin = ChunkVecEnv(Point(3, seed=1), k=1), StepVecEnv(Point(3, seed=1))
    np.testing.assert_array_equal(env.reset(), twin.reset())
    rng = np.random.default_rng(0)
    for _ in range(25):
        actions = rng.uniform(-1, 1, (3, 2))
        for got, expected in zip(env.step(actions)[:3], twin.step(actions)[:3], strict=True):
            np.testing.assert_array_equal(got, expected)


# --- stock algorithms ---


@pytest.mark.parametrize("make", [StepVecEnv, lambda b: ChunkVecEnv(b, k=3, gamma=0.9)])
def test_stock_ppo_learns_and_logs_episodes_without_a_monitor(make):
    torch.set_num_threads(1)
    env = make(Point(4))
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=64, n_epochs=1, seed=0, device="cpu")
    model.learn(256)
    assert 0 <= np.mean([e["r"] for e in model.ep_info_buffer]) <= 1
    assert max(e["l"] for e in model.ep_info_buffer) <= MAX_STEPS
    assert len(model.ep_success_buffer) == len(model.ep_info_buffer)
    assert model.get_env() is env
    mean, _ = evaluate_policy(model, make(Point(2)), n_eval_episodes=4)
    assert 0 <= mean <= 1


def test_stock_ppo_repeats_exactly():
    runs = []
    for _ in range(2):
        model = PPO("MlpPolicy", StepVecEnv(Point(4)), n_steps=32, batch_size=64, n_epochs=1, seed=5, device="cpu")
        model.learn(256)
        runs.append(torch.cat([p.flatten() for p in model.policy.parameters()]))
    assert torch.equal(*runs)


class ToOrigin:
    """Walks to the origin, in SB3's words for a policy."""

    def predict(self, obs, state=None, episode_start=None, deterministic=True):
        return np.clip(-obs[:, 2:], -1, 1), None


def test_evaluate_policy_counts_returns_and_steps(recwarn):
    returns, lengths = evaluate_policy(
        ToOrigin(), StepVecEnv(Point(3)), n_eval_episodes=12, return_episode_rewards=True, warn=True
    )
    assert returns == [1.0] * 12 and set(lengths) <= {1, 2}  # starts are 1 to 2 away, a step is at most sqrt(2)
    assert not [w for w in recwarn if "Monitor" in str(w.message)]


def test_evaluate_policy_in_chunks_reports_steps_not_chunks():
    class Wait:
        def predict(self, obs, state=None, episode_start=None, deterministic=True):
            return np.zeros((len(obs), 8)), None

    returns, lengths = evaluate_policy(
        Wait(), ChunkVecEnv(Point(2), k=4), n_eval_episodes=4, return_episode_rewards=True
    )
    assert returns == [0.0] * 4 and lengths == [MAX_STEPS] * 4


def test_wrappers_and_callbacks_of_sb3_take_it(tmp_path):
    env = VecNormalize(StepVecEnv(Point(2)))
    callback = EvalCallback(
        VecNormalize(StepVecEnv(Point(2)), training=False),
        n_eval_episodes=4,
        eval_freq=16,
        log_path=tmp_path,
        verbose=0,
    )
    PPO("MlpPolicy", env, n_steps=16, batch_size=32, n_epochs=1, seed=0, device="cpu").learn(64, callback=callback)
    data = np.load(tmp_path / "evaluations.npz")
    assert data["successes"].shape == (2, 4)  # 64 steps of 2 environments, an evaluation every 16 calls
    assert np.array_equal(data["results"], data["successes"])  # a success pays 1


# --- gymnasium, a single environment ---


def test_gym_env_passes_both_checkers():
    gymnasium_check_env(GymEnv(Point(1, tasks=("a", "b"))), skip_render_check=True)
    sb3_check_env(GymEnv(Point(1, tasks=("a", "b"))))


def test_gym_env_by_hand():
    env = GymEnv(Point(1))
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(2, np.float32))
    obs, info = env.reset(seed=0)
    assert obs in env.observation_space and info == {}
    place_at(env.batched, (1.0, 0.0))
    obs, reward, terminated, truncated, info = env.step(np.array([-1.0, 0.0], np.float32))
    np.testing.assert_array_equal(obs, [1, 0, 0, 0])  # the last one, not the first of the next episode
    assert (reward, terminated, truncated, info) == (1.0, True, False, {"is_success": True})
    assert type(reward) is float and type(terminated) is bool
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(2, np.float32))
    waiting = flatten_obs(env.batched.observe(), env.batched.spec)
    obs, _ = env.reset()
    np.testing.assert_array_equal(obs, waiting[0])  # the episode that had begun already
    obs, *_ = env.step(np.zeros(2, np.float32))
    np.testing.assert_array_equal(obs, waiting[0])


def test_gym_env_repeats_exactly_from_a_seed():
    env = GymEnv(Point(1, obs_noise=0.1))

    def run() -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        seen = [env.reset(seed=11)[0]]
        for _ in range(40):
            obs, _, terminated, truncated, _ = env.step(rng.uniform(-1, 1, 2).astype(np.float32))
            seen.append(obs)
            if terminated or truncated:
                seen.append(env.reset()[0])
        return seen

    np.testing.assert_array_equal(run(), run())
    assert not np.array_equal(env.reset(seed=11)[0], env.reset(seed=12)[0])


def test_gym_env_takes_one_environment():
    with pytest.raises(UserError, match="num_envs=2"):
        GymEnv(Point(2))


def test_stock_ppo_on_gym_env():
    env = GymEnv(Point(1))
    PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu").learn(64)
    gymnasium.wrappers.RecordEpisodeStatistics(env).close()
    assert env.batched.closed == 1


# --- gymnasium, a batch ---


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if a is None or b is None:
        return a is b
    if a.dtype == object:
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    return a.dtype == b.dtype and np.array_equal(a, b)


def test_gym_vector_env_has_the_conventions_of_gymnasium():
    """The same episodes through gymnasium's own vector environment give equal arrays and equal infos."""

    class FixedStart(Point):
        def _restart(self, mask):
            start = super()._restart(mask)
            start.context["state"][:] = torch.tensor([1.5, 0.0])
            return start

    env = GymVectorEnv(FixedStart(2))
    sync = SyncVectorEnv([lambda: GymEnv(FixedStart(1))] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env.single_observation_space == sync.single_observation_space and env.action_space == sync.action_space
    np.testing.assert_array_equal(env.reset(seed=0)[0], sync.reset(seed=0)[0])
    steps = [[-1, 0], [-0.5, 0], [0, 0.1], [0, 0], [-1, 0], [0, 0], [0, 0], [0, 0], [-0.5, 0], [0, 0], [0, 0], [0, 0]]
    n_ended = 0
    for step in steps:
        actions = np.array([step, [0, 0]], np.float32)  # the second waits until its limit
        (obs, reward, *ends, info), (obs_, reward_, *ends_, info_) = env.step(actions), sync.step(actions)
        np.testing.assert_array_equal(obs, obs_)
        np.testing.assert_array_equal(reward, reward_)
        np.testing.assert_array_equal(ends, ends_)
        assert reward.dtype == np.float32
        assert same(info, info_), (info, info_)
        n_ended += int(np.sum(ends))
    assert n_ended == 3


def test_wrappers_of_gymnasium_take_it():
    env = DictInfoToList(RecordEpisodeStatistics(ClipReward(GymVectorEnv(Point(3)), 0, 0.5)))
    env.reset(seed=0)
    episodes = []
    for _ in range(2 * MAX_STEPS):
        _, _, terminated, _, infos = env.step(np.zeros((3, 2), np.float32))
        episodes += [info for info in infos if "episode" in info]
        assert not terminated.any()
    assert [e["episode"]["l"] for e in episodes] == [MAX_STEPS] * 6
    assert all(e["final_info"]["is_success"] == 0 and e["final_obs"].shape == (4,) for e in episodes)
    env.close()
    assert env.unwrapped.batched.closed == 1


def test_gym_vector_env_repeats_exactly_from_a_seed():
    env = GymVectorEnv(Point(4, obs_noise=0.1))

    def run() -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        return [env.reset(seed=3)[0]] + [env.step(rng.uniform(-1, 1, (4, 2)))[0] for _ in range(25)]

    np.testing.assert_array_equal(run(), run())
    assert env.np_random_seed == 3


def test_gym_vector_env_refuses_a_partial_reset():
    with pytest.raises(UserError, match="reset_mask"):
        GymVectorEnv(Point(2)).reset(options={"reset_mask": np.array([True, False])})


# --- images ---

SIDE = 48
"""Pixels on a side; Stable-Baselines3's network for images takes at least 36, ours a multiple of 16."""


class SeenPoint(Point):
    """The point, and a camera whose image of step t has the value t in each pixel; the red one is 100 + t."""

    def __init__(self, num_envs: int, tasks: tuple[str, ...] = ("reach",), **options) -> None:
        super().__init__(num_envs, tasks, **options)
        state = Feature((2,), slices={"hand_pos": (0, 2)})
        features = {"state": state, "images.front": Feature((SIDE, SIDE, 3), dtype="uint8")}
        self.spec = Spec(features, (-1.0, -1.0), (1.0, 1.0), tasks, control_hz=10.0)
        self.context["images.front"] = torch.zeros(num_envs, 2, SIDE, SIDE, 3, dtype=torch.uint8)

    def _restart(self, mask):
        start = super()._restart(mask)
        start.context["images.front"] = self.images(torch.zeros(int(mask.sum()), 2))
        return start

    def _advance(self, actions, limit):
        advance = super()._advance(actions, limit)
        advance.frames["images.front"] = self.images(self.elapsed[:, None] + torch.arange(1, actions.shape[1] + 1))
        return advance

    @staticmethod
    def images(step):
        images = step.to(torch.uint8)[..., None, None, None].repeat(1, 1, SIDE, SIDE, 3)
        images[..., 0] += 100
        return images


def test_images_go_there_and_back_exactly():
    spec = SeenPoint(1, tasks=("a", "b")).spec
    obs = {
        "state": torch.randn(3, 2, 2),
        "images.front": torch.randint(0, 256, (3, 2, SIDE, SIDE, 3), dtype=torch.uint8),
        "task": torch.tensor([1, 0, 1]),
    }
    given = numpy_obs(obs, spec)
    assert given.keys() == {"state", "images_front"} and given["state"].shape == (3, 6)
    assert given["images_front"].shape == (3, SIDE, SIDE, 6) and given["images_front"].dtype == np.uint8
    # The channels of the older frame come first.
    np.testing.assert_array_equal(given["images_front"][..., :3], obs["images.front"][:, 0])
    np.testing.assert_array_equal(given["images_front"][..., 3:], obs["images.front"][:, 1])
    back = unflatten_obs({name: torch.from_numpy(values) for name, values in given.items()}, spec, n_context_frames=2)
    assert back.keys() == obs.keys()
    for name, values in obs.items():
        assert back[name].dtype == values.dtype and torch.equal(back[name], values), name
    given["images_front"][:] = 0  # a copy: the caller may write into it
    assert obs["images.front"].float().mean() > 100


def test_step_vec_env_gives_dicts_where_there_are_images():
    env = StepVecEnv(SeenPoint(2))
    obs = env.reset()
    space = env.observation_space
    assert isinstance(space, gymnasium.spaces.Dict) and space["images_front"].shape == (SIDE, SIDE, 6)
    assert space.contains({name: values[0] for name, values in obs.items()})
    place_at(env.batched, (1.0, 0.0), (1.0, 1.0))
    obs, _, dones, _ = env.step(np.array([[-0.5, 0.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(obs["state"], [[1, 0, 0.5, 0], [1, 1, 1, 1]])
    assert obs["images_front"][0, 0, 0].tolist() == [100, 0, 0, 101, 1, 1] and not dones.any()
    obs, _, dones, infos = env.step(np.array([[-0.5, 0.0], [0.0, 0.0]]))
    assert dones.tolist() == [True, False]
    last = infos[0]["terminal_observation"]
    np.testing.assert_array_equal(last["state"], [0.5, 0, 0, 0])
    assert last["images_front"][0, 0].tolist() == [101, 1, 1, 102, 2, 2]
    assert obs["images_front"][:, 0, 0].tolist() == [[100, 0, 0] * 2, [101, 1, 1, 102, 2, 2]]


def test_gym_env_gives_dicts_where_there_are_images():
    env = GymEnv(SeenPoint(1))
    gymnasium_check_env(GymEnv(SeenPoint(1)), skip_render_check=True)
    sb3_check_env(GymEnv(SeenPoint(1)))
    first, _ = env.reset(seed=0)
    assert first in env.observation_space and first["images_front"][0, 0].tolist() == [100, 0, 0] * 2
    place_at(env.batched, (1.0, 0.0))
    obs, _, terminated, _, _ = env.step(np.array([-1.0, 0.0], np.float32))
    np.testing.assert_array_equal(obs["state"], [1, 0, 0, 0])
    assert terminated and obs["images_front"][0, 0].tolist() == [100, 0, 0, 101, 1, 1]  # of the episode that ended
    obs, _ = env.reset()
    assert obs["images_front"][0, 0].tolist() == [100, 0, 0] * 2


def test_gym_vector_env_gives_dicts_where_there_are_images():
    env = GymVectorEnv(SeenPoint(2))
    obs, _ = env.reset(seed=0)
    assert obs in env.observation_space and obs["images_front"].shape == (2, SIDE, SIDE, 6)
    for _ in range(MAX_STEPS):
        obs, _, _, truncated, infos = env.step(np.zeros((2, 2), np.float32))
    assert truncated.all() and obs in env.observation_space
    assert obs["images_front"][0, 0, 0].tolist() == [100, 0, 0] * 2
    final = infos["final_obs"][1]
    assert final in env.single_observation_space
    assert final["images_front"][0, 0].tolist() == [109, 9, 9, 110, 10, 10]


def test_stock_ppo_learns_from_images():
    torch.set_num_threads(1)
    env = StepVecEnv(SeenPoint(1))
    model = PPO("MultiInputPolicy", env, n_steps=8, batch_size=8, n_epochs=1, seed=0, device="cpu")
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(16)
    assert model.num_timesteps == 16 and env.batched.begun
    assert not all(torch.equal(p, b) for p, b in zip(model.policy.parameters(), before, strict=True))
    _, lengths = evaluate_policy(model, StepVecEnv(SeenPoint(2)), n_eval_episodes=2, return_episode_rewards=True)
    assert max(lengths) <= MAX_STEPS


def test_our_ppo_reads_images_through_the_interface_of_sb3():
    env = StepVecEnv(SeenPoint(2))
    torch.manual_seed(0)
    sizes = {"width": 32, "world_width": 32, "action_width": 32, "n_layers": 1, "n_heads": 2, "patch_dim": 4}
    model = WorldActionModel(ModelConfig(**sizes, views={"front": View()}, image_size=SIDE), env.batched.spec).eval()
    frames = torch.randn(8, 10, model.frame_dim)
    model.codec.fit(frames[:, :2], frames[:, 2:])
    model.action_codec.action.fit(torch.randn(8, 2))
    policy = flow_policy(model, env.batched)
    ppo = ChunkPPO(policy, env, PPOConfig(n_steps=2, batch_size=4, n_epochs=1, bc_coef=0.0, target_kl=None))
    ppo.learn(32)
    assert ppo.num_timesteps >= 32
    # What its environment returns, it can read: SB3 has not moved the channels of the images.
    obs = ppo.get_env().reset()
    assert obs["images_front"].shape == (2, SIDE, SIDE, 6)
    actions, _ = ppo.predict(obs, deterministic=True)
    first, _ = ppo.predict({name: values[0] for name, values in obs.items()}, deterministic=True)
    assert actions.shape == (2, 2) and first.shape == (2,)
    np.testing.assert_allclose(actions[0], first, atol=1e-5)
    _, lengths = evaluate_policy(ppo, env, n_eval_episodes=2, return_episode_rewards=True)
    assert max(lengths) <= MAX_STEPS
