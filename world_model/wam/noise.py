"""Noise on observations in training, which makes a model robust to the noise of real sensors.

Some features never change in training: a goal, an object at rest. Without noise, a sensor error of a millimetre gives
the network a value that it has never seen. The strength is drawn for each row, so that the model also gets nearly clean
observations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from world_model.wam.config import ImageNoise

MIDDLE = 127.5
"""Mid-grey of an 8-bit image; contrast changes scale the distance to it."""


def noisy_vectors(frames: Tensor, limit: float, generator: torch.Generator) -> Tensor:
    """Add white noise to frames (n, n_frames, dim); its deviation is drawn per row, uniformly between 0 and `limit`."""
    deviation = limit * torch.rand(len(frames), 1, 1, generator=generator, device=frames.device)
    return frames + deviation * torch.randn(frames.shape, generator=generator, device=frames.device)


def noisy_images(images: Tensor, noise: ImageNoise, generator: torch.Generator, one_camera: bool = False) -> Tensor:
    """Change images (n, n_views, size, size, 3) uint8 as another camera could; shape and type stay the same.

    With `one_camera`, brightness, contrast, shift and the deviation of the pixel noise are drawn once for all images,
    as for the frames of one episode; otherwise once for each of the `n` rows.
    """
    n, device = 1 if one_camera else len(images), images.device

    def draw(limit: float) -> Tensor:
        """Draw one number per row, uniform in [-limit, limit], with a shape that broadcasts over images."""
        return limit * (2 * torch.rand(n, 1, 1, 1, 1, generator=generator, device=device) - 1)

    # Order: shift, contrast and brightness, white pixel noise. Rounding and clamping give valid uint8 values.
    shift = torch.randint(-noise.shift, noise.shift + 1, (2, n), generator=generator, device=device)
    x = shifted(images, *shift.expand(2, len(images))).float()
    x = MIDDLE + (x - MIDDLE) * (1 + draw(noise.contrast)) + 255 * draw(noise.brightness)
    white = torch.randn(x.shape, generator=generator, device=device)
    return (x + 255 * draw(noise.pixel) * white).round().clamp(0, 255).to(torch.uint8)


def shifted(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Shift images (n, n_views, height, width, 3) by whole pixels `down` (n,) and `right` (n,); edges are repeated."""
    _, _, height, width, _ = images.shape
    device = images.device
    # For each target row and column, the source row and column; the clamp repeats the edges.
    rows = (torch.arange(height, device=device) - down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width, device=device) - right[:, None]).clamp(0, width - 1)
    moments = torch.arange(len(images), device=device)[:, None, None]
    return images.movedim(1, 3)[moments, rows[:, :, None], columns[:, None, :]].movedim(3, 1)
