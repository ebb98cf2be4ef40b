"""Measure the success of a checkpoint with disturbed observations; all disturbances use the same episodes.

    python benchmarks/noise.py [CHECKPOINT] [--tasks TASK ...] [--n-episodes 100]

The disturbances are white noise of 0, 1 and 3 mm on every feature and step. A checkpoint with images also gets noise of
8/255 on each pixel, 10 % more brightness, and a camera shifted by one pixel. Prints a row for each task, the mean, and
the success relative to that without noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch

from rl.envs.cameras import Cameras, Images
from rl.envs.sim import SimEnv
from rl.policies.wam import flow_policy
from rl.rounds.evaluate import evaluate_sim
from rl.statistics import success_rate
from world_model.wam.model import WorldActionModel
from world_model.wam.noise import shifted
from world_model.wam.store import load_model

SEED = 6_000_000
"""Seed of the first episode; no checkpoint was trained, selected or evaluated on these episodes."""

Disturb = Callable[[torch.Tensor], torch.Tensor]
"""Images (n, n_views, size, size, 3) uint8 -> disturbed images of the same shape."""


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
        columns |= {"pixels 8/255": (0.0, pixel_noise), "+10 % light": (0.0, brighter), "1 pixel off": (0.0, moved)}
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
            one.images = disturbed(one.images, disturb)  # type: ignore[method-assign]
    results = evaluate_sim(flow_policy(model, env), env, range(SEED, SEED + n_episodes))
    env.close()
    return success_rate(results)


def disturbed(render: Callable[[Cameras], Images], disturb: Disturb) -> Callable[[Cameras], Images]:
    """Return `Task.images` with disturbed images; each image is disturbed once, when it is taken."""

    def images(cameras: Cameras) -> Images:
        rendered = {name: torch.from_numpy(image) for name, image in render(cameras).items()}
        return {name: disturb(image[None, None])[0, 0].numpy() for name, image in rendered.items()}

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
