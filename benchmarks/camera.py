"""Pictures at training speed: a step and a picture, beside stock Meta-World's step and render, in one run.

    python benchmarks/camera.py [TASK ...]

Both draw 64 x 64 pixels with the same OpenGL. Stock is `gym.make` with `render_mode="rgb_array"` and a picture a step;
ours is `Group` with a picture a step, and with one a chunk of 8, which is how a policy sees.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np

os.environ.setdefault("MUJOCO_GL", "egl")  # for stock's renderer; read when mujoco is imported
os.environ.setdefault("LP_NUM_THREADS", "0")

import gymnasium
import metaworld  # noqa: F401 - registers the ids

from rl.envs.workers import Group
from world_model.view import View

SIZE, CHUNK = 64, 8


def main() -> None:
    warnings.simplefilter("ignore")
    print("| task | stock, steps/s | a picture a step | a picture a chunk |")
    print("| --- | ---: | ---: | ---: |")
    for task in sys.argv[1:] or ["push", "hammer", "drawer-open"]:
        stock = rate(stock_step(task), 40)
        ours, chunk = rate(our_step(task, 1), 400), CHUNK * rate(our_step(task, CHUNK), 100)
        print(f"| {task} | {stock:.1f} | {ours:.0f} = {ours / stock:.0f} x | {chunk:.0f} = {chunk / stock:.0f} x |")


def stock_step(task: str) -> Callable[[np.ndarray], object]:
    """Return stock's step with a picture after it."""
    env = gymnasium.make("Meta-World/MT1", env_name=f"{task}-v3", render_mode="rgb_array", width=SIZE, height=SIZE)
    env.reset(seed=0)

    def step(actions: np.ndarray) -> object:
        env.step(actions[0])
        return env.render()

    return step


def our_step(task: str, chunk: int) -> Callable[[np.ndarray], object]:
    """Return ours, with a picture after `chunk` steps."""
    group = Group("metaworld", [task], {}, (View(),), SIZE)
    group.reset({0: 0})
    return lambda actions: group.advance(np.repeat(actions[None], chunk, 1), np.array([chunk]), False)


def rate(step: Callable[[np.ndarray], object], n: int) -> float:
    """Return calls a CPU second."""
    random = np.random.default_rng(0)
    for _ in range(3):
        step(random.uniform(-1, 1, (1, 4)).astype(np.float32))
    begun = time.process_time()
    for _ in range(n):
        step(random.uniform(-1, 1, (1, 4)).astype(np.float32))
    return n / (time.process_time() - begun)


if __name__ == "__main__":
    main()
