"""The film of a report: one episode before training, after it, and in the dream, side by side.

A model with images shows the images that it reads, decoded. For any other model the simulator renders its episodes
again, where it can, and the dream is drawn over the first image: where it has the hand and the object.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rl.build import find_simulator
from rl.config import TrainConfig
from rl.envs.cameras import CameraUse
from world_model.api import WorldModel
from world_model.data.episodes import Episode
from world_model.env import Frames
from world_model.spec import IMAGES, STATE
from world_model.view import View

SIZE = 160
"""Height and width of a rendered image in pixels."""

EVERY = 4
"""Steps from one rendered image to the next."""

FRAMES_PER_S = 10.0

MOST_FRAMES = 40
"""Largest number of frames; of longer episodes some are left out, so that a report stays small."""

FIELD_OF_VIEW = 45.0
"""Vertical field of view of a free camera in MuJoCo, in degrees."""

SAME = 0.01
"""An episode that was run again is shown if its last state differs by less from the recorded one."""

Images = np.ndarray
"""Images of an episode (n, height, width, 3) uint8."""

HAND, OBJECT = "#2f7ed8", "#e4572e"


def decoded(model: WorldModel, frames: Frames, every: int) -> Images | None:
    """Return the images of the first camera, one of every `every` frames; None for a model without images."""
    names = [name for name in model.spec.features if name.startswith(IMAGES)][:1]
    if not names:
        return None
    chosen = {name: values[::every][None] for name, values in frames.items()}
    with torch.no_grad():
        images: Images = model.decode_obs(chosen, names)[names[0]][0].cpu().numpy()
    return images


def rendered(config: TrainConfig, episode: Episode) -> Images | None:
    """Run a recorded episode again and return its images; None if the simulator cannot, or ends in another state."""
    cameras = {"images.film": CameraUse(View(), SIZE, SIZE, EVERY)}
    try:
        images, last = find_simulator(config.env).replay(id=config.env.id, episode=episode, cameras=cameras)
    except Exception:  # without OpenGL a renderer may raise anything, and a report is complete without a film
        return None
    recorded = episode.obs[STATE][-1].numpy()
    if last.shape != recorded.shape or np.abs(last - recorded).max(initial=0.0) > SAME + 6 * config.env.obs_noise:
        return None
    return images["images.film"].numpy()


def drawn_positions(model: WorldModel, frames: Frames, background: np.ndarray) -> Images:
    """Draw hand and object of a dream over an image of the start, as paths that grow.

    Args:
        model: says which numbers of the state are positions.
        frames: of the dream.
        background: image of the simulator at the start (height, width, 3) uint8, seen from `View()`.
    """
    slices = model.predicted_spec.slices
    paths = {
        color: projected(frames[STATE][:, slices[part]].cpu().numpy(), View(), SIZE)
        for part, color in (("hand_pos", HAND), ("object_pos", OBJECT))
        if part in slices
    }
    dim = dimmed(background)
    images = []
    for step in range(0, len(frames[STATE]), EVERY):
        figure = Figure(figsize=(SIZE / 100, SIZE / 100), dpi=100)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(dim)
        for color, path in paths.items():
            axes.plot(*path[: step + 1].T, color=color, linewidth=1.5)
            axes.plot(*path[step], "o", color=color, markersize=6)
        axes.set(xlim=(0, SIZE), ylim=(SIZE, 0))
        axes.set_axis_off()
        images.append(_pixels(figure))
    return np.stack(images)


def dimmed(image: np.ndarray) -> np.ndarray:
    """Return an image (height, width, 3) uint8 as a pale background for what is drawn over it."""
    return np.asarray((0.45 * image + 0.55 * 255).astype(np.uint8))


def projected(positions: np.ndarray, view: View, size: int) -> np.ndarray:
    """Return where a free camera of MuJoCo sees positions (n, 3), in pixels (n, 2) of an image of `size` squared."""
    azimuth, elevation = math.radians(view.azimuth), math.radians(view.elevation)
    forward = np.array(
        [math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)]
    )
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    seen = positions - (np.array(view.lookat) - view.distance * forward)
    scale = size / 2 / math.tan(math.radians(FIELD_OF_VIEW / 2)) / (seen @ forward)
    return np.stack([size / 2 + scale * (seen @ right), size / 2 - scale * (seen @ up)], axis=1)


def side_by_side(videos: Sequence[Images]) -> list[np.ndarray]:
    """Return the frames of a film (height, width, 3) uint8, small images enlarged; a video that ends early stays."""
    large = []
    for images in videos:
        times = max(round(SIZE / images.shape[1]), 1)
        large.append(images.repeat(times, axis=1).repeat(times, axis=2))
    n = max(map(len, large))
    shown = range(0, n, -(-n // MOST_FRAMES))
    return [np.concatenate([images[min(i, len(images) - 1)] for images in large], axis=1) for i in shown]


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
