"""Images of recordings: PNG and JPEG bytes in parquet files, cropping and scaling, and statistics of pixels.

Every reader of images stores them in `ImageBlocks`, which limits the memory. Pillow, which reads and writes the bytes,
is imported on use.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rewards.errors import UserError
from world_model.data.parquet import parquet_files, read_bytes
from world_model.data.pixels import shrunk

SIDE = 4096
FRAME_PIXELS = SIDE * SIDE
"""Largest number of pixels of a recorded image, and of a frame of a video."""

FREE_PIXELS, PIXELS_PER_BYTE = 200_000_000, 5_000
"""Largest number of decoded pixels of a file: FREE_PIXELS plus PIXELS_PER_BYTE for each byte of the file.

A real recording has a hundred times as many bytes per pixel. The limit stops crafted files: endless black frames take
almost no bytes.
"""

FREE_BYTES, EXPANSION = 300_000_000, 20
"""Largest memory for the images of some files, in bytes: FREE_BYTES plus EXPANSION for each byte of the files."""

BLOCK = 256
"""Number of images in one block of memory."""

QUANTILES = (("q01", 0.01), ("q10", 0.1), ("q50", 0.5), ("q90", 0.9), ("q99", 0.99))
"""Names and shares of the quantiles in the statistics that LeRobot stores."""


class ImageBlocks:
    """Images (height, width, 3) uint8 of equal size, by number, stored in blocks of `BLOCK` images.

    Small tensors allocated between large, short-lived frames would fragment the memory, which then could not be
    returned to the system.

    Args:
        height: of a stored image, in pixels.
        width: of a stored image, in pixels.
        crops: crop recorded images to the square in their middle and scale them down; otherwise their size must be the
            one given here.
    """

    def __init__(self, height: int, width: int, crops: bool) -> None:
        self.shape, self.crops = (height, width, 3), crops
        self.blocks: list[Tensor] = []
        self.n_images = 0  # stored
        self.n_returned = 0
        self._n_bytes = FREE_BYTES  # that the images may take

    @property
    def most(self) -> int:
        """Largest number of images for the files that were announced with `allow`."""
        return self._n_bytes // (self.shape[0] * self.shape[1] * 3)

    def allow(self, path: Path) -> None:
        """Announce a file that images are read from: the larger it is, the more images are accepted."""
        self._n_bytes += EXPANSION * path.stat().st_size

    def add(self, image: np.ndarray, where: str) -> int:
        """Store an image (h, w, 3) uint8 and return its number; `where` begins messages.

        Raises:
            UserError: it has another size, it is smaller than the size to scale it to, or there are too many images.
        """
        if self.crops:
            kept = square(image, self.shape[0], where)
        elif image.shape == self.shape:
            kept = torch.from_numpy(image)
        else:
            found, expected = (" x ".join(map(str, shape[:2])) for shape in (image.shape, self.shape))
            raise UserError(f"{where}: an image of {found} pixels (height x width), expected {expected}")
        self._check(self.n_images + 1, where)
        if self.n_images % BLOCK == 0:
            self.blocks.append(torch.empty((BLOCK, *self.shape), dtype=torch.uint8))
        self.blocks[-1][self.n_images % BLOCK] = kept
        self.n_images += 1
        return self.n_images - 1

    def rows(self, numbers: Sequence[int], where: str) -> Tensor:
        """Return the images of the given numbers (n, height, width, 3); `where` begins messages.

        Raises:
            UserError: all images returned so far take too much memory; a file can name the same image many times.
        """
        self.n_returned += len(numbers)
        self._check(self.n_returned, where)
        return torch.stack([self.blocks[i // BLOCK][i % BLOCK] for i in numbers])

    def _check(self, n: int, where: str) -> None:
        if n > self.most:
            raise UserError(
                f"{where}: it makes more than {self.most:,} images of {self.shape[0]} x {self.shape[1]} pixels, the "
                "most for files of this size; lower the size of the images, or leave episodes out"
            )


def square(image: np.ndarray, size: int, where: str) -> Tensor:
    """Crop an image (height, width, 3) uint8 to the square in its middle and scale it down to (size, size, 3).

    Scaling averages over areas, see `shrunk`. `where` begins the message.

    Raises:
        UserError: the image is smaller than `size`.
    """
    side = min(image.shape[:2])
    if side < size:
        raise UserError(
            f"{where}: an image of {image.shape[0]} x {image.shape[1]} pixels (height x width), which cannot be scaled "
            f"up to {size} x {size}; choose a smaller size of the images"
        )
    return torch.from_numpy(shrunk(image, size, size))  # as images of simulators and robots are scaled


def read_images(root: Path, part: str, column: str, blocks: ImageBlocks) -> np.ndarray:
    """Read the PNG and JPEG images of a column of `data` or `meta/episodes` into `blocks`.

    Returns for each row the number of its image (rows,); equal images in consecutive rows are stored once.

    Raises:
        UserError: a file or an image is damaged, too large, or of another kind; the message has file and row.
    """
    paths, numbers, n_pixels = parquet_files(root, part), list[int](), 0
    for path in paths:
        blocks.allow(path)
        last: object = object()  # equal to no bytes
        limit = n_pixels + FREE_PIXELS + PIXELS_PER_BYTE * path.stat().st_size
        for row, data in enumerate(read_bytes(path, column)):
            if data != last:
                where = f"{path}: row {row} of {column}"
                image = decode_image(data, where)
                n_pixels += image.shape[0] * image.shape[1]
                if n_pixels > limit:
                    raise UserError(f"{where}: more pixels than a file of this size has; download the dataset again")
                number, last = blocks.add(image, where), data
            numbers.append(number)
    return np.array(numbers, dtype=np.int64)


def decode_image(data: object, where: str) -> np.ndarray:
    """Return the image in the bytes of a PNG or JPEG file (height, width, 3) uint8; `where` begins messages.

    Raises:
        UserError: it is damaged, of another kind, has more than `FRAME_PIXELS` pixels, or is not of 8 bits.
    """
    from PIL import Image

    if not isinstance(data, bytes):
        raise UserError(f"{where}: it holds no PNG or JPEG bytes; convert the dataset with LeRobot first")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:  # reads the header only
            width, height = image.size
            if width * height > FRAME_PIXELS:
                raise UserError(f"{where}: an image of {height} x {width} pixels, at most {SIDE} x {SIDE} are read")
            if image.mode.startswith(("I", "F")):
                raise UserError(f"{where}: an image of mode {image.mode}, expected 8 bits for each colour")
            return np.array(image.convert("RGB"))  # a copy, which can be written to
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise any exception
        raise UserError(
            f"{where}: the image cannot be read ({type(error).__name__}); download the dataset again"
        ) from error


def encode_png(image: Tensor) -> bytes:
    """Return an image (height, width, 3) uint8 as the bytes of a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.cpu().numpy()).save(file, "PNG")
    return file.getvalue()


