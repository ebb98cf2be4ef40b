"""The film of a report: one episode before training, after it, and in the dream, side by side.

A model with images shows the images that it reads, decoded. For any other model the simulator renders its episodes
again, where it can, and the dream is drawn over the first image: where it has the hand and the object.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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

SIZE = 200
"""Height and width of a rendered image in pixels."""

EVERY = 4
"""Steps from one rendered image to the next."""

FRAMES_PER_S = 10.0

FIELD_OF_VIEW = 45.0
"""Vertical field of view of a free camera in MuJoCo, in degrees."""

SAME = 0.01
"""An episode that was run again is shown if its last state differs by less from the recorded one."""

Images = np.ndarray
"""Images of an episode (n, height, width, 3) uint8."""

HAND, OBJECT = "#2f7ed8", "#e4572e"


@dataclass(frozen=True)
class Panel:
    """One of the videos that stand side by side."""

    title: str
    images: Images


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
    dim = (0.45 * background + 0.55 * 255).astype(np.uint8)
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


def side_by_side(panels: Sequence[Panel]) -> list[np.ndarray]:
    """Return the frames of a film (height, width, 3) uint8; a panel that ends early stays at its last image."""
    frames = []
    for i in range(max(len(panel.images) for panel in panels)):
        figure = Figure(figsize=(2.1 * len(panels), 2.4), dpi=100, facecolor="white", layout="constrained")
        for axes, panel in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
            axes.imshow(panel.images[min(i, len(panel.images) - 1)], interpolation="nearest")
            axes.set_title(panel.title, fontsize=9, parse_math=False)
            axes.set_axis_off()
        frames.append(_pixels(figure))
    return frames


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
