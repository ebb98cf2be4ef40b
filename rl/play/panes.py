"""The images of the two panes: what a camera of the simulator sees, and what the model dreams that it would see."""

from __future__ import annotations

import io

import numpy as np
import torch

from rewards.errors import UserError
from rl.play.twin import Twin
from rl.report.film import HAND, OBJECT, dimmed, projected
from world_model.api import WorldModel
from world_model.spec import IMAGES, STATE, Feature
from world_model.view import View

SHOWN = IMAGES + "play"
"""Image that a simulator renders for the person alone, beside a model without images."""

SIZE = 256
"""Height and width of that image, in pixels."""

PARTS = (("object_pos", OBJECT), ("hand_pos", HAND))
"""Slices of the state that are drawn, in metres, and their colours; the hand lies above."""

Pixels = np.ndarray
"""An image (height, width, 3) uint8."""


def shown_image(model: WorldModel) -> dict[str, Feature]:
    """Return the image that a simulator renders for a model without images; {} for a model that has them."""
    if model.spec.images:
        return {}
    return {SHOWN: Feature((SIZE, SIZE, 3), dtype="uint8", every=model.chunk_size)}


def view_of(model: WorldModel) -> View:
    """Return from where the shown camera looks."""
    return next(iter(model.cameras.values()), View())


def check_shown(model: WorldModel, name: str, has_sim: bool) -> None:
    """Refuse a model whose dream cannot be shown.

    Raises:
        UserError: it has no images, and no positions to draw or no simulator beside which to draw them.
    """
    if model.spec.images:
        return
    known = model.predicted_spec.slices
    if not all(part in known for part, _ in PARTS):
        raise UserError(
            f"play {name}: its dream has neither images nor the positions hand_pos and object_pos to draw; take a "
            "checkpoint that sees, such as metaworld-pixels-tuned"
        )
    if not has_sim:
        raise UserError(
            f"play {name}: it has no images, and place=dream has no simulator that could draw the scene; leave "
            "place=dream out, or take a checkpoint that sees, such as metaworld-pixels-tuned"
        )


class Panes:
    """Draws the two panes of a twin."""

    def __init__(self, twin: Twin) -> None:
        self.twin, self.model = twin, twin.model
        self._scene: Pixels = np.zeros((SIZE, SIZE, 3), np.uint8)  # of the start, behind the dream of a state
        self._paths: list[np.ndarray] = []  # dreamed positions (2, 2) of `PARTS` after each chunk, in pixels

    def sim(self) -> Pixels | None:
        """Return the image of the simulator; None without one."""
        if self.twin.sim is None:
            return None
        name = next(iter(self.model.spec.images), SHOWN)
        pixels: Pixels = self.twin.sim.context[name][0, -1].cpu().numpy()
        return pixels

    def dream(self) -> Pixels:
        """Return the image of the dream: decoded, or the positions drawn over the first image of the simulator."""
        newest = {name: frames[:, -1:] for name, frames in self.twin.dream.context.items()}
        if not self.model.spec.images:
            return self._drawn(newest[STATE][0, 0].cpu())
        name = self.model.spec.images[0]
        with torch.no_grad():
            pixels: Pixels = self.model.decode_obs(newest, [name])[name][0, 0].cpu().numpy()
        return pixels

    def _drawn(self, state: torch.Tensor) -> Pixels:
        from PIL import Image, ImageDraw

        slices = self.model.predicted_spec.slices
        positions = np.stack([state[slices[part]].numpy() for part, _ in PARTS])
        n = len(self.twin.moments) - 1
        if n == 0:
            shown = self.sim()
            assert shown is not None, "check_shown refuses this"
            self._scene = dimmed(shown)
        self._paths = [*self._paths[:n], projected(positions, view_of(self.model), SIZE)]
        image = Image.fromarray(self._scene)
        draw = ImageDraw.Draw(image)
        for i, (_, color) in enumerate(PARTS):
            path = [tuple(points[i]) for points in self._paths]
            draw.line(path, fill=color, width=3, joint="curve")
            x, y = path[-1]
            draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=color)
        return np.asarray(image)


def png(pixels: Pixels) -> bytes:
    """Return an image as a PNG file, compressed fast."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=1)
    return file.getvalue()