def count_levels(images: Tensor) -> np.ndarray:
    """Count how often each value occurs in images (n, height, width, 3) uint8. Shape: (3, 256), by channel."""
    channels = images.reshape(-1, 3).cpu().numpy()
    return np.stack([np.bincount(channels[:, c], minlength=256) for c in range(3)])


def level_stats(counts: np.ndarray, n_images: int) -> dict[str, list[object]]:
    """Return the statistics that LeRobot stores of images, for each channel, of shape (3, 1, 1) and from 0 to 1.

    `counts` (3, 256) is the sum of `count_levels` over `n_images` images.
    """
    levels, totals = np.arange(256) / 255, counts.sum(1)
    mean = counts @ levels / totals
    variance = (counts * (levels - mean[:, None]) ** 2).sum(1) / totals
    seen = counts > 0
    stats = {"min": levels[seen.argmax(1)], "max": levels[255 - seen[:, ::-1].argmax(1)]}
    stats |= {"mean": mean, "std": np.sqrt(variance)}
    for name, share in QUANTILES:
        # The smallest value that at least this share of the pixels does not exceed.
        stats[name] = levels[(counts.cumsum(1) >= share * totals[:, None]).argmax(1)]
    return {name: value.reshape(3, 1, 1).tolist() for name, value in stats.items()} | {"count": [n_images]}
