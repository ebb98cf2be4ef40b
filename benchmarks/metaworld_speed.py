"""Compare the faster Meta-World with stock: equality of every number, and steps per second of episodes.

    OMP_NUM_THREADS=1 python benchmarks/metaworld_speed.py            # the 12 tasks of the built-in checkpoints
    OMP_NUM_THREADS=1 python benchmarks/metaworld_speed.py push hammer

Equality: both run the same episodes (same seed, same actions, from the expert and at random). Every observation, reward
and success is compared, including resets. Speed: the same episodes of 75 steps, which is the median length of an
expert's success. Stock and ours run in turns in one process; rates are with and without the time of resets.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from metaworld.env_dict import ENV_CLS_MAP
from metaworld.policies import ENV_POLICY_MAP

from rl.envs.metaworld.fast_sawyer import fast_class

TASKS = (
    "assembly box-close hand-insert peg-insert-side hammer pick-place-wall push pick-place drawer-open door-open "
    "window-open button-press-topdown"
).split()
EPISODES, STEPS = 14, 75
COLUMNS = ("steps", "obs", "reward", "success", "stock_step", "fast_step", "stock_reset", "fast_reset")


def stock_env(task: str) -> Any:
    """Return the stock environment with visible, unlimited goals that depend on `env.seed`."""
    env = ENV_CLS_MAP[f"{task}-v3"]()
    env._set_task_called, env._freeze_rand_vec, env.seeded_rand_vec = True, False, True
    env._partially_observable = False
    del env.sawyer_observation_space  # drop the cached space, it was made with a hidden goal
    return env


def compare(task: str) -> dict[str, float]:
    """Run the same episodes in both; return the largest differences, the counts, and the seconds of both."""
    stock, fast = stock_env(task), fast_class(f"{task}-v3")()
    policy, rng = ENV_POLICY_MAP[f"{task}-v3"](), np.random.default_rng(0)
    out = dict.fromkeys(COLUMNS, 0.0)
    for episode in range(EPISODES):
        obs = _timed(out, "stock_reset", lambda seed=episode: (stock.seed(seed), stock.reset()[0])[1])
        ours = _timed(out, "fast_reset", lambda seed=episode: fast.restart(seed))
        out["obs"] = _worst(out["obs"], obs, ours)
        for _ in range(STEPS):
            action = policy.get_action(obs) if episode % 2 == 0 else rng.uniform(-1, 1, 4)
            action = np.clip(action, -1, 1).astype(np.float32)
            obs, reward, _, _, info = _timed(out, "stock_step", lambda a=action: stock.step(a))
            ours, our_reward, our_success = _timed(out, "fast_step", lambda a=action: fast.advance(a))
            out["steps"] += 1
            out["obs"] = _worst(out["obs"], obs, ours)
            out["reward"] = _worst(out["reward"], reward, our_reward)
            out["success"] += bool(info["success"]) != our_success
    return out


def _timed(out: dict[str, float], key: str, call: Callable[[], Any]) -> Any:
    begin = time.perf_counter()
    result = call()
    out[key] += time.perf_counter() - begin
    return result


def _worst(so_far: float, a: Any, b: Any) -> float:
    return float(np.max([so_far, np.max(np.abs(np.asarray(a) - np.asarray(b)))]))  # `np.max` keeps a NaN


def main(tasks: list[str]) -> None:
    """Print one row per task, and the geometric means."""
    warnings.filterwarnings("ignore", message="Constant")
    head = f"{'task':24}{'steps':>6}{'max |obs|':>11}{'max |rew|':>11}{'success':>9}"
    print(head + f"{'stock/s':>9}{'ours/s':>9}{'step x':>8}{'reset x':>9}{'episode x':>11}")
    rows = []
    for task in tasks:
        r = compare(task)
        step, reset = r["stock_step"] / r["fast_step"], r["stock_reset"] / r["fast_reset"]
        whole = (r["stock_step"] + r["stock_reset"]) / (r["fast_step"] + r["fast_reset"])
        rows.append((step, reset, whole))
        rates = r["steps"] / (r["stock_step"] + r["stock_reset"]), r["steps"] / (r["fast_step"] + r["fast_reset"])
        print(
            f"{task:24}{r['steps']:6.0f}{r['obs']:11.1e}{r['reward']:11.1e}{r['success']:9.0f}"
            f"{rates[0]:9.0f}{rates[1]:9.0f}{step:8.2f}{reset:9.2f}{whole:11.2f}",
            flush=True,
        )
    means = [math.exp(sum(math.log(row[i]) for row in rows) / len(rows)) for i in range(3)]
    print(f"{'geometric mean':24}{'':55}{means[0]:8.2f}{means[1]:9.2f}{means[2]:11.2f}")
    print("max: largest difference to stock; success: steps on which the verdicts differ; x: times stock's speed;")
    print(f"episode: a reset and {STEPS} steps")


if __name__ == "__main__":
    main(sys.argv[1:] or TASKS)
