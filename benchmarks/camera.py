"""Compare the speed of simulation with images: our simulator, stock Meta-World and a dream, measured in one run.

    python benchmarks/camera.py [TASK ...]

Both simulators render 64 x 64 pixels with the same OpenGL. Stock is `gym.make` with `render_mode="rgb_array"` and an
image per step. Ours is `Group`, once with an image per step and once with an image per chunk of 8, as a policy uses it.
The dream is that of a model as large as `metaworld-pixels-pretrained`, with 64 environments and an image per chunk.
Rates are steps per second of CPU time.
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
import torch

from rl.compose import compose
from rl.envs.cameras import CameraUse
from rl.envs.sim import make_spec
from rl.envs.workers import Group
from rl.stages.config import PretrainConfig
from rl.stages.images import model_spec
from world_model.dream_env import DreamEnv, StartStates
from world_model.view import View
from world_model.wam.features import split
from world_model.wam.model import WorldActionModel

SIZE, CHUNK, N_DREAMS = 64, 8, 64


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print("| task | stock, steps/s | an image a step | an image a chunk | dream |")
    print("| --- | ---: | ---: | ---: | ---: |")
    dream = CHUNK * N_DREAMS * rate(dream_step(), 20)
    for task in sys.argv[1:] or ["push", "hammer", "drawer-open"]:
        stock = rate(stock_step(task), 40)
        ours, chunk = rate(our_step(task, 1), 400), CHUNK * rate(our_step(task, CHUNK), 100)
        cells = (f"{value:.0f} = {value / stock:.0f} x" for value in (ours, chunk, dream))
        print(f"| {task} | {stock:.1f} | {' | '.join(cells)} |")


def stock_step(task: str) -> Callable[[np.ndarray], object]:
    """Return stock's step followed by an image."""
    env = gymnasium.make("Meta-World/MT1", env_name=f"{task}-v3", render_mode="rgb_array", width=SIZE, height=SIZE)
    env.reset(seed=0)

    def step(actions: np.ndarray) -> object:
        env.step(actions[0])
        return env.render()

    return step


def our_step(task: str, chunk: int) -> Callable[[np.ndarray], object]:
    """Return our simulator's step, with an image after every `chunk` steps."""
    group = Group("metaworld", [task], {}, {"images.front": CameraUse(View(), SIZE, SIZE, every=chunk)})
    group.reset({0: 0})
    limit, elapsed = np.array([chunk]), np.zeros(1, int)
    return lambda actions: group.advance(np.repeat(actions[None], chunk, 1), limit, False, elapsed)


def dream_step() -> Callable[[np.ndarray], object]:
    """Return a function that dreams one chunk; its weights are untrained, since only the speed matters."""
    config = compose("metaworld-pixels-pretrained", [], PretrainConfig).model
    simulated = make_spec("metaworld", ["push"])
    model = WorldActionModel(config, model_spec(simulated, config)).eval()
    n, frames = N_DREAMS, config.n_context_frames
    drawn = torch.randn(n, frames + CHUNK, model.frame_dim)
    model.codec.fit(drawn[:, :frames], drawn[:, frames:])
    model.action_codec.action.fit(torch.randn(n, model.spec.action_dim))
    zeros = torch.zeros(n, dtype=torch.long)
    starts = StartStates(split(drawn[:, :frames], model.spec.state_dim), zeros, zeros)
    env = DreamEnv(model, n, starts, horizon=10**6, max_steps=10**6)
    env.reset()
    return lambda actions: env.step_chunk(torch.from_numpy(actions).expand(n, CHUNK, -1))


def rate(step: Callable[[np.ndarray], object], n: int) -> float:
    """Return calls per second of CPU time."""
    random = np.random.default_rng(0)
    for _ in range(3):
        step(random.uniform(-1, 1, (1, 4)).astype(np.float32))
    begun = time.process_time()
    for _ in range(n):
        step(random.uniform(-1, 1, (1, 4)).astype(np.float32))
    return n / (time.process_time() - begun)


if __name__ == "__main__":
    main()
