"""The faster Meta-World gives stock's numbers."""

import warnings

import numpy as np
import pytest
from metaworld.env_dict import ENV_CLS_MAP
from metaworld.policies import ENV_POLICY_MAP

from rewards.errors import UserError
from rl.envs.metaworld.fast_sawyer import fast_class
from rl.envs.metaworld.tasks import CONTROL_HZ, MetaWorldTask, scripted_expert

# One of each kind: SciPy rotations, two objects, a site as object, settling against a moved body, touch in the success.
KINDS = (
    "push",
    "hammer",
    "peg-insert-side",
    "box-close",
    "assembly",
    "button-press-topdown",
    "stick-push",
    "faucet-open",
)


def stock_env(task):
    """The stock environment, set up so that `env.seed(s); env.reset()` names an episode with a visible goal."""
    env = ENV_CLS_MAP[f"{task}-v3"]()
    env._set_task_called, env._freeze_rand_vec, env.seeded_rand_vec = True, False, True
    env._partially_observable = False
    del env.sawyer_observation_space
    return env


@pytest.mark.parametrize("task", KINDS)
def test_equals_stock(task):
    stock, fast = stock_env(task), fast_class(f"{task}-v3")()
    policy, rng = ENV_POLICY_MAP[f"{task}-v3"](), np.random.default_rng(0)
    warnings.simplefilter("ignore")
    for episode, expert in enumerate((True, False, True)):  # the third begins where random actions left the scene
        stock.seed(episode)
        obs, _ = stock.reset()
        np.testing.assert_allclose(fast.restart(episode), obs, rtol=0, atol=1e-12)
        for _ in range(60):
            action = policy.get_action(obs) if expert else rng.uniform(-1.2, 1.2, 4)
            action = np.clip(action, -1, 1).astype(np.float32)
            obs, reward, _, _, info = stock.step(action)
            ours, our_reward, our_success = fast.advance(action)
            np.testing.assert_allclose(ours, obs, rtol=0, atol=1e-12)
            np.testing.assert_allclose(our_reward, reward, rtol=0, atol=1e-10)
            assert our_success == bool(info["success"])


def test_episode_depends_on_its_seed_alone():
    fresh, used = MetaWorldTask("push"), MetaWorldTask("push")
    used.reset(3)
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 4)).astype(np.float32):
        used.step(action)
    np.testing.assert_array_equal(used.reset(4), fresh.reset(4))
    action = np.array([0.3, 1.0, -1.0, 0.5], np.float32)
    np.testing.assert_array_equal(used.step(action)[0], fresh.step(action)[0])


def test_stock_classes_stay_stock():
    before = ENV_CLS_MAP["push-v3"]._get_quat_objects.__globals__["Rotation"]
    fast_class("push-v3")
    assert ENV_CLS_MAP["push-v3"]._get_quat_objects.__globals__["Rotation"] is before
    assert before.__module__.startswith("scipy")


def test_control_rate():
    assert pytest.approx(1.0 / stock_env("push").dt) == CONTROL_HZ


def test_steps_beyond_stocks_limit():
    env = MetaWorldTask("drawer-open")
    env.reset(0)
    for _ in range(505):
        frame = env.step(np.zeros(4, np.float32))[0]
    assert np.isfinite(frame).all()


def test_expert_closes_the_loop_within_bounds():
    env, expert = MetaWorldTask("drawer-open"), scripted_expert("drawer-open")
    frame = previous = env.reset(0)
    for _ in range(150):
        action = expert(frame, previous)
        assert action.dtype == np.float32 and np.abs(action).max() <= 1.0
        previous, (frame, _, success, _, _) = frame, env.step(action)
        if success:
            return
    raise AssertionError("the scripted expert did not open the drawer")


def test_unknown_task_names_the_closest_or_the_known_ones():
    with pytest.raises(UserError, match=r"'pusch' is unknown.*did you mean 'push'\?"):
        MetaWorldTask("pusch")
    with pytest.raises(UserError, match=r"'juggle' is unknown.*peg-insert-side.*push"):
        MetaWorldTask("juggle")
