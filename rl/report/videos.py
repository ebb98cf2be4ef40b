"""Videos for people: simulator, dream of the same actions, and their difference."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from rewards.errors import UserError
from world_model.extras import pip_line
from world_model.files import write_atomically
from world_model.wam.images import moving, peak_signal_to_noise

PAPER, INK, RED = "#12161c", "#d7dde4", "#f0735a"
"""Colours of a video: dark, which suits a light page and a dark one."""

MOST_BYTES = 400_000
"""Largest size of a video inside a page; a report has up to four and stays under three megabytes."""

STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # `$` in a name is no formula
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.spines.top": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


@matplotlib.rc_context(STYLE)
def draw_video(
    real: Tensor, dreamed: Tensor, expected_error: Sequence[float], title: str, chunk_s: float
) -> list[np.ndarray]:
    """Draw the frames of a video, one per chunk: simulator, dream and difference; below them the error so far.

    Args:
        real: images of the simulator (n, size, size, 3) uint8, the first one from before the first dreamed chunk.
        dreamed: images of the dream, same shape.
        expected_error: of each chunk (n - 1,); empty if trust was not calibrated.
        title: text above each frame.
        chunk_s: duration of a chunk in seconds.

    Returns n frames (height, width, 3) uint8.
    """
    difference = (real.float() - dreamed.float()).abs().mean(-1) / 255
    error = difference.flatten(1).mean(1)
    frames = []
    for i in range(len(real)):
        figure = Figure(figsize=(7.2, 3.9), dpi=80, layout="constrained")
        figure.suptitle(title, fontsize="medium")
        grid = figure.add_gridspec(2, 3, height_ratios=(3, 1))
        panels = ("simulator", real[i].numpy()), ("dream", dreamed[i].numpy()), ("difference", difference[i].numpy())
        for j, (name, panel) in enumerate(panels):
            axes = figure.add_subplot(grid[0, j])
            axes.imshow(panel, cmap="magma", vmin=0, vmax=0.5, interpolation="nearest")
            axes.set_title(name, fontsize="small")
            axes.set_axis_off()
        axes = figure.add_subplot(grid[1, :])
        seconds = [chunk_s * k for k in range(i + 1)]
        axes.plot(seconds, 100 * error[: i + 1], color=RED, marker=".", label="error of a pixel, %")
        axes.set(xlim=(0, chunk_s * max(len(real) - 1, 1)), ylim=(0, max(100 * float(error.max()), 1.0)))
        axes.set_xlabel("seconds", fontsize="small")
        axes.spines["right"].set_visible(False)
        lines = axes.lines[:]
        if expected_error:
            beside = axes.twinx()
            lines += beside.plot(
                seconds[1:], list(expected_error[:i]), color=INK, linestyle="--", label="error that trust expects"
            )
            beside.set(ylim=(0, max(*expected_error, 1e-6)))
        names = [str(line.get_label()) for line in lines]
        figure.legend(lines, names, frameon=False, fontsize="x-small", ncols=2, loc="outside lower center")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return frames


def write_video(frames: Sequence[np.ndarray], path: str | Path, frames_per_s: float) -> None:
    """Write frames (height, width, 3) uint8 as a .gif or .mp4 video.

    Raises:
        UserError: an .mp4 needs the package av.
    """
    path = Path(path)
    if path.suffix == ".gif":
        write_atomically(path, _gif(frames, frames_per_s))
        return
    try:
        video = iio.imwrite(
            "<bytes>", np.stack(frames), extension=".mp4", plugin="pyav", codec="libx264", fps=float(frames_per_s)
        )
    except ImportError as error:
        raise UserError(f"{path}: an .mp4 needs the package av; {pip_line('video')}, or take a .gif") from error
    write_atomically(path, video)


def inline_video(frames: Sequence[np.ndarray], frames_per_s: float) -> str:
    """Return frames as a GIF in a `data:` address, which a page can contain itself.

    Of a video above `MOST_BYTES` every second frame is left out, again and again until it is small enough.
    """
    video = _gif(frames, frames_per_s)
    while len(video) > MOST_BYTES and len(frames) > 2:
        frames, frames_per_s = frames[::2], frames_per_s / 2
        video = _gif(frames, frames_per_s)
    return "data:image/gif;base64," + base64.b64encode(video).decode()


def gif(frames: Sequence[Image.Image], ms_a_frame: int, n_colors: int = 256) -> bytes:
    """Return an endless GIF with one palette for all frames, so that what stands still takes no space."""
    some = [*frames[:: max(len(frames) // 6, 1)], frames[-1]]
    sample = Image.fromarray(np.concatenate([np.asarray(frame) for frame in some]))
    palette = sample.quantize(n_colors, method=Image.Quantize.MEDIANCUT)
    first, *others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    file = io.BytesIO()
    first.save(
        file, "GIF", save_all=True, append_images=others, duration=ms_a_frame, loop=0, optimize=False, disposal=1
    )
    return file.getvalue()


def gif_of(address: str) -> bytes:
    """Return the GIF in an address that `inline_video` made."""
    return base64.b64decode(address.partition(",")[2])


def image_errors(real: Tensor, dreamed: Tensor) -> list[tuple[float, float]]:
    """Return (PSNR of each dreamed image, PSNR of the first image repeated) in dB, over pixels that have changed."""
    rows = []
    for true, dream in zip(real[1:], dreamed[1:], strict=True):
        mask = moving(real[0], true)
        rows.append((peak_signal_to_noise(dream, true, mask), peak_signal_to_noise(real[0], true, mask)))
    return rows


def _gif(frames: Sequence[np.ndarray], frames_per_s: float) -> bytes:
    return gif([Image.fromarray(frame) for frame in frames], ms_a_frame=round(1000 / frames_per_s))
