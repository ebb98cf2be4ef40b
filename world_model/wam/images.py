"""A small autoencoder of images: a frame becomes a vector of codes, one for each patch of 16 x 16 pixels.

The world model predicts codes; they are decoded to images only where images are asked for.
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
"""A pixel that differs by so much of the full range from its mean over the task shows something that moves."""

TOGETHER = 0.1
"""Weight of the distance between the codes of an image and of the same image disturbed."""


class PictureCodec(nn.Module):
    """Convolutional autoencoder of pictures (n, n_views, size, size, 3), one code (dim,) for each of its patches.

    Args:
        n_views: cameras; what each of them always sees is learned apart, the rest together.
        size: pixels along each side of a picture, a multiple of 16.
        dim: numbers in the code of a patch.
        in_bfloat16: compute in it where the processor has it.
    """

    def __init__(
        self, n_views: int, size: int, dim: int, in_bfloat16: bool = False, widths: Sequence[int] = (48, 96, 128)
    ) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.n_views, self.size, self.dim, self.in_bfloat16 = n_views, size, dim, in_bfloat16
        self.n_tokens = n_views * (size // PATCH) ** 2
        self.enter = nn.Conv2d(3, fine, 4, 4)
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
        self.always = nn.Parameter(torch.zeros(n_views, 3, size, size))

    @property
    def code_dim(self) -> int:
        """Numbers in the code of all pictures of a moment."""
        return self.n_tokens * self.dim

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.always.device

    def fit(self, pictures: Pictures) -> None:
        """Begin with what is always seen."""
        with torch.no_grad():
            self.always.copy_(_centred(pictures.usual).mean(0))

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures (n, n_views, size, size, 3) uint8 -> codes (n, n_tokens * dim): view, row, column, number."""
        x = _centred(pictures)
        n = len(x)
        with products(self.in_bfloat16, x):
            hidden = self.enter(x.flatten(0, 1)) + self.where.repeat(n, 1, 1, 1)
            codes: Tensor = self.down(hidden).to(x.dtype)
        return codes.flatten(2).transpose(1, 2).reshape(n, self.code_dim)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (n, n_tokens * dim) -> pictures (n, n_views, size, size, 3) uint8."""
        drawn = (self.draw(codes) + 0.5).clamp(0, 1)
        return (255 * drawn).round().to(torch.uint8).permute(0, 1, 3, 4, 2)

    @torch.no_grad()
    def encode_file(self, path: str) -> Tensor:
        """Codes (n_views, code_dim / n_views) of the picture in a file, as each of the cameras would see it.

        Raises:
            UserError: there is none, it is no picture, or of another size.
        """
        import imageio.v3 as iio  # late: acting does not read files

        try:
            picture = torch.from_numpy(iio.imread(path))
        except Exception as error:  # whatever a damaged file makes the reader say
            raise UserError(f"{path}: no picture can be read there ({type(error).__name__}); expected a PNG") from error
        if picture.dim() != 3 or picture.shape[:2] != (self.size, self.size) or picture.shape[2] not in (3, 4):
            raise UserError(
                f"{path}: {tuple(picture.shape)}, expected a picture of {self.size} x {self.size} in colour"
            )
        everywhere = picture[..., :3].expand(1, self.n_views, -1, -1, -1)
        return self.encode(everywhere.to(self.always.device)).view(self.n_views, -1)

    def draw(self, codes: Tensor) -> Tensor:
        """The same in floats around 0, colours first, through which gradients pass."""
        n, side = len(codes), self.size // PATCH
        grid = codes.reshape(n * self.n_views, side * side, self.dim).transpose(1, 2).unflatten(2, (side, side))
        with products(self.in_bfloat16, grid):
            drawn: Tensor = self.up(grid).unflatten(0, (n, self.n_views))
        return drawn + self.always


@dataclass
class PictureBatch:
    """What the autoencoder learns from."""

    pictures: Tensor  # (batch, n_views, size, size, 3) uint8
    usual: Tensor  # the same, mean over the task


class Pictures:
    """Pictures of several tasks to draw batches from.

    Args:
        pictures: (n, n_views, size, size, 3) uint8 of each task.
    """

    def __init__(self, pictures: Sequence[Tensor]) -> None:
        self.pictures = torch.cat(list(pictures))
        some = (task[:: max(1, len(task) // 1000)] for task in pictures)
        self.usual = torch.stack([task.float().mean(0).round().to(torch.uint8) for task in some])
        self.task = torch.repeat_interleave(torch.arange(len(pictures)), torch.tensor([len(p) for p in pictures]))

    def sample(self, n: int, generator: torch.Generator) -> PictureBatch:
        """Draw `n` moments with replacement."""
        device = generator.device
        index = torch.randint(len(self.pictures), (n,), generator=generator, device=device).cpu()  # where pictures stay
        return PictureBatch(self.pictures[index].to(device), self.usual[self.task[index]].to(device))


def picture_loss(
    codec: PictureCodec,
    batch: PictureBatch,
    noise: ImageNoise = NO_IMAGE_NOISE,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Squared error, ten times as much where something stands out: most of a picture is table, and always the same.

    With `noise`, drawn from `generator`, the clean picture is drawn from the code of a disturbed one (a denoising
    autoencoder, Vincent et al. 2008), and the codes of the two are drawn together.
    """
    truth, usual = _centred(batch.pictures), _centred(batch.usual)
    stands_out = ((truth - usual).abs().amax(2, keepdim=True) > STANDS_OUT).float()
    if noise.is_off:
        codes, apart = codec.encode(batch.pictures), truth.new_zeros(())
    else:
        assert generator is not None, "noise is drawn from a generator"
        codes = codec.encode(noisy_images(batch.pictures, noise, generator))
        apart = (codes - codec.encode(batch.pictures)).square().mean()
    error = (codec.draw(codes) - truth).square()
    # The last term keeps codes of unit size.
    return 10 * ((1 + 9 * stands_out) * error).mean() + TOGETHER * apart + 1e-4 * codes.square().mean()


def peak_signal_to_noise(pictures: Tensor, truth: Tensor, where: Tensor) -> float:
    """PSNR in dB of pictures (n, ..., 3) uint8 against the truth over the pixels of a mask `where` (n, ...)."""
    error = (pictures.float() - truth.float()).square().mean(-1)[where].mean() / 255**2
    return float(-10 * error.clamp(min=1e-10).log10())


def moving(before: Tensor, after: Tensor) -> Tensor:
    """Mask (n, ...) of the pixels that differ between two pictures (n, ..., 3) uint8 by more than 12 of 255."""
    return (before.float() - after.float()).abs().amax(-1) > 12


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Add what two convolutions make of `x` (n, width, h, w)."""
        return x + self.second(F.silu(self.first(F.silu(x))))


def _centred(pictures: Tensor) -> Tensor:
    """(..., size, size, 3) uint8 -> (..., 3, size, size) between -0.5 and 0.5."""
    return (pictures.float() / 255 - 0.5).movedim(-1, -3)
