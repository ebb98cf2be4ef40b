"""A small autoencoder of images: an image becomes a vector of codes, one for each patch of 16 x 16 pixels.

The world model predicts codes. They are decoded to images only on demand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rewards.errors import UserError
from world_model.wam.config import NO_IMAGE_NOISE, PATCH, ImageNoise
from world_model.wam.noise import noisy_images
from world_model.wam.precision import products

STANDS_OUT = 0.06
"""A pixel whose value differs from its mean over the task by more than this share of the full range shows motion."""

TOGETHER = 0.1
"""Weight of the loss that pulls the codes of an image and of its noisy copy together."""


class ImageCodec(nn.Module):
    """Convolutional autoencoder of images (n, n_views, size, size, 3), with one code (dim,) for each patch.

    Args:
        n_views: number of cameras. Each has its own learned background and position embedding; they share all layers.
        size: pixels along each side of an image, a multiple of 16.
        dim: size of the code of a patch.
        in_bfloat16: compute in bfloat16 if the processor has it.
        widths: channels of the layers at 1/4, 1/8 and 1/16 of the resolution.
    """

    def __init__(
        self, n_views: int, size: int, dim: int, in_bfloat16: bool = False, widths: Sequence[int] = (48, 96, 128)
    ) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.n_views, self.size, self.dim, self.in_bfloat16 = n_views, size, dim, in_bfloat16
        self.n_tokens = n_views * (size // PATCH) ** 2
        self.enter = nn.Conv2d(3, fine, 4, 4)
        # Position embedding of each camera.
        self.where = nn.Parameter(torch.zeros(n_views, fine, size // 4, size // 4))
        self.down = nn.Sequential(
            *(_Residual(fine), nn.SiLU(), nn.Conv2d(fine, middle, 4, 2, 1)),
            *(_Residual(middle), nn.SiLU(), nn.Conv2d(middle, coarse, 4, 2, 1)),
            *(_Residual(coarse), nn.SiLU(), nn.Conv2d(coarse, dim, 1)),
        )
        self.up = nn.Sequential(
            *(nn.Conv2d(dim, coarse, 1), _Residual(coarse), nn.SiLU(), nn.ConvTranspose2d(coarse, middle, 4, 2, 1)),
            *(_Residual(middle), nn.SiLU(), nn.ConvTranspose2d(middle, fine, 4, 2, 1)),
            *(_Residual(fine), nn.SiLU(), nn.Conv2d(fine, 3 * 16, 3, padding=1), nn.PixelShuffle(4)),
        )
        # Background of each camera, so that the codes need to describe only what differs from it.
        self.always = nn.Parameter(torch.zeros(n_views, 3, size, size))

    @property
    def code_dim(self) -> int:
        """Size of the code of the images of all cameras at one moment."""
        return self.n_tokens * self.dim

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.always.device

    def fit(self, images: ImageData) -> None:
        """Initialise the background with the mean image of the tasks."""
        with torch.no_grad():
            self.always.copy_(_centred(images.usual).mean(0))

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (n, n_views, size, size, 3) uint8 as codes (n, n_tokens * dim).

        The order of the codes is camera, row, column, dimension of the code.
        """
        x = _centred(images)
        n = len(x)
        with products(self.in_bfloat16, x):
            hidden = self.enter(x.flatten(0, 1)) + self.where.repeat(n, 1, 1, 1)
            codes: Tensor = self.down(hidden).to(x.dtype)
        return codes.flatten(2).transpose(1, 2).reshape(n, self.code_dim)

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes (n, n_tokens * dim) to images (n, n_views, size, size, 3) uint8."""
        drawn = (self.draw(codes) + 0.5).clamp(0, 1)
        return (255 * drawn).round().to(torch.uint8).permute(0, 1, 3, 4, 2)

    @torch.no_grad()
    def encode_file(self, path: str) -> Tensor:
        """Encode the image in a file once for each camera. Shape: (n_views, code_dim / n_views).

        Raises:
            UserError: the file does not exist, is not an image, or has another size.
        """
        import imageio.v3 as iio  # imported here, because acting needs no image files

        try:
            image = torch.from_numpy(iio.imread(path))
        except Exception as error:  # a damaged file can raise any exception
            raise UserError(f"{path}: no image can be read there ({type(error).__name__}); expected a PNG") from error
        if image.dim() != 3 or image.shape[:2] != (self.size, self.size) or image.shape[2] not in (3, 4):
            raise UserError(f"{path}: {tuple(image.shape)}, expected an image of {self.size} x {self.size} in colour")
        # Drop an alpha channel, and give the same image to every camera.
        for_each_view = image[..., :3].expand(1, self.n_views, -1, -1, -1)
        return self.encode(for_each_view.to(self.always.device)).view(self.n_views, -1)

    def draw(self, codes: Tensor) -> Tensor:
        """Decode codes (n, n_tokens * dim) to float images (n, n_views, 3, size, size), differentiably.

        Values are centred: the range of a valid image is -0.5 to 0.5.
        """
        n, side = len(codes), self.size // PATCH
        grid = codes.reshape(n * self.n_views, side * side, self.dim).transpose(1, 2).unflatten(2, (side, side))
        with products(self.in_bfloat16, grid):
            drawn: Tensor = self.up(grid).unflatten(0, (n, self.n_views))
        return drawn + self.always


@dataclass
class ImageBatch:
    """A training batch of the autoencoder."""

    images: Tensor  # (batch, n_views, size, size, 3) uint8
    usual: Tensor  # (batch, n_views, size, size, 3) uint8, mean image of the task of each row


class ImageData:
    """Images of several tasks, from which batches are drawn.

    Args:
        images: for each task, (n, n_views, size, size, 3) uint8.
    """

    def __init__(self, images: Sequence[Tensor]) -> None:
        self.images = torch.cat(list(images))
        # About 1000 images per task are enough for its mean image.
        some = (task[:: max(1, len(task) // 1000)] for task in images)
        self.usual = torch.stack([task.float().mean(0).round().to(torch.uint8) for task in some])
        self.task = torch.repeat_interleave(torch.arange(len(images)), torch.tensor([len(p) for p in images]))

    def sample(self, n: int, generator: torch.Generator) -> ImageBatch:
        """Draw `n` moments with replacement."""
        device = generator.device
        # The images stay on the CPU; only the batch moves to the device.
        index = torch.randint(len(self.images), (n,), generator=generator, device=device).cpu()
        return ImageBatch(self.images[index].to(device), self.usual[self.task[index]].to(device))


def image_loss(
    codec: ImageCodec,
    batch: ImageBatch,
    noise: ImageNoise = NO_IMAGE_NOISE,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the loss of the autoencoder: the squared error, with ten times the weight on pixels that show motion.

    Most of an image is the table, which never changes and would otherwise dominate the loss.

    With `noise` (drawn with `generator`) the clean image is reconstructed from the code of a noisy copy (denoising
    autoencoder, Vincent et al. 2008), and a second term makes the codes of both images equal.
    """
    # Pixels that differ from the mean image of the task, in any colour.
    truth, usual = _centred(batch.images), _centred(batch.usual)
    stands_out = ((truth - usual).abs().amax(2, keepdim=True) > STANDS_OUT).float()
    if noise.is_off:
        codes, apart = codec.encode(batch.images), truth.new_zeros(())
    else:
        assert generator is not None, "noise is drawn from a generator"
        codes = codec.encode(noisy_images(batch.images, noise, generator))
        apart = (codes - codec.encode(batch.images)).square().mean()
    error = (codec.draw(codes) - truth).square()
    # The last term is a weak penalty that keeps the codes near unit size.
    return 10 * ((1 + 9 * stands_out) * error).mean() + TOGETHER * apart + 1e-4 * codes.square().mean()


def peak_signal_to_noise(images: Tensor, truth: Tensor, where: Tensor) -> float:
    """Return the PSNR in dB of images (n, ..., 3) uint8 against `truth`, over the pixels of a mask `where` (n, ...)."""
    error = (images.float() - truth.float()).square().mean(-1)[where].mean() / 255**2
    return float(-10 * error.clamp(min=1e-10).log10())


def moving(before: Tensor, after: Tensor) -> Tensor:
    """Return the mask (n, ...) of the pixels that differ by more than 12 of 255 between images (n, ..., 3) uint8."""
    return (before.float() - after.float()).abs().amax(-1) > 12


class _Residual(nn.Module):
    """Residual block of two 3 x 3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (n, width, h, w) plus the output of the two convolutions."""
        return x + self.second(F.silu(self.first(F.silu(x))))


def _centred(images: Tensor) -> Tensor:
    """Convert images (..., size, size, 3) uint8 to floats (..., 3, size, size) between -0.5 and 0.5."""
    return (images.float() / 255 - 0.5).movedim(-1, -3)
