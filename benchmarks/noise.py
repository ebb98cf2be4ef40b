"""Measure the success of a checkpoint with disturbed observations; all disturbances use the same episodes.

    python benchmarks/noise.py [CHECKPOINT] [--tasks TASK ...] [--n-episodes 100]
    python benchmarks/noise.py runs/dream/20250101-120000-s0 --tasks hammer      # after post-training: name its run

The disturbances are white noise of 0, 1 and 3 mm on every feature and step. A checkpoint with images also gets noise of
8/255 on each pixel, 10 % more brightness, a camera shifted by one pixel, and late images: those of one step before
(12.5 ms), and of one image before (a whole chunk, 100 ms). Prints a row for each task, the mean, and the success
relative to that without noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from rl.envs.cameras import Cameras, CameraUse, Images
from rl.envs.sim import SimEnv
from rl.envs.workers import Array, Task
from rl.policies.wam import flow_policy
from rl.rounds.evaluate import evaluate_sim
from rl.statistics import success_rate
from world_model.wam.model import WorldActionModel
from world_model.wam.noise import shifted
from world_model.wam.store import load_model

SEED = 6_000_000
"""Seed of the first episode; no checkpoint was trained, selected or evaluated on these episodes."""

Render = Callable[[Cameras], Images]
"""What `Task.images` is."""

Disturb = Callable[[Task], Render]
"""An environment -> disturbed images in place of its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", default="metaworld-tuned")
    parser.add_argument("--tasks", nargs="*", help="those to measure; all that the checkpoint knows unless given")
    parser.add_argument("--n-episodes", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.checkpoint)
    columns: dict[str, tuple[float, Disturb | None]] = {
        "clean": (0.0, None),
        "1 mm": (0.001, None),
        "3 mm": (0.003, None),
    }
    if model.cameras:
        changed: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "pixels 8/255": pixel_noise,
            "+10 % light": brighter,
            "1 pixel off": moved,
        }
        columns |= {name: (0.0, partial(disturbed, change=change)) for name, change in changed.items()}
        columns |= {"1 step late": (0.0, one_step_late), "1 image late": (0.0, one_image_late)}
    tasks = options.tasks or model.spec.tasks
    print(" ".join(f"{name:>12}" for name in ("task", *columns)))
    rows = []
    for task in tasks:
        rows.append([success(model, task, options.n_episodes, *column) for column in columns.values()])
        print(f"{task:>20}", *(f"{100 * rate:>10.0f} %" for rate in rows[-1]), flush=True)
    mean = np.mean(rows, axis=0)
    print(f"{'mean':>20}", *(f"{100 * rate:>10.1f} %" for rate in mean))
    print(f"{'of clean':>20}", *(f"{rate / mean[0]:>12.2f}" for rate in mean))


def success(model: WorldActionModel, task: str, n_episodes: int, obs_noise: float, disturb: Disturb | None) -> float:
    """Return the success rate on `n_episodes`, with noise of standard deviation `obs_noise` and disturbed images."""
    options = {"task_names": model.spec.tasks, "features": model.spec.features, "cameras": model.cameras}
    n_context_frames = model.config.n_context_frames
    env = SimEnv("metaworld", min(n_episodes, 32), [task], n_context_frames, obs_noise=obs_noise, **options)
    if disturb is not None:
        for one in env._envs.envs:  # type: ignore[union-attr] # without workers it is a `Group`
            one.images = disturb(one)
    results = evaluate_sim(flow_policy(model, env), env, range(SEED, SEED + n_episodes))
    env.close()
    return success_rate(results)


def disturbed(env: Task, change: Callable[[torch.Tensor], torch.Tensor]) -> Render:
    """Change images (n, n_views, size, size, 3) uint8; each image is changed once, when it is taken."""
    render = env.images

    def images(cameras: Cameras) -> Images:
        rendered = {name: torch.from_numpy(image) for name, image in render(cameras).items()}
        return {name: change(image[None, None])[0, 0].numpy() for name, image in rendered.items()}

    return images


def one_image_late(env: Task) -> Render:
    """Show the image before; at the start of an episode there is none, and the first one is shown."""
    render, reset = env.images, env.reset
    before: Images = {}

    def begin(seed: int) -> Array:
        before.clear()
        return reset(seed)

    def images(cameras: Cameras) -> Images:
        now = render(cameras)
        shown = {name: before.get(name, image) for name, image in now.items()}
        before.update(now)
        return shown

    env.reset = begin  # type: ignore[method-assign]
    return images


def one_step_late(env: Task) -> Render:
    """Show what was there one step before, which takes an image of every step."""
    render, reset, step = env.images, env.reset, env.step
    before: Images = {}
    cameras_of_env: dict[str, CameraUse] = {}

    def begin(seed: int) -> Array:
        before.clear()
        return reset(seed)

    def advance(action: Array) -> tuple[Array, float, bool, bool, bool]:
        before.update(render(cameras_of_env))
        return step(action)

    def images(cameras: Cameras) -> Images:
        cameras_of_env.update(cameras)  # the first call, at the first reset, has all cameras
        return {name: before[name] if name in before else render({name: use})[name] for name, use in cameras.items()}

    env.reset, env.step = begin, advance  # type: ignore[method-assign]
    return images


GENERATOR = torch.Generator().manual_seed(0)


def pixel_noise(images: torch.Tensor) -> torch.Tensor:
    """Add white noise with a standard deviation of 8 of 255."""
    return to_uint8(images.float() + 8 * torch.randn(images.shape, generator=GENERATOR))


def brighter(images: torch.Tensor) -> torch.Tensor:
    """Make the images 10 % brighter."""
    return to_uint8(1.1 * images.float())


def moved(images: torch.Tensor) -> torch.Tensor:
    """Shift all images to the right by one pixel."""
    n = len(images)
    return shifted(images, torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.long))


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Round and clip to uint8, as a camera does."""
    return images.round().clamp(0, 255).to(torch.uint8)


if __name__ == "__main__":
    main()
